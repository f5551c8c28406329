"""The benchmark of checkpoints' writing, small."""

import re
import subprocess
import sys

import pytest


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
