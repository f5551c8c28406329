"""The benchmark of sources, for moments; its figures are not judged here, but the counts of system calls are."""

import json
import os
import shutil
import signal
import sys
import tarfile
from collections import namedtuple

import pytest

from moco.benchmarks import sources
from moco.benchmarks.internal import system_calls
from moco.data.file_list import ImageFolder
from moco.tools import fake_imagenet

FIGURES = {"opens", "reads", "stats", "read", "decode"}


class Source(ImageFolder):
    """An ImageFolder that also opens the tar archive of the benchmark, and notes what is decoded."""

    decoded: list = []  # noqa: RUF012

    def __init__(self, root, any_tree=False):
        if not str(root).endswith(".tar"):
            super().__init__(root, any_tree)
            return
        with tarfile.open(root) as archive:
            members = archive.getmembers()
        self.root, self.members, self.file = root, members, os.open(root, os.O_RDONLY)
        self.labels = members

    def path(self, index):
        return f"{self.root}!{self.members[index].name}" if hasattr(self, "members") else super().path(index)

    def _read(self, index):
        if not hasattr(self, "members"):
            return super()._read(index)
        data = os.pread(self.file, self.members[index].size, self.members[index].offset_data)
        return data, self.path(index)

    def load_tensor(self, index):
        self.decoded.append((hasattr(self, "members"), os.path.basename(self.path(index))))
        return super().load_tensor(index)


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Two rounds, the Source above, and a folder of temporary files that must be empty in the end."""
    monkeypatch.setattr(sources, "ImageFolder", Source)
    monkeypatch.setattr(sources, "ROUNDS", 2)
    monkeypatch.setattr(Source, "decoded", [])
    (place := tmp_path / "temporary").mkdir()
    monkeypatch.setattr(sources.tempfile, "tempdir", str(place))
    yield
    assert not os.listdir(place)


def without_strace(monkeypatch):
    monkeypatch.setattr(system_calls.shutil, "which", lambda name: None)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_it_prints_a_table_and_json(imagenet, monkeypatch, call):
    without_strace(monkeypatch)
    code, out, error = call(sources.main, imagenet / "val", "--seconds", "0.05", "--images", "9", "--json")
    assert code == 0, error
    lines = out.splitlines()
    figures = json.loads(lines[-1])
    assert figures.keys() >= {f"{name}_{figure}" for name in ("folder", "tar") for figure in FIGURES}
    assert figures["images"] == 9 and all(figures[f"tar_over_folder_{kind}"] > 0 for kind in ("read", "decode"))
    assert (figures["folder_opens"], figures["folder_reads"], figures["folder_stats"]) == (1, 2, None)
    assert (figures["tar_opens"], figures["tar_reads"], figures["tar_stats"]) == (0, 1, None)
    assert lines[0].startswith(f"{os.uname().machine}, ") and lines[0].endswith("; one process, 2 rounds, medians")
    assert lines[-2].split() == ["stats", "unknown", "unknown"]
    assert "calls per image, counted by Python and /proc" in lines


def test_both_go_through_the_same_images_in_an_order_of_each_round(imagenet, monkeypatch, call):
    monkeypatch.setattr(sources, "count", lambda function: (dict.fromkeys(system_calls.KINDS, 0), "nothing"))
    monkeypatch.setattr(sources, "rate", lambda function, order, seconds: [function(i) for i in order] and 1)
    code, _, error = call(sources.main, imagenet / "val", "--images", "20")
    assert code == 0, error
    turns = [Source.decoded[i : i + 20] for i in range(0, 80, 20)]
    assert [{tar for tar, _ in turn} for turn in turns] == [{False}, {True}, {True}, {False}]
    names = [[name for _, name in turn] for turn in turns]
    assert names[0] == names[1] != names[2] == names[3] and sorted(names[0]) == sorted(names[2])


def test_it_shows_its_progress(imagenet, impatient, monkeypatch, call):
    without_strace(monkeypatch)
    _, out, error = call(sources.main, imagenet / "val", "--seconds", "0.01", "--images", "3")
    assert "packing: 2 of 3 images" in error and "sources: 7 of 8 measurements" in error and "left" not in out


def test_what_it_refuses(tmp_path, monkeypatch, call):
    fake_imagenet.make(tmp_path / "few", train=1, val=1, size=16, classes=2)

    def refused(*words):
        code, out, error = call(sources.main, *words)
        assert code == 2 and not out and error.count("\n") == 1
        return error

    assert "no folder 'nowhere'; it must hold images" in refused("nowhere")
    assert "'0' is not an integer >= 1" in refused(tmp_path, "--images", "0")
    assert "'0' is not a finite number > 0" in refused(tmp_path, "--seconds", "0")
    with monkeypatch.context() as patch:
        disk = namedtuple("disk", "free")(100)
        patch.setattr(shutil, "disk_usage", lambda path: disk)
        error = refused(tmp_path / "few")
        assert "the tar needs 0 MB, but the disk of" in error and "give fewer --images, or set TMPDIR" in error
    with monkeypatch.context() as patch:
        patch.setattr(Source, "path", lambda folder, index: "a.tar!1.jpg")
        assert "'a.tar!1.jpg' is not a file of its own; give a folder of image files" in refused(tmp_path / "few")
    with monkeypatch.context() as patch:
        patch.setattr(sources, "pack", lambda folder, chosen, path: tarfile.open(path, "w").close())
        assert "has other images than the folder, or another order" in refused(tmp_path / "few")
    (bad := tmp_path / "few" / "train" / "disk_plain" / "0000.jpg").write_text("no image")
    assert f"can't decode the image '{bad}" in refused(bad.parent, "--seconds", "0.01")


def test_a_stop_signal_leaves_no_tar(imagenet, monkeypatch, call):
    monkeypatch.setattr(sources.Progress, "add", lambda task: os.kill(os.getpid(), signal.SIGTERM))
    code, out, error = call(sources.main, imagenet / "val")
    assert (code, out, error) == (143, "", "stopped by SIGTERM\n")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("strace", [True, False])
def test_system_calls_are_counted(strace, tmp_path, monkeypatch):
    (path := tmp_path / "file").write_text("content")

    def work():
        for _ in range(5):
            file = os.open(path, os.O_RDONLY)
            for _ in range(3):
                os.pread(file, 4, 0)
            os.stat(path)
            os.close(file)

    if not strace:
        without_strace(monkeypatch)
    counts, means = system_calls.count(work)
    if strace and means != "strace":
        pytest.skip("strace is not installed or not allowed")
    assert counts == {"opens": 5, "reads": 15, "stats": 5 if strace else None}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_strace_that_is_not_allowed_is_not_needed(tmp_path, monkeypatch):
    (program := tmp_path / "strace").write_text(
        "#!/bin/sh\necho 'strace: attach: Operation not permitted' >&2\nexit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    counts, means = system_calls.count(lambda: os.close(os.open(program, os.O_RDONLY)))
    assert means == "Python and /proc" and counts == {"opens": 1, "reads": 0, "stats": None}
