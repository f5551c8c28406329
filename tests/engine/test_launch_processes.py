"""Processes on one node: signals are passed on, and if one dies, all end."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist

from moco.engine import launch_processes
from moco.engine.launch_plan import Launch
from moco.engine.launch_processes import start_processes
from moco.engine.preemption import EXIT_CODE
from tests.ranks import Program, quick_launches


def worker(device, how):
    dist.barrier()
    if how == "live":
        if dist.get_rank() == 0:
            print("together", flush=True)
        time.sleep(1000)
    if how == "hang":
        if dist.get_rank() == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1000)
    if dist.get_rank() == 1:
        if how == "raise":
            raise RuntimeError("the second one fails")
        os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(torch.zeros(1))
    time.sleep(1000)


def launched(how):
    with quick_launches():
        start_processes(worker, Launch("spawn", local=3, backend="gloo"), how)


def launched_in_the_background():
    """With processes that import everything again, and SIGINT ignored, as for a background job of a shell script."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    start_processes(worker, Launch("spawn", local=2, backend="gloo"), "live")


def print_compile_threads():
    launch_processes.cores = lambda: 12
    launch_processes.share_cores(4)
    import torch._inductor.config as compiler

    print(compiler.compile_threads)


def test_processes_that_compile_share_the_cores():
    assert Program(print_compile_threads).finish()[:2] == (0, "3\n")


@pytest.mark.slow
def test_a_user_may_choose_the_threads_of_the_compiler():
    lines = "from tests.engine.test_launch_processes import print_compile_threads as p; p()"
    env = {**os.environ, "PYTHONPATH": os.getcwd(), "TORCHINDUCTOR_COMPILE_THREADS": "5"}
    assert subprocess.check_output([sys.executable, "-c", lines], env=env, text=True) == "5\n"


def gone(group, seconds=30):
    """Whether nothing is left of a process group by then."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_when_the_launcher_is_killed_all_end():
    """Also where SIGINT is ignored, as for a job that a shell script put into the background."""
    program = Program(launched_in_the_background)
    assert program.stdout.readline() == "together\n"
    os.kill(program.pid, signal.SIGKILL)
    program.wait()
    assert gone(program.pid)


def test_a_signal_to_the_launcher_is_passed_on():
    """To processes that have nothing to save yet, and end by it."""
    program = Program(launched, "live")
    assert program.stdout.readline() == "together\n"
    os.kill(program.pid, signal.SIGINT)
    assert program.wait(30) == EXIT_CODE
    assert gone(program.pid)


@pytest.mark.parametrize(
    "how, said",
    [("raise", "rank 1: Traceback"), ("kill", "rank 1 was ended by SIGKILL"), ("hang", "rank 0 was ended by SIGKILL")],
)
def test_when_one_dies_all_end(how, said):
    program = Program(launched, how)
    code, _, stderr = program.finish()
    assert code == 1
    assert said in stderr
    if how == "raise":
        assert "the second one fails" in stderr
    assert gone(program.pid)
