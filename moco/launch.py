"""From a command line to processes: torchrun's, our own on one node or several as MoCo starts them, or just this one.

Everything that can be refused is refused in `plan_launch`, before a process is started.
"""

import contextlib
import math
import multiprocessing.connection
import multiprocessing.util
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from moco.console import say
from moco.interruption import EXIT_CODE, SIGNALS, Stopped
from moco.meeting import MeetingError, meet
from moco.watchdog import WRITE, Watchdog

MEETING = 600  # seconds
# Seconds for the other processes of a node to end by themselves when one did: rank 0 may be writing a checkpoint.
PATIENCE = WRITE + 30.0


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
    url = _check_url(args, env)
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


def _check_url(args, env):
    """--dist-url, with what env:// stands for put in its place."""
    url = args.dist_url
    if url == "env://":
        if not env.keys() >= {"MASTER_ADDR", "MASTER_PORT"}:
            raise LaunchError("--dist-url env:// needs MASTER_ADDR and MASTER_PORT in the environment")
        host = env["MASTER_ADDR"]
        url = f"tcp://{f'[{host}]' if ':' in host else host}:{env['MASTER_PORT']}"
    if url is None or url.startswith("file:///"):
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
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory():
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def run(worker, launch, *args, timeout=None):
    """Calls `worker(device, *args)` in every process of this node and waits for all of them.

    If one dies the others are ended, and this process ends with exit code 1. Signals to stop are passed on.

    Args:
        timeout: seconds in which every process must arrive and then call `watchdog.at` again and again; None for a
            worker that does not.
    """
    if launch.mode == "alone":
        worker(_device(launch.gpu or 0), *args)
    elif launch.mode == "torchrun":
        _join_group(int(os.environ["LOCAL_RANK"]), worker, launch, timeout, None, None, None, args)
    else:
        # Within the folder that the data workers inherit for their sockets, so that nothing outlives a killed one.
        with tempfile.TemporaryDirectory(dir=multiprocessing.util.get_temp_dir()) as folder, _noted() as signals:
            lost = mp.get_context("spawn").RawValue("b", 0)  # no lock, which a dead process might hold
            arguments = (worker, launch, timeout, folder, lost, os.getpid(), args)
            processes = mp.start_processes(_join_group, arguments, nprocs=launch.local, join=False).processes
            if code := _supervise(processes, signals, lost, launch.node * launch.local):
                sys.exit(code)


@contextlib.contextmanager
def _noted():
    """Only notes the signals to stop: a list of their numbers, which grows."""
    received = []
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _supervise(processes, received, lost, first_rank):
    """Waits for the processes that this one has started and passes signals on; returns the exit code."""
    passed_on, first, deadline = 0, None, math.inf
    while running := [process for process in processes if process.exitcode is None]:
        multiprocessing.connection.wait([process.sentinel for process in running], timeout=0.2)
        for number in received[passed_on:]:
            for process in running:
                os.kill(process.pid, number)  # of a child that no one has waited for, so it can't be another's
            passed_on += 1
        if first is None and (first := _first_to_fail(processes)) is not None:
            deadline = time.monotonic() + PATIENCE
            lost.value = processes[first].exitcode != EXIT_CODE
        if time.monotonic() > deadline:
            for process in running:
                process.kill()
    if first is None:
        return 0
    code = processes[first].exitcode
    if code == EXIT_CODE or -code in SIGNALS:  # the latter before there was anything to save
        return EXIT_CODE
    if code < 0:
        name = signal.Signals(-code).name
        say(f"rank {first_rank + first} was ended by {name}; the other processes of this node were ended", True)
    return 1


def _first_to_fail(processes):
    """The index of one that failed, by a signal if there is such a one, since the others' errors follow from that."""
    failed = [(process.exitcode > 0, i) for i, process in enumerate(processes) if process.exitcode]
    return min(failed)[1] if failed else None


def _device(index):
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _join_group(local_rank, worker, launch, timeout, folder, lost, launcher, args):
    if launch.mode == "spawn":
        # The launcher's death is signalled by SIGINT, which a shell's background job would have us ignore.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    device = _device(local_rank if launch.gpu is None else launch.gpu)
    rank, world = launch.node * launch.local + local_rank, launch.world
    if launch.mode == "spawn" and device.type == "cpu":
        # Processes on one machine share its cores; torchrun sees to this by OMP_NUM_THREADS.
        torch.set_num_threads(max(1, cores() // launch.local))
    url = launch.url or f"file://{folder}/rendezvous"
    pin = {"device_id": device} if launch.backend == "nccl" else {}
    try:
        store = meet(url, rank, world, timeout or MEETING)
        later = timedelta(seconds=(timeout or MEETING) + 60)  # torch's own time-out, which names nobody
        group = dist.PrefixStore("group", store)
        dist.init_process_group(launch.backend, store=group, rank=rank, world_size=world, timeout=later, **pin)
        with Watchdog(dist.PrefixStore("watchdog", store), rank, world, timeout or math.inf, lost):
            worker(device, *args)
    except MeetingError as error:
        say(f"rank {rank}: {error}", True)
        sys.exit(1)
    except Exception:
        if launch.mode != "spawn":
            raise
        # Said before this process leaves the group, which makes its peers fail with a lost connection.
        say(f"rank {rank}: {traceback.format_exc()}", True)
        sys.exit(1)
    except Stopped:  # all ranks leave together
        dist.destroy_process_group()
        raise
    finally:
        if launch.mode == "spawn" and os.getppid() != launcher:  # which can't tidy up any more
            shutil.rmtree(os.path.dirname(folder), ignore_errors=True)
    dist.destroy_process_group()
