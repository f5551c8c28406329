"""Processes on one node: signals are passed on, and if one dies, all end."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from moco.engine.preemption import EXIT_CODE

PROGRAM = """
    import os, signal, sys, time
    import torch
    import torch.distributed as dist
    from moco.engine import watchdog
    from moco.engine.launch_processes import start_processes
    from moco.engine.launch_plan import Launch

    watchdog.LOOK, watchdog.GRACE = 0.2, 0.5

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

    if __name__ == "__main__":
        start_processes(worker, Launch("spawn", local=3, backend="gloo"), sys.argv[1])
"""


@pytest.mark.parametrize(
    "env, threads",
    [({}, "3"), pytest.param({"TORCHINDUCTOR_COMPILE_THREADS": "5"}, "5", marks=pytest.mark.slow)],
)
def test_processes_that_compile_share_the_cores(env, threads):
    lines = "import main_moco; from moco.engine import launch_processes as l; l.cores = lambda: 12; l.share_cores(4)"
    lines += "; import torch._inductor.config as c; print(c.compile_threads)"
    env = {**os.environ, "PYTHONPATH": os.getcwd(), **env}
    assert subprocess.check_output([sys.executable, "-c", lines], env=env, text=True).strip() == threads


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


def test_when_the_launcher_is_killed_all_end(tmp_path):
    """Also where SIGINT is ignored, as for a job that a shell script put into the background."""
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    program = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py"), "live"],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert program.stdout.readline() == "together\n"
    program.kill()
    program.wait()
    assert gone(program.pid)


def test_a_signal_to_the_launcher_is_passed_on(tmp_path):
    """To processes that have nothing to save yet, and end by it."""
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    program = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py"), "live"],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert program.stdout.readline() == "together\n"
    program.send_signal(signal.SIGINT)
    assert program.wait(30) == EXIT_CODE
    assert gone(program.pid)


@pytest.mark.parametrize(
    "how, said",
    [("raise", "rank 1: Traceback"), ("kill", "rank 1 was ended by SIGKILL"), ("hang", "rank 0 was ended by SIGKILL")],
)
def test_when_one_dies_all_end(tmp_path, how, said):
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    command = [sys.executable, str(tmp_path / "program.py"), how]
    program = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)
    _, stderr = program.communicate(timeout=60)
    assert program.returncode == 1
    assert said in stderr
    if how == "raise":
        assert "the second one fails" in stderr
    assert gone(program.pid)
