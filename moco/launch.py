"""From a command line to processes: torchrun's, our own on one node or several as MoCo starts them, or just this one.

Everything that can be refused is refused in `plan_launch`, before a process is started.
"""

import os
import tempfile
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


class LaunchError(ValueError):
    """Flags that contradict each other or the machine; the message says which and the way out."""


@dataclass(frozen=True)
class Launch:
    """Where the processes of a run are.

    nodes, node: how many nodes, and which is this one. local: processes on this node. init_method: None without a
    process group, "env://" where torchrun started this process. gpu: the one device of a lone process, or None.
    """

    nodes: int
    node: int
    local: int
    init_method: str | None
    backend: str | None
    gpu: int | None = None
    torchrun: bool = False

    @property
    def world(self):
        """Processes of all nodes."""
        return self.nodes * self.local


def plan_launch(args, env=os.environ):
    """Decides how to launch, from the parsed flags and the environment.

    Raises:
        LaunchError: contradictory flags, or devices that this machine does not have.
    """
    gpus = torch.cuda.device_count()
    backend = args.dist_backend or ("nccl" if gpus else "gloo")
    if backend == "nccl" and not gpus:
        raise LaunchError("--dist-backend nccl needs a GPU and none is visible; leave the flag out, or give gloo")
    if args.gpu is not None and not 0 <= args.gpu < gpus:
        raise LaunchError(
            f"--gpu {args.gpu}: {gpus} GPUs are visible; give one of them by its number, or leave it out"
        )

    if {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"} <= env.keys():
        given = {
            "--multiprocessing-distributed": args.multiprocessing_distributed,
            "--world-size": args.world_size != 1,
            "--rank": args.rank != 0,
            "--nproc": args.nproc is not None,
            "--dist-url": args.dist_url is not None,
            "--gpu": args.gpu is not None,
        }
        for flag in (flag for flag, present in given.items() if present):
            raise LaunchError(f"{flag} and torchrun exclude each other; leave it out, torchrun says where this runs")
        local = int(env["LOCAL_WORLD_SIZE"])
        if gpus and local > gpus:
            raise LaunchError(f"torchrun started {local} processes on {gpus} GPUs; give --nproc-per-node {gpus}")
        nodes, rest = divmod(int(env["WORLD_SIZE"]), local)
        if rest:
            raise LaunchError("torchrun's nodes must all run the same number of processes")
        return Launch("torchrun", nodes, int(env["RANK"]) // local, local, backend)

    if not 0 <= args.rank < args.world_size:
        raise LaunchError(f"--rank {args.rank} is out of range; with --world-size {args.world_size} it counts from 0")
    if args.world_size > 1 and args.dist_url is None:
        raise LaunchError(f"--world-size {args.world_size} needs --dist-url, the same on every node: tcp://HOST:PORT")
    spawn = args.multiprocessing_distributed or args.nproc is not None
    if spawn and args.gpu is not None:
        raise LaunchError("--gpu picks one device, --multiprocessing-distributed and --nproc use many; leave one out")
    if not spawn and args.world_size == 1:
        if args.dist_url is not None:
            raise LaunchError("--dist-url needs --multiprocessing-distributed, --nproc or --world-size beside it")
        return Launch("alone", gpu=args.gpu)
    local = (args.nproc or gpus or 1) if spawn else 1
    if gpus and local > gpus:
        raise LaunchError(f"--nproc {local} processes on {gpus} GPUs; give {gpus} at most")
    return Launch("spawn", args.world_size, args.rank, local, backend, args.dist_url, args.gpu)


def run(worker, launch, *args):
    """Calls `worker(device, *args)` in every process of this node and waits for all of them.

    If one dies the others are ended and its traceback is raised here.
    """
    if launch.mode == "alone":
        worker(_device(launch.gpu or 0), *args)
    elif launch.mode == "torchrun":
        _join_group(int(os.environ["LOCAL_RANK"]), worker, launch, "env://", args)
    else:
        with tempfile.TemporaryDirectory() as folder:
            url = launch.url or f"file://{folder}/rendezvous"
            mp.spawn(_join_group, (worker, launch, url, args), nprocs=launch.local)


def _device(index):
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _join_group(local_rank, worker, launch, url, args):
    device = _device(local_rank if launch.gpu is None else launch.gpu)
    if device.type == "cpu" and launch.mode == "spawn":
        # Processes on one machine share its cores; torchrun sees to this by OMP_NUM_THREADS.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // launch.local))
    where = {"rank": launch.node * launch.local + local_rank, "world_size": launch.world}
    if launch.mode == "torchrun":
        where = {}  # the environment says
    pin = {"device_id": device} if launch.backend == "nccl" else {}
    dist.init_process_group(launch.backend, init_method=url, **where, **pin)
    try:
        worker(device, *args)
    finally:
        dist.destroy_process_group()
