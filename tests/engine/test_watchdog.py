"""Runs that no longer get on: who is behind is named, and nobody waits for ever."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch.distributed as dist

from moco.engine import watchdog
from moco.engine.launch_plan import Launch
from moco.engine.launch_processes import start_processes
from moco.engine.watchdog import DATA, REPORT, STEP, Watchdog, verdict
from tests.ranks import Program, quick_launches


@pytest.fixture
def store(tmp_path):
    store = dist.FileStore(str(tmp_path / "store"), 3)
    store.set("key", "")  # makes the file
    return store


@pytest.fixture
def ends(monkeypatch):
    """Short periods. What would end this process is only counted; returns a function that waits for so many ends."""
    monkeypatch.setattr(watchdog, "LOOK", 0.05)
    monkeypatch.setattr(watchdog, "GRACE", 0.3)
    monkeypatch.setattr(watchdog, "WRITE", 1000)  # until the watching process would kill this one
    codes = []
    monkeypatch.setattr(watchdog, "end_at_once", codes.append)

    def wait(n):
        deadline = time.monotonic() + 20
        while len(codes) < n and time.monotonic() < deadline:
            time.sleep(0.01)
        return codes

    return wait


def test_a_run_that_gets_on_is_left_alone(store, ends):
    with Watchdog(store, 0, 1, timeout=0.3):
        for i in range(12):
            watchdog.at(0, i, STEP)
            time.sleep(0.05)
    assert ends(0) == [] and not store.check(["alarm"])
    watchdog.at(0, 99, STEP)  # nothing is watched any more


def test_each_stage_of_the_start_has_the_whole_time(store, ends):
    with Watchdog(store, 0, 1, timeout=0.3):
        for stage in watchdog.STAGES:
            watchdog.at_start(stage)
            time.sleep(0.12)
    assert ends(0) == []


def test_a_loop_that_reports_all_the_time_is_never_found_late(store, ends, monkeypatch):
    """What the watching process reads is never half-written."""
    monkeypatch.setattr(watchdog, "LOOK", 0.0001)
    with Watchdog(store, 0, 1, timeout=60) as dog:
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            for step in range(1000):
                watchdog.at(step, 2**40 - step - 1, REPORT)
            assert dog._place() == (999, 2**40 - 1000, REPORT)
    assert ends(0) == []


def test_the_place_survives_its_way_through_the_shared_memory(store):
    dog = Watchdog(store, 0, 1, timeout=60)
    for place in ((-1, 0, 0), (-1, 6, 0), (0, 0, DATA), (99, 5003, STEP), (10**5, 10**9, REPORT)):
        dog.note(*place)
        assert dog._place() == place


def test_a_watching_process_that_fails_says_so(store, ends, monkeypatch, capfd):
    monkeypatch.setattr(Watchdog, "_look", lambda _: {}["nothing"])
    with Watchdog(store, 3, 4, timeout=60) as dog:
        os.waitid(os.P_PID, dog.watcher, os.WEXITED | os.WNOWAIT)
    assert "warning: nobody watches rank 3 any more: Traceback" in capfd.readouterr().err


def test_ranks_that_are_behind_are_named_by_one_of_those_that_wait(store, ends, capfd):
    dogs = [Watchdog(store, rank, 3, timeout=0.3) for rank in range(2)]
    dogs[0].note(1, 7, STEP)
    dogs[1].note(1, 7, DATA)
    for dog in dogs:
        dog.__enter__()
    assert ends(2) == [1, 1]
    error = capfd.readouterr().err
    assert error.count("did not arrive") == 1
    assert (
        "no step ended within --timeout 0.3 s; rank 1 (epoch 1, step 7, waiting for data), rank 2 (no answer) did not "
        "arrive; all other ranks (epoch 1, step 7, computing) wait for that" in error
    )
    for dog in dogs:
        dog.__exit__(None, None, None)


def test_another_ranks_failure_ends_this_one_where_it_would_hang(store, ends, capfd):
    with pytest.raises(KeyError), Watchdog(store, 1, 3, timeout=60):
        raise KeyError("of rank 1")
    with Watchdog(store, 0, 3, timeout=60):
        assert ends(1) == [1]
    assert "rank 0: rank 1 failed; this process ends too" in capfd.readouterr().err


def test_a_process_that_ends_by_itself_is_not_ended(store, ends):
    with pytest.raises(KeyError), Watchdog(store, 1, 3, timeout=60):
        raise KeyError
    with Watchdog(store, 2, 3, timeout=60):
        time.sleep(0.2)  # it has seen the alarm and waits for an orderly end
    time.sleep(watchdog.GRACE)
    assert ends(0) == []


def test_a_dead_process_beside_it_ends_this_one_and_tells_other_nodes(store, ends):
    lost = multiprocessing.RawValue("b", 0)
    with Watchdog(store, 0, 3, timeout=60, lost=lost) as dog:
        os.kill(dog.watcher, signal.SIGTERM)  # as a scheduler signals every process of a job
        lost.value = 1
        assert ends(1) == [1]
    assert store.get("alarm") == b"another process on the node of rank 0 died"


class Store:
    """One whose keeper is gone or, if `frozen`, never answers."""

    def __init__(self, frozen):
        self.frozen = frozen

    def clone(self):
        return self

    def check(self, *_):
        if self.frozen:
            threading.Event().wait(30)
        raise RuntimeError("connection reset")

    add = check


def test_without_its_store_a_process_ends(ends, capfd):
    with Watchdog(Store(frozen=False), 1, 3, timeout=60):
        assert ends(1) == [1]
    assert (
        "the process that hosts the rendezvous store (rank 0, or the agent of torchrun) has ended"
        in capfd.readouterr().err
    )


def test_a_store_that_does_not_answer_is_named_only_where_the_run_hangs(ends, capfd):
    with Watchdog(Store(frozen=True), 1, 3, timeout=60):
        time.sleep(2 * watchdog.GRACE)
    assert ends(0) == []
    with Watchdog(Store(frozen=True), 1, 3, timeout=0.1):
        assert ends(1) == [1]
    assert (
        "--timeout 0.1 s; the process that hosts the rendezvous store (rank 0, or the agent of torchrun) does not"
        in (capfd.readouterr().err)
    )
    with pytest.raises(KeyError), Watchdog(Store(frozen=True), 1, 3, timeout=60):
        raise KeyError  # which is not held up by telling the others


def alone(place):
    with Watchdog(dist.FileStore(place, 1), 0, 1, 600):
        print(1, flush=True)
        time.sleep(600)


def test_the_watching_process_ends_with_a_killed_one(tmp_path):
    program = Program(alone, str(tmp_path / "s"))
    assert program.stdout.readline() == "1\n"
    os.kill(program.pid, signal.SIGKILL)
    code, *_ = program.finish(20)  # returns when no process holds the pipes any more
    assert code == -signal.SIGKILL


def holds_the_lock(device, step):
    """One rank never gets on, in a call that holds Python's global lock; which one has come further is given."""
    watchdog.at(0, step if dist.get_rank() == 1 else 5, STEP)
    if dist.get_rank() == 1:
        re.match(r"(a+)+$", 40 * "a" + "b")
    time.sleep(1000)


