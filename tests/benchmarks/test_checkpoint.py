"""The benchmark of checkpoints' writing, small."""

import re
import subprocess
import sys

import pytest
import torch

from moco.benchmarks import checkpoint


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_benchmark_prints_its_figures(tmp_path):
    command = [
        sys.executable,
        "-m",
        "moco.benchmarks.checkpoint",
        "-a",
        "resnet18",
        "--repeats",
        "2",
        "--dir",
        str(tmp_path),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    size = int(re.search(r"^resnet18, 2 checkpoints of (\d+) MB", result.stdout)[1])
    assert 140 < size < 200  # two encoders, their momentum, the queue
    times = re.findall(r"^(stall|write): first (\S+) s, median (\S+) s, longest (\S+) s$", result.stdout, re.MULTILINE)
    assert [name for name, *_ in times] == ["stall", "write"]
    assert all(float(figure) > 0 for _, *figures in times for figure in figures)
    memory = int(re.search(r"^memory: (\d+) MB at most$", result.stdout, re.MULTILINE)[1])
    assert 0.5 * size < memory < 3 * size
    assert list(tmp_path.iterdir()) == []


def test_it_shows_its_progress(tmp_path, monkeypatch, impatient, capsys):
    model = torch.nn.Linear(2, 2)
    monkeypatch.setattr(checkpoint.main_moco, "build", lambda args: (model, torch.optim.SGD(model.parameters(), 0.1)))
    monkeypatch.setattr(checkpoint, "peak_resident", lambda function: function() or 0)
    _, stalls, writes, _ = checkpoint.saves("resnet18", str(tmp_path), 3)
    assert len(stalls) == len(writes) == 3
    out, error = capsys.readouterr()
    lines = ["checkpoint: 1 of 3 checkpoints (33%)", "checkpoint: 2 of 3 checkpoints (67%)"]
    assert not out and [line.partition(", ")[0] for line in error.splitlines()] == lines


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--repeats", "0"], "--repeats: '0' is not an integer >= 1"),
        (["--dir", "nowhere"], "--dir: 'nowhere' is no folder; give one that exists"),
        (["--dir", __file__], "is no folder; give one that exists"),
        (["-a", "resnet5O"], "invalid choice: 'resnet5O'; did you mean resnet50?"),
    ],
)
def test_what_it_refuses(flags, message, call, monkeypatch):
    monkeypatch.setattr(checkpoint, "saves", lambda *_: pytest.fail("it worked"))
    code, out, error = call(checkpoint.main, *flags)
    assert code == 2 and not out and error.count("\n") == 1 and message in error


def test_a_folder_that_takes_no_files_is_refused(tmp_path, monkeypatch, call):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.tempfile, "TemporaryDirectory", full)
    code, out, error = call(checkpoint.main, "--dir", tmp_path)
    assert (code, out) == (2, "") and error.endswith(f"{str(tmp_path)!r}: No space left on device; give another\n")
