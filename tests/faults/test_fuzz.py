"""A short fuzzing of images, checkpoints and archives, and that it would notice."""

import multiprocessing
import os

import pytest

from moco.faults import fuzz
from tests.ranks import FORKSERVER


@pytest.fixture(autouse=True)
def _readers_start_at_once(monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: FORKSERVER)


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_mutated_files_are_read_or_refused(kind, tmp_path):
    outcomes = fuzz.fuzz(kind, 300, 0, str(tmp_path / "findings"))
    assert set(outcomes) <= {"read", "refused"} | ({"read without labels"} if kind == "archives" else set())
    assert sum(outcomes.values()) == 300
    assert outcomes["read"] > 10 and outcomes["refused"] > 100
    assert not (tmp_path / "findings").exists()


def test_crashes_and_other_errors_are_noticed_and_their_files_kept(tmp_path):
    reader = fuzz.Reader()
    try:
        assert reader.read("images", str(tmp_path / "nowhere.jpg")) == "refused"
        os.kill(reader.process.pid, 9)
        assert reader.read("images", str(tmp_path / "nowhere.jpg")) == "crash"
        assert reader.read("no such kind", "x") == "KeyError: 'no such kind'"
    finally:
        reader.close()
    with pytest.raises(KeyError):
        fuzz.fuzz("no such kind", 1, 0, str(tmp_path))


def test_it_shows_its_progress(tmp_path, monkeypatch, impatient, call):
    monkeypatch.setattr(fuzz.Reader, "read", lambda *_: "read")
    code, out, error = call(fuzz.main, "--files", "3", "--keep", tmp_path)
    assert code == 0 and out.splitlines() == [f"{kind}: 3 x read" for kind in fuzz.KINDS]
    lines = [f"fuzzing {kind}: {done} files" for kind in fuzz.KINDS for done in ("1 of 3", "2 of 3")]
    assert [line.partition(" (")[0] for line in error.splitlines()] == lines


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--files", "-1"], "--files: '-1' is not an integer >= 1"),
        (["--files", "0"], "--files: '0' is not an integer >= 1"),
        (["--keep", __file__], "is no folder; give a folder, which may be a new one"),
        (["--seed", "x"], "--seed: 'x' is not an integer >= 0"),
    ],
)
def test_what_it_refuses(flags, message, call, monkeypatch):
    monkeypatch.setattr(fuzz, "fuzz", lambda *_: pytest.fail("it worked"))
    code, out, error = call(fuzz.main, *flags)
    assert code == 2 and not out and error.count("\n") == 1 and message in error
