"""Progress: a line every ten seconds, with the share that is done and the time left."""

import pytest

from moco.engine import progress
from moco.engine.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """A list whose only entry is the time in seconds."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_ten_seconds(clock, capsys):
    task = Progress("kNN", 2000, "images")
    for _ in range(10):
        clock[0] += 3
        task.add(200)
    out, error = capsys.readouterr()
    assert not out and error.splitlines() == [
        "kNN: 800 of 2,000 images (40%), 0:00:18 left",
        "kNN: 1,600 of 2,000 images (80%), 0:00:06 left",
    ]


def test_a_short_task_prints_nothing(clock, capsys):
    task = Progress("kNN", 2, "images", error=False)
    clock[0] += 9
    task.add(1)
    clock[0] += 20
    task.add(1)  # all is done
    assert capsys.readouterr() == ("", "")


def test_it_can_print_to_standard_output(clock, capsys):
    task = Progress("faults", 3, "faults", error=False)
    clock[0] += 60
    task.add()
    assert capsys.readouterr() == ("faults: 1 of 3 faults (33%), 0:02:00 left\n", "")


def test_the_first_item_can_be_announced(clock, capsys):
    task = Progress("campaign", 4, "faults")
    for name in ("SIGKILL", "SIGTERM"):
        task.show(name)
        clock[0] += 25
        task.done += 1
    assert capsys.readouterr().err.splitlines() == [
        "campaign: 0 of 4 faults (0%); now: SIGKILL",
        "campaign: 1 of 4 faults (25%), 0:01:15 left; now: SIGTERM",
    ]


def test_only_rank_0_prints(clock, capsys, monkeypatch):
    monkeypatch.setattr(progress, "rank", lambda: 1)
    task = Progress("step", 3, "rounds")
    clock[0] += 60
    task.add()
    assert capsys.readouterr() == ("", "")
