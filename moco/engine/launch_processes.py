"""Starts the processes of a run on this node, watches over them, and forms their process group."""

import contextlib
import math
import multiprocessing.connection
import multiprocessing.resource_tracker
import multiprocessing.util
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from moco.data.worker_processes import STOP_SIGNALS, stop_signals_held
from moco.distributed import init_process_group
from moco.engine.early_signals import EXIT_CODE, report_stop
from moco.engine.known_causes import ON_EVERY_RANK, is_lost_connection, known_cause
from moco.engine.launch_plan import cores
from moco.engine.preemption import Stopped
from moco.engine.rendezvous import rendezvous
from moco.engine.watchdog import WRITE, Watchdog
from moco.pipe_safe_print import say

RENDEZVOUS = 600  # seconds for all processes to arrive, if the caller gives no time-out
# Seconds between the failure of one process of a node and the killing of the others; while rank 0 is one of them, it
# may need longer to write a checkpoint.
PATIENCE, PATIENCE_WITH_RANK_0 = 20.0, WRITE + 30.0
MOMENT = 5.0  # seconds within which the launcher notices that a process died


def start_processes(worker, plan, *args, timeout=None):
    """Calls `worker(device, *args)` in every process of this node and waits for all of them.

    If one process dies, the others are ended and this process exits with code 1. If the cause is known, one line says
    it. Stop signals are passed on to the processes; if a signal stops the run, this process exits with code 143.

    Args:
        worker: a module-level function. plan: a Launch. args: arguments for `worker`.
        timeout: seconds. Every process must arrive within this time, and later report progress to the watchdog at
            least this often. With None, progress is not checked, and the processes have 600 s to arrive.
    """
    if plan.mode == "alone":
        try:
            worker(_device(plan.gpu or 0), *args)
        except Exception as error:
            if cause := known_cause(error):
                say(f"error: {cause}", True)
                sys.exit(1)
            raise
    elif plan.mode == "torchrun":
        _join_group(int(os.environ["LOCAL_RANK"]), worker, plan, timeout, None, None, None, args)
    else:
        # This folder lies in multiprocessing's temporary folder, which is removed even if a process is killed.
        temporary = tempfile.TemporaryDirectory(dir=multiprocessing.util.get_temp_dir())
        with noted_signals() as signals, temporary as folder:
            lost = mp.get_context("spawn").RawValue("b", 0)  # has no lock that a dead process could hold
            arguments = (worker, plan, timeout, folder, lost, os.getpid(), args)
            multiprocessing.resource_tracker.ensure_running()  # else its start would unblock signals below
            with stop_signals_held():  # each process takes them when it has imported everything
                processes = mp.start_processes(_join_group, arguments, nprocs=plan.local, join=False).processes
            if code := _supervise(processes, signals, lost, plan.node * plan.local):
                sys.exit(code)


@contextlib.contextmanager
def noted_signals():
    """A context in which stop signals are only noted, in the list that it yields."""
    received = []
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in STOP_SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _supervise(processes, received, lost, first_rank):
    """Waits for the processes that this one has started and passes signals on; returns the exit code."""
    passed_on, first, since, running = 0, None, math.inf, processes
    while running:
        multiprocessing.connection.wait([process.sentinel for process in running], timeout=0.2)
        # Updated before the check for failures. Otherwise a failure is missed if all processes end in between.
        running = [process for process in processes if process.exitcode is None]
        for number in received[passed_on:]:
            for process in running:
                os.kill(process.pid, number)  # nobody has waited for this child, so its process id is not reused
            passed_on += 1
        if first is None and (first := _first_to_fail(processes)) is not None:
            since, code = time.monotonic(), processes[first].exitcode
            lost.value = code != EXIT_CODE
            if -code in STOP_SIGNALS:  # it came before the run listened for it, and perhaps only to that process
                received.append(-code)
        writes = first_rank == 0 and processes[0].exitcode is None  # only rank 0 writes checkpoints
        if time.monotonic() - since > (PATIENCE_WITH_RANK_0 if writes else PATIENCE):
            for process in running:
                process.kill()
    if first is None:
        return 0
    if -code in STOP_SIGNALS and processes[0].exitcode != EXIT_CODE:  # otherwise that process has said it
        report_stop(-code)
    if code == EXIT_CODE or -code in STOP_SIGNALS:
        return EXIT_CODE
    if code < 0:
        name = signal.Signals(-code).name
        say(f"rank {first_rank + first} was ended by {name}; the other processes of this node were ended", True)
    return 1


def _first_to_fail(processes):
    """The index of a failed process, or None. A killed process comes first, since it makes the others fail."""
    failed = [(process.exitcode > 0, i) for i, process in enumerate(processes) if process.exitcode]
    return min(failed)[1] if failed else None


def share_cores(processes):
    """Lets each of `processes` on this node compile with its share of the cores; torch would take all for each."""
    name, threads = "TORCHINDUCTOR_COMPILE_THREADS", max(1, cores() // processes)
    if name not in os.environ:
        os.environ[name] = str(threads)  # read when the compiler is imported
        if compiler := sys.modules.get("torch._inductor.config"):  # torchvision has imported it
            compiler.compile_threads = threads


def _device(index):
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _join_group(local_rank, worker, plan, timeout, folder, lost, launcher, args):
    """Runs `worker` as one process of the group."""
    if plan.mode == "spawn":
        # The launcher's death is signalled by SIGINT, which a background job of a shell ignores by default.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    rank, world = plan.node * plan.local + local_rank, plan.world
    share_cores(plan.local)
    url = plan.url or f"file://{folder}/rendezvous"
    try:
        if plan.mode == "spawn" and os.getppid() != launcher:  # it was killed while this process started
            sys.exit(1)
        store = rendezvous(url, rank, world, timeout or RENDEZVOUS)
        with Watchdog(dist.PrefixStore("watchdog", store), rank, world, timeout or math.inf, lost):
            device = _device(local_rank if plan.gpu is None else plan.gpu)
            if plan.mode == "spawn" and device.type == "cpu":
                # Processes on one machine share its cores. torchrun does the same by OMP_NUM_THREADS.
                torch.set_num_threads(max(1, cores() // plan.local))
            later = (timeout or RENDEZVOUS) + 60  # torch's own time-out, which names no rank
            init_process_group(plan.backend, dist.PrefixStore("group", store), rank, world, later, device)
            worker(device, *args)
    except Exception as error:
        cause = known_cause(error)
        if cause is None and plan.mode != "spawn":
            raise
        if not _another_speaks(error, local_rank, lost):
            # Printed before this process leaves the group, since its peers then fail with a lost connection.
            say(f"rank {rank}: {f'error: {cause}' if cause else traceback.format_exc()}", True)
        sys.exit(1)
    except Stopped:  # all ranks leave together
        for number in STOP_SIGNALS:  # a copy of the signal would kill the process while Python ends
            signal.signal(number, signal.SIG_IGN)
        dist.destroy_process_group()
        raise
    finally:
        if plan.mode == "spawn" and os.getppid() != launcher:  # the launcher is gone and can't remove its folder
            shutil.rmtree(os.path.dirname(folder), ignore_errors=True)
    dist.destroy_process_group()


def _another_speaks(error, local_rank, lost):
    """Whether another process of this node, or its launcher, says why the run ends."""
    if isinstance(error, ON_EVERY_RANK):
        return local_rank > 0
    if lost is None or not is_lost_connection(error):
        return False
    deadline = time.monotonic() + MOMENT
    while not lost.value and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(lost.value)
