"""How flags and environment become processes, and what is refused."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from types import SimpleNamespace

import pytest
import torch

from moco.engine.launch_plan import Launch, LaunchError, cores, plan_launch
from moco.engine.preemption import EXIT_CODE

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}


@pytest.fixture
def gpus(monkeypatch):
    def set_gpus(n):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: n)

    set_gpus(0)
    return set_gpus


def plan(env=None, **flags):
    defaults = {"multiprocessing_distributed": False, "nproc": None, "world_size": 1, "rank": 0}
    defaults |= {"dist_url": None, "dist_backend": None, "gpu": None}
    return plan_launch(SimpleNamespace(**{**defaults, **flags}), env or {})


def test_no_flag_is_one_process(gpus):
    assert plan() == Launch("alone")
    gpus(8)
    assert plan(gpu=3) == Launch("alone", gpu=3)


def test_as_moco_does(gpus):
    url = "tcp://localhost:10001"
    assert plan(multiprocessing_distributed=True, dist_url=url) == Launch("spawn", 1, 0, 1, "gloo", url)
    gpus(8)
    assert plan(multiprocessing_distributed=True, dist_url=url) == Launch("spawn", 1, 0, 8, "nccl", url)
    assert plan(multiprocessing_distributed=True) == Launch("spawn", 1, 0, 8, "nccl", None)
    several = plan(multiprocessing_distributed=True, dist_url=url, world_size=4, rank=2)
    assert several == Launch("spawn", 4, 2, 8, "nccl", url, has_rank_0=False) and several.world == 32
    assert plan(world_size=2, rank=0, dist_url=url, gpu=1) == Launch("spawn", 2, 0, 1, "nccl", url, 1)
    assert plan(nproc=2, dist_backend="gloo") == Launch("spawn", 1, 0, 2, "gloo", None)


def test_torchrun_says_where(gpus):
    assert plan(TORCHRUN) == Launch("torchrun", 2, 1, 4, "gloo", "env://", has_rank_0=False)
    assert plan({**TORCHRUN, "RANK": "0", "LOCAL_RANK": "0"}).has_rank_0
    assert not plan({**TORCHRUN, "RANK": "1"}).has_rank_0


@pytest.mark.parametrize(
    "n_gpus, env, flags, message",
    [
        (0, {}, {"dist_backend": "nccl"}, "nccl needs a GPU"),
        (0, {}, {"gpu": 0}, "--gpu 0: the number of visible GPUs is 0; leave the flag out"),
        (2, {}, {"gpu": 2}, "--gpu 2: .* give one of 0 to 1"),
        (2, {}, {"nproc": 3}, "--nproc 3: .* give 2 at most"),
        (0, {}, {"rank": 1}, "--rank 1 is out of range"),
        (0, {}, {"world_size": 2}, "--world-size 2 .* needs --dist-url"),
        (2, {}, {"gpu": 1, "multiprocessing_distributed": True}, "--gpu can't be combined"),
        (0, {}, {"dist_url": "tcp://localhost:1"}, "--dist-url needs"),
        (0, {}, {"nproc": 2, "dist_url": "localhost:10001"}, "'localhost:10001' is no tcp://HOST:PORT"),
        (0, {}, {"nproc": 2, "dist_url": "tcp://localhost"}, "is no tcp://HOST:PORT"),
        (0, {}, {"nproc": 2, "dist_url": "tcp://localhost:123456"}, "is no tcp://HOST:PORT"),
        (0, {}, {"nproc": 2, "dist_url": "env://"}, "MASTER_ADDR"),
        (0, TORCHRUN, {"nproc": 2}, "--nproc and torchrun exclude"),
        (0, TORCHRUN, {"dist_url": "tcp://localhost:1"}, "--dist-url and torchrun"),
        (0, TORCHRUN, {"multiprocessing_distributed": True}, "--multiprocessing-distributed and torchrun"),
        (2, TORCHRUN, {}, "4 processes on 2 GPUs"),
        (0, {**TORCHRUN, "WORLD_SIZE": "7"}, {}, "the same number of processes"),
    ],
)
def test_contradictions_are_refused(gpus, n_gpus, env, flags, message):
    gpus(n_gpus)
    with pytest.raises(LaunchError, match=message):
        plan(env, **flags)


def test_env_is_put_in_its_place(gpus):
    env = {"MASTER_ADDR": "fe80::1", "MASTER_PORT": "29500"}
    assert plan(env, nproc=2, dist_url="env://").url == "tcp://[fe80::1]:29500"
    assert plan({**env, "MASTER_ADDR": "node"}, nproc=2, dist_url="env://").url == "tcp://node:29500"


def test_cores():
    assert 1 <= cores() <= os.cpu_count()


PROGRAM = """
    import os, signal, sys, time
    import torch
    import torch.distributed as dist
    from moco.engine.launch_processes import start_processes
    from moco.engine.launch_plan import Launch

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
