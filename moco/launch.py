"""From a command line to processes: torchrun's, our own on one node or several as MoCo starts them, or just this one.

Everything that can be refused is refused in `plan_launch`, before a process is started.
"""

import os
import signal
import sys
import tempfile
import traceback
from dataclasses import dataclass
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


class LaunchError(ValueError):
    """Flags that contradict each other or the machine; the message says which and the way out."""


@dataclass(frozen=True)
class Launch:
    """How the processes of a run come to be.

    mode: "alone" (this process, no process group), "spawn" (we start them), "torchrun" (it has started this one).
    nodes, node: how many nodes, and which is this one. local: processes on this node.
    backend, url: of the process group; url None is a free place on this node. gpu: the one device to use, or None.
    has_rank_0: whether this process is global rank 0 or is about to start it.
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
    if args.gpu is not None and args.gpu >= gpus:
        way_out = f"give one of 0 to {gpus - 1}" if gpus else "leave the flag out to run on the CPU"
        raise LaunchError(f"--gpu {args.gpu}: the GPUs visible here number {gpus}; {way_out}")
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
        raise LaunchError("--gpu picks one device, --multiprocessing-distributed and --nproc use many; leave one out")
    if not spawn and args.world_size == 1:
        if args.dist_url is not None:
            raise LaunchError("--dist-url needs --multiprocessing-distributed, --nproc or --world-size beside it")
        return Launch("alone", gpu=args.gpu)
    local = (args.nproc or gpus or 1) if spawn else 1
    if gpus and local > gpus:
        raise LaunchError(f"--nproc {local}: the GPUs visible here number {gpus}; give {gpus} at most")
    _check_url(args.dist_url, env)
    return Launch(
        "spawn", args.world_size, args.rank, local, backend, args.dist_url, args.gpu, has_rank_0=args.rank == 0
    )


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
        raise LaunchError(f"{flag} and torchrun exclude each other; leave it out, torchrun says where this runs")
    local = int(env["LOCAL_WORLD_SIZE"])
    if gpus and local > gpus:
        raise LaunchError(f"torchrun started {local} processes on {gpus} GPUs; give it --nproc-per-node {gpus}")
    nodes, rest = divmod(int(env["WORLD_SIZE"]), local)
    if rest:
        raise LaunchError(
            f"{env['WORLD_SIZE']} processes in all and {local} here; torchrun's nodes must run equally many"
        )
    rank = int(env["RANK"])
    return Launch("torchrun", nodes, rank // local, local, backend, "env://", has_rank_0=rank == 0)


def _check_url(url, env):
    if url == "env://" and not env.keys() >= {"MASTER_ADDR", "MASTER_PORT"}:
        raise LaunchError("--dist-url env:// needs MASTER_ADDR and MASTER_PORT in the environment")
    if url is None or url == "env://" or url.startswith("file:///"):
        return
    try:
        parts = urlsplit(url)
        valid = parts.scheme == "tcp" and parts.hostname and parts.port
    except ValueError:
        valid = False
    if not valid:
        raise LaunchError(f"--dist-url {url!r} is no tcp://HOST:PORT, file:///PATH or env://")


def cores():
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory():
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def run(worker, launch, *args):
    """Calls `worker(device, *args)` in every process of this node and waits for all of them.

    If one dies the others are ended. Then this process ends too, with exit code 1; the traceback has been printed.
    """
    if launch.mode == "alone":
        worker(_device(launch.gpu or 0), *args)
    elif launch.mode == "torchrun":
        _join_group(int(os.environ["LOCAL_RANK"]), worker, launch, launch.url, args)
    else:
        with tempfile.TemporaryDirectory() as folder:
            url = launch.url or f"file://{folder}/rendezvous"
            try:
                mp.spawn(_join_group, (worker, launch, url, args), nprocs=launch.local)
            except mp.ProcessExitedException as error:
                sys.exit(f"{error}; the other processes of this node were ended")
            except mp.ProcessRaisedException:
                sys.exit(1)


def _device(index):
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _join_group(local_rank, worker, launch, url, args):
    if launch.mode == "spawn":
        # The launcher's death is signalled by SIGINT, which a shell's background job would have us ignore.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    device = _device(local_rank if launch.gpu is None else launch.gpu)
    rank = launch.node * launch.local + local_rank
    where = {}  # torchrun's environment says
    if launch.mode == "spawn":
        where = {"rank": rank, "world_size": launch.world}
        if device.type == "cpu":
            # Processes on one machine share its cores; torchrun sees to this by OMP_NUM_THREADS.
            torch.set_num_threads(max(1, cores() // launch.local))
    pin = {"device_id": device} if launch.backend == "nccl" else {}
    try:
        dist.init_process_group(launch.backend, init_method=url, **where, **pin)
        worker(device, *args)
    except Exception:
        # Said before this process leaves the group, which makes its peers fail with a lost connection.
        if launch.mode == "spawn":
            print(f"rank {rank}: {traceback.format_exc()}", file=sys.stderr, flush=True)
        raise
    dist.destroy_process_group()
