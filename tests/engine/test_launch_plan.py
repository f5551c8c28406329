"""How flags and environment become a plan of processes, and what is refused."""

import os
from types import SimpleNamespace

import pytest
import torch

from moco.engine.launch_plan import Launch, LaunchError, cores, plan_launch

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
TORCHRUN |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


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


@pytest.mark.parametrize(
    "name, value, rule",
    [
        *(("RANK", value, "from 0 to 7") for value in ("8", "-1", "x", "")),
        *(("WORLD_SIZE", value, "from 1 to 1000000") for value in ("0", "1.5")),
        ("LOCAL_RANK", "4", "from 0 to 3"),
        ("LOCAL_WORLD_SIZE", "0", "from 1 to 1000000"),
        *(("MASTER_PORT", value, "from 1 to 65535") for value in ("abc", "-5", "99999")),
    ],
)
def test_an_environment_that_torchrun_did_not_make_is_refused(name, value, rule, gpus):
    with pytest.raises(LaunchError, match=f"has {name}={value}, but torchrun sets an integer {rule}; unset RANK"):
        plan({**TORCHRUN, name: value})
    with pytest.raises(LaunchError, match="no MASTER_ADDR"):
        plan({**TORCHRUN, "MASTER_ADDR": ""})
