"""Decides from the flags and the environment how many processes to start, where, and how they find each other."""

import os
from dataclasses import dataclass
from urllib.parse import urlsplit

import torch


class LaunchError(ValueError):
    """Flags that contradict each other or do not fit this machine; the message says which, and what would work."""


@dataclass(frozen=True)
class Launch:
    """How the processes of a run are started.

    Attributes:
        mode: "alone" (this process, without a process group), "spawn" (this process starts them), or "torchrun" (it
            has started this process).
        nodes: number of nodes. node: 0-based number of this node. local: processes on this node.
        backend: backend of the process group. url: address of the rendezvous; None means a temporary file on this
            node.
        gpu: the one device to use, or None.
        has_rank_0: whether this process is global rank 0 or is going to start it.
    """

    mode: str
    nodes: int = 1
    node: int = 0
    local: int = 1
    backend: str | None = None
    url: str | None = None
    gpu: int | None = None
    has_rank_0: bool = True

    @property
    def world(self):
        """Number of processes on all nodes."""
        return self.nodes * self.local


def plan_launch(args, env=os.environ):
    """Decides how to launch, from the parsed flags `args` and the environment `env`; returns a Launch.

    Raises:
        LaunchError: the flags contradict each other, or this machine lacks the devices.
    """
    gpus = torch.cuda.device_count()
    backend = args.dist_backend or ("nccl" if gpus else "gloo")
    if backend == "nccl" and not gpus:
        raise LaunchError("--dist-backend nccl needs a GPU and none is visible; leave the flag out, or give gloo")
    if args.gpu is not None and args.gpu >= gpus:
        way_out = f"give one of 0 to {gpus - 1}" if gpus else "leave the flag out to run on the CPU"
        raise LaunchError(f"--gpu {args.gpu}: the number of visible GPUs is {gpus}; {way_out}")
    if env.keys() >= {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"}:
        return _plan_torchrun(args, env, backend, gpus)

    if args.rank >= args.world_size:
        raise LaunchError(
            f"--rank {args.rank} is out of range: with --world-size {args.world_size} (nodes) it is 0 to "
            f"{args.world_size - 1}"
        )
    if args.world_size > 1 and args.dist_url is None:
        raise LaunchError(
            f"--world-size {args.world_size} (nodes) needs --dist-url tcp://HOST:PORT, the same on every node"
        )
    spawn = args.multiprocessing_distributed or args.nproc is not None
    if spawn and args.gpu is not None:
        raise LaunchError(
            "--gpu can't be combined with --multiprocessing-distributed or --nproc; give only one of them"
        )
    if not spawn and args.world_size == 1:
        if args.dist_url is not None:
            raise LaunchError("--dist-url needs --multiprocessing-distributed, --nproc or --world-size beside it")
        return Launch("alone", gpu=args.gpu)
    local = (args.nproc or gpus or 1) if spawn else 1
    if gpus and local > gpus:
        raise LaunchError(f"--nproc {local}: the number of visible GPUs is {gpus}; give {gpus} at most")
    url = _check_url(args.dist_url, env)
    return Launch("spawn", args.world_size, args.rank, local, backend, url, args.gpu, has_rank_0=args.rank == 0)


def _plan_torchrun(args, env, backend, gpus):
    given = {
        "--multiprocessing-distributed": args.multiprocessing_distributed,
        "--world-size": args.world_size != 1,
        "--rank": args.rank != 0,
        "--nproc": args.nproc is not None,
        "--dist-url": args.dist_url is not None,
        "--gpu": args.gpu is not None,
    }
    for flag in (flag for flag, present in given.items() if present):
        raise LaunchError(f"{flag} and torchrun exclude each other; leave the flag out, torchrun decides this")
    _check_torchrun(env)
    rank, world, local = (int(env[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if gpus and local > gpus:
        raise LaunchError(f"torchrun started {local} processes on {gpus} GPUs; give it --nproc-per-node {gpus}")
    nodes, rest = divmod(world, local)
    if rest:
        raise LaunchError(
            f"torchrun started {world} processes in all, but {local} on this node; every node must run the same "
            "number of processes"
        )
    return Launch("torchrun", nodes, rank // local, local, backend, "env://", has_rank_0=rank == 0)


def _check_torchrun(env):
    """Checks the variables that torchrun sets, since something else may have set them."""
    for name, low, below in (
        ("WORLD_SIZE", 1, None),
        ("LOCAL_WORLD_SIZE", 1, None),
        ("RANK", 0, "WORLD_SIZE"),
        ("LOCAL_RANK", 0, "LOCAL_WORLD_SIZE"),
        ("MASTER_PORT", 1, None),
    ):
        value = env.get(name, "")
        high = 65535 if name == "MASTER_PORT" else int(env[below]) - 1 if below else 10**6
        if not (value.isdecimal() and low <= int(value) <= high):
            raise LaunchError(
                f"the environment has {name}={value}, but torchrun sets an integer from {low} to {high}; unset RANK, "
                "WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE if torchrun does not start this program"
            )
    if not env.get("MASTER_ADDR"):
        raise LaunchError("the environment has no MASTER_ADDR, which torchrun sets; start this program by torchrun")


def _check_url(url, env):
    """Checks --dist-url, and replaces env:// by the address that the environment holds."""
    if url == "env://":
        if not env.keys() >= {"MASTER_ADDR", "MASTER_PORT"}:
            raise LaunchError("--dist-url env:// needs MASTER_ADDR and MASTER_PORT in the environment")
        host = env["MASTER_ADDR"]
        url = f"tcp://{f'[{host}]' if ':' in host else host}:{env['MASTER_PORT']}"
    if url is None:
        return url
    if url.startswith("file:///"):
        if not os.path.isdir(os.path.dirname(url.removeprefix("file://"))):
            raise LaunchError(f"--dist-url {url!r} must name a file in an existing folder that all nodes share")
        return url
    try:
        parts = urlsplit(url)
        valid = parts.scheme == "tcp" and parts.hostname and parts.port
    except ValueError:
        valid = False
    if not valid:
        raise LaunchError(f"--dist-url {url!r} is no tcp://HOST:PORT, file:///PATH or env://")
    return url


def cores():
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory():
    """Bytes of this machine's main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
