"""Shared by the tests: groups of real processes, and small networks."""

import os
import tempfile

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _one_rank(rank, function, world, folder, args):
    torch.set_num_threads(1)
    if world:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    torch.save(function(*args), f"{folder}/{rank}.pt")
    if world:
        dist.destroy_process_group()


def run_ranks(function, world, *args):
    """Runs a module-level `function(*args)` on `world` gloo processes; returns what each returned, by rank."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_one_rank, (function, world, folder, args), nprocs=world)
        return [torch.load(os.path.join(folder, f"{r}.pt"), weights_only=False) for r in range(world)]


@pytest.fixture(autouse=True)
def _single_thread():
    torch.set_num_threads(1)
