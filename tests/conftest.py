"""Shared by the tests: groups of real processes, a tiny fake ImageNet, and the marker `gpu`."""

import multiprocessing
import os
import tempfile

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from moco import options
from moco.engine.launch import Launch
from moco.tools import fake_imagenet


def _one_rank(rank, function, world, folder, args):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    torch.save(function(*args), f"{folder}/{rank}.pt")
    dist.barrier()  # one that leaves while others still join makes them fail
    dist.destroy_process_group()


def run_ranks(function, world, *args):
    """Runs a module-level `function(*args)` on `world` gloo processes; returns what each returned, by rank."""
    multiprocessing.set_forkserver_preload(
        ["torch.distributed", "torchvision", "moco.builder"]
    )  # imported once for all
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_one_rank, (function, world, folder, args), nprocs=world, start_method="forkserver")
        return [torch.load(os.path.join(folder, f"{r}.pt"), weights_only=False) for r in range(world)]


def script_in_rank(script, words):
    """Runs `main_moco` or `main_lincls` as one of the processes of `run_ranks`, which may have patched it before."""
    world, rank = dist.get_world_size(), dist.get_rank()
    script.launch.run = lambda worker, launch, *args, timeout: worker(torch.device("cpu"), *args)
    options.plan_launch = lambda args: Launch("spawn", local=world, backend="gloo", has_rank_0=rank == 0)
    script.main(words if "-j" in words else [*words, "-j", "0"])


@pytest.fixture(autouse=True)
def _single_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Keeps listings of the tests' folders out of the user's cache, in the programs that they start too."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory):
    """A tiny fake ImageNet: 96 training and 36 validation images of 12 classes, about 40 px."""
    folder = tmp_path_factory.mktemp("imagenet")
    fake_imagenet.make(folder, train=8, val=3, size=40)
    return folder


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
