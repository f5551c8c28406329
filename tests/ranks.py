"""Runs a function, or a script, in a group of real processes over gloo."""

import contextlib
import importlib
import io
import multiprocessing
import os
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from moco.engine import startup_checks, training_run
from moco.engine.launch_plan import Launch
from tests.tiny_net import TinyNet

PRELOAD = ["torch.distributed", "torchvision", "main_moco", "main_lincls", "tests.tiny_net"]  # imported only once


def _one_rank(rank, function, world, folder, args):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    torch.save(function(*args), f"{folder}/{rank}.pt")
    dist.barrier()  # a process that leaves while others still join would make them fail
    dist.destroy_process_group()


def run_ranks(function, world, *args):
    """Runs a module-level `function(*args)` in `world` processes; returns a list of what each returned."""
    multiprocessing.set_forkserver_preload(PRELOAD)
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_one_rank, (function, world, folder, args), nprocs=world, start_method="forkserver")
        return [torch.load(os.path.join(folder, f"{r}.pt"), weights_only=False) for r in range(world)]


def script_in_rank(script, words, tiny=False):
    """Runs `main_moco` or `main_lincls` as one of the processes of `run_ranks`, which may have patched it before.

    Args:
        words: the command line. tiny: whether to train a TinyNet, whatever --arch says.

    Returns:
        What the script printed.
    """
    if tiny:
        script.models.get_model = lambda arch, num_classes=1000: TinyNet(num_classes)
    world, rank = dist.get_world_size(), dist.get_rank()
    training_run.start_processes = lambda worker, launch, *args, timeout: worker(torch.device("cpu"), *args)
    startup_checks.plan_launch = lambda args: Launch("spawn", local=world, backend="gloo", has_rank_0=rank == 0)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        script.main(words if {"-j", "--workers"} & set(words) else [*words, "-j", "0"])
    return out.getvalue()


def run_script(name, world, words, tiny=False):
    """Runs the script `name` in `world` processes; returns what rank 0 printed."""
    return run_ranks(_script, world, name, words, tiny)[0]


def _script(name, words, tiny):
    return script_in_rank(importlib.import_module(name), words, tiny)
