"""Runs that no longer get on: who is behind is named, and nobody waits for ever."""

import multiprocessing
import threading
import time

import pytest
import torch.distributed as dist

from moco.engine import watchdog
from moco.engine.watchdog import DATA, STEP, Watchdog, verdict

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture
def store(tmp_path):
    return dist.FileStore(str(tmp_path / "store"), 3)


@pytest.fixture
def ends(monkeypatch):
    """Short periods, and what would end the process ends its thread: waits for so many ends, returns the codes."""
    monkeypatch.setattr(watchdog, "LOOK", 0.05)
    monkeypatch.setattr(watchdog, "GRACE", 0.5)
    codes = []

    def end(code):
        codes.append(code)
        raise SystemExit

    def wait(n):
        deadline = time.monotonic() + 20
        while len(codes) < n and time.monotonic() < deadline:
            time.sleep(0.01)
        return codes

    monkeypatch.setattr(watchdog, "end_at_once", end)
    return wait


def test_a_run_that_gets_on_is_left_alone(store, ends):
    with Watchdog(store, 0, 1, timeout=0.3):
        for i in range(20):
            watchdog.at(0, i, STEP)
            time.sleep(0.05)
    assert ends(0) == [] and not store.check(["alarm"])
    watchdog.at(0, 99, STEP)  # nothing is watched any more


def test_ranks_that_are_behind_are_named_by_one_of_those_that_wait(store, ends, capsys):
    dogs = [Watchdog(store, rank, 3, timeout=0.3) for rank in range(2)]
    dogs[0].place, dogs[1].place = (1, 7, STEP), (1, 7, DATA)
    for dog in dogs:
        dog.__enter__()
    assert ends(2) == [1, 1]
    error = capsys.readouterr().err
    assert error.count("did not arrive") == 1
    assert (
        "no step ended within --timeout 0.3 s; rank 1 (epoch 1, step 7, waiting for data), rank 2 (no answer) did not "
        "arrive; all other ranks (epoch 1, step 7, computing) wait for that" in error
    )
    for dog in dogs:
        dog.__exit__(None, None, None)


def test_another_ranks_failure_ends_this_one_where_it_would_hang(store, ends, capsys):
    with pytest.raises(KeyError), Watchdog(store, 1, 3, timeout=60):
        raise KeyError("of rank 1")
    with Watchdog(store, 0, 3, timeout=60):
        assert ends(1) == [1]
    assert "rank 0: rank 1 failed; this process ends too" in capsys.readouterr().err


def test_a_process_that_ends_by_itself_is_not_ended(store, ends):
    with pytest.raises(KeyError), Watchdog(store, 1, 3, timeout=60):
        raise KeyError
    with Watchdog(store, 0, 3, timeout=60):
        time.sleep(0.2)  # it has seen the alarm and waits for an orderly end
    time.sleep(0.6)
    assert ends(0) == []


def test_a_dead_process_beside_it_ends_this_one_and_tells_other_nodes(store, ends):
    lost = multiprocessing.RawValue("b", 0)
    with Watchdog(store, 0, 3, timeout=60, lost=lost):
        lost.value = 1
        assert ends(1) == [1]
    assert store.get("alarm") == b"another process on the node of rank 0 died"


class Store:
    """One whose keeper is gone or, if `frozen`, never answers."""

    def __init__(self, frozen):
        self.frozen = frozen

    def clone(self):
        return self

    def check(self, keys):
        if self.frozen:
            threading.Event().wait(30)
        raise RuntimeError("connection reset")

    add = check


def test_without_its_store_a_process_ends(ends, capsys):
    with Watchdog(Store(frozen=False), 1, 3, timeout=60):
        assert ends(1) == [1]
    assert (
        "the process that hosts the rendezvous store (rank 0, or the agent of torchrun) has ended"
        in capsys.readouterr().err
    )


def test_a_store_that_does_not_answer_is_named_only_where_the_run_hangs(ends, capsys):
    with Watchdog(Store(frozen=True), 1, 3, timeout=60):
        time.sleep(1)
    assert ends(0) == []
    with Watchdog(Store(frozen=True), 1, 3, timeout=0.1):
        assert ends(1) == [1]
    assert (
        "--timeout 0.1 s; the process that hosts the rendezvous store (rank 0, or the agent of torchrun) does not"
        in (capsys.readouterr().err)
    )
    with pytest.raises(KeyError), Watchdog(Store(frozen=True), 1, 3, timeout=60):
        raise KeyError  # which is not held up by telling the others


@pytest.mark.parametrize(
    "places, said",
    [
        ({0: (0, 3, STEP), 1: (0, 2, STEP)}, "s; rank 1 (epoch 0, step 2, computing) did not arrive"),
        ({0: (0, 3, STEP), 1: None}, "s; rank 1 (at the start) did not arrive"),
        (
            {0: (0, 3, DATA)},
            "rank 1 (no answer) did not arrive; all other ranks (epoch 0, step 3, waiting for data) wait",
        ),
        (
            {0: (2, 3, STEP), 1: (2, 3, STEP)},
            "all ranks are at the same point (epoch 2, step 3, computing), so the loading of data, a device or",
        ),
        ({0: None, 1: None}, "all ranks are at the same point (at the start), so"),
    ],
)
def test_verdicts(places, said):
    assert said in verdict(places, 2, 600)