def launched(step):
    with quick_launches():
        start_processes(holds_the_lock, Launch("spawn", local=2, backend="gloo"), step, timeout=2)


@pytest.mark.parametrize(
    "step, blamed",
    [
        pytest.param(
            4,
            "rank 1 (epoch 0, step 4, computing) did not arrive; all other ranks (epoch 0, step 5, computing) wait",
            marks=pytest.mark.slow,
        ),
        (6, "rank 0 (epoch 0, step 5, computing) did not arrive; all other ranks (epoch 0, step 6, computing) wait"),
    ],
)
def test_a_rank_that_holds_pythons_lock_answers_and_ends(step, blamed):
    code, _, stderr = Program(launched, step).finish()
    assert code == 1 and blamed in stderr


FREE = False, False  # neither of two ranks is paused


@pytest.mark.parametrize(
    "places, paused, said",
    [
        ([(0, 3, STEP), (0, 2, STEP)], FREE, "s; rank 1 (epoch 0, step 2, computing) did not arrive"),
        ([(0, 3, STEP), (-1, 2, 0)], FREE, "s; rank 1 (at the start, building the model) did not arrive"),
        (
            [(0, 3, DATA)],
            FREE,
            "rank 1 (no answer) did not arrive; all other ranks (epoch 0, step 3, waiting for data) wait",
        ),
        (
            [(2, 3, STEP), (2, 3, STEP)],
            FREE,
            "all ranks are at the same point (epoch 2, step 3, computing), so the loading of data, a device or",
        ),
        (
            [(2, 3, STEP), (2, 3, STEP)],
            (True, False),
            "s; rank 0 (epoch 2, step 3, computing, paused by SIGSTOP) did not arrive; all other ranks (epoch 2",
        ),
        ([(-1, 0, 0), (-1, 0, 0)], FREE, "all ranks are at the same point (at the start, joining the others), so"),
    ],
)
def test_verdicts(places, paused, said):
    answers = dict(enumerate(zip(places, paused, strict=False)))
    assert said in verdict(answers, 2, 600)


def test_a_paused_process_is_noticed():
    program = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert not watchdog.is_paused(program.pid)
    program.send_signal(signal.SIGSTOP)
    deadline = time.monotonic() + 20
    while not watchdog.is_paused(program.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert watchdog.is_paused(program.pid) or sys.platform != "linux"
    program.kill()
    program.wait()
