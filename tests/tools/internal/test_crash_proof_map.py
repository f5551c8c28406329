import multiprocessing
import os
import signal
import time

import pytest

from moco.data.worker_processes import STOP_SIGNALS
from moco.tools.internal.crash_proof_map import CHUNK, Crash, crash_proof_map

ROOM = 2**30


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("n", [0, 1, CHUNK, 5 * CHUNK + 3])
def test_results_come_in_order(n, processes):
    def square(i):
        time.sleep(0.01 if i == 0 else 0)  # so that the others are ahead of the first process
        return i * i

    assert list(crash_proof_map(square, n, processes, ROOM)) == [i * i for i in range(n)]
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("fatal", [{0}, {CHUNK - 1}, {3, 4, CHUNK, 2 * CHUNK}])
def test_a_process_that_dies_costs_one_result(fatal):
    def work(i):
        if i in fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return i

    results = list(crash_proof_map(work, 2 * CHUNK + 1, 2, ROOM))
    assert results == [Crash(-signal.SIGKILL) if i in fatal else i for i in range(2 * CHUNK + 1)]


def test_an_exit_code_is_told():
    assert list(crash_proof_map(lambda i: os._exit(7) if i else i, 2, 1, ROOM)) == [0, Crash(7)]


def test_memory_is_limited():
    def allocate(size):
        try:
            return len(bytearray(size << 20))
        except MemoryError:
            return "too much"

    assert list(crash_proof_map(lambda i: allocate((1, 400)[i]), 2, 1, 2**27)) == [2**20, "too much"]


def test_the_processes_ignore_stop_signals_and_end_with_the_caller():
    def signalled(i):
        for number in STOP_SIGNALS:
            os.kill(os.getpid(), number)
        return i

    results = crash_proof_map(signalled, 50 * CHUNK, 2, ROOM)
    assert next(results) == 0 and len(multiprocessing.active_children()) == 2
    results.close()
    assert not multiprocessing.active_children()


def test_no_process_outlives_a_parent_that_is_killed():
    receiver, sender = os.pipe()
    parent = os.fork()
    if parent == 0:
        next(crash_proof_map(lambda i: time.sleep(i and 0.2), 100, 3, ROOM))
        os.kill(os.getpid(), signal.SIGKILL)
    os.close(sender)
    os.waitpid(parent, 0)
    assert os.read(receiver, 1) == b""  # comes when no process has the other end any more
    os.close(receiver)
