"""Runs functions and scripts in real processes, which start at once: they are forked from one that imported all."""

import atexit
import contextlib
import faulthandler
import glob
import importlib
import io
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import threading
import time
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torchvision import models

from moco.data.worker_processes import STOP_SIGNALS
from moco.engine import startup_checks, training_run, watchdog
from moco.engine.launch_plan import Launch
from tests.tiny_net import TinyNet

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PRELOAD = ["pytest", "torch.distributed", "torchvision", "main_moco", "main_lincls", "tests.tiny_net"]

FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(PRELOAD)


def _one_rank(rank, function, world, folder, args):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    torch.save(function(*args), f"{folder}/{rank}.pt")
    dist.barrier()  # a process that leaves while others still join would make them fail
    dist.destroy_process_group()


def run_ranks(function, world, *args):
    """Runs a module-level `function(*args)` in `world` processes; returns a list of what each returned."""
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
        models.get_model = lambda arch, num_classes=1000: TinyNet(num_classes)
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


@contextlib.contextmanager
def quick_launches():
    """Context manager in which a launcher forks its processes, and their watchdogs wait for short times.

    Otherwise every process imports everything again, which takes seconds.
    """
    start = mp.start_processes
    ignored = [number for number in STOP_SIGNALS if signal.getsignal(number) == signal.SIG_IGN]

    def fork(function, args, **how):
        return start(_without_handlers, (ignored, function, args), start_method="fork", **how)

    with mock.patch.object(mp, "start_processes", fork), mock.patch.multiple(watchdog, LOOK=0.2, GRACE=0.3):
        yield


def _without_handlers(rank, ignored, function, args):
    for number in STOP_SIGNALS:  # not the launcher's handlers
        signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
    function(rank, *args)


class Program:
    """Runs a module-level `function(*args)` as a program: in a process group of its own that leads its own session.

    Attributes:
        pid: its process id. stdout, stderr: pipes to read what it and its children print.
    """

    def __init__(self, function, *args):
        pipes = [FORKSERVER.Pipe(duplex=False) for _ in range(2)]
        self.process = FORKSERVER.Process(target=_program, args=(function, args, *(write for _, write in pipes)))
        self.process.start()
        self.pid = self.process.pid
        atexit.register(self.end)  # or a test that failed would make this process wait for its program
        for _, write in pipes:
            write.close()
        self.stdout, self.stderr = (os.fdopen(os.dup(read.fileno())) for read, _ in pipes)

    def wait(self, seconds=60):
        """Waits until it has ended; returns its exit code, or None if it has not ended."""
        self.process.join(seconds)
        return self.process.exitcode

    def finish(self, seconds=60):
        """Waits until nobody can print any more; returns the exit code, the standard output and the standard error.

        Raises:
            TimeoutError: it took longer; the message ends with what each process was doing. They are killed.
        """
        late = threading.Event()
        timer = threading.Timer(seconds, lambda: (late.set(), self.print_stacks(), self.kill()))
        timer.start()
        errors = []  # read at the same time, since a pipe that is full would stop the program
        reader = threading.Thread(target=lambda: errors.append(self.stderr.read()))
        reader.start()
        out = self.stdout.read()
        reader.join()
        error = errors[0]
        timer.cancel()
        if late.is_set():
            raise TimeoutError(f"a program did not end within {seconds} s: {out}{error}")
        return self.wait(), out, error

    def print_stacks(self):
        """Lets each of its processes print the Python calls of its threads to its standard error, one by one."""
        for pid, _ in processes_of(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGQUIT)
            time.sleep(0.5)

    def kill(self):
        """Kills it and the processes that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def end(self):
        """Kills it and the processes that it has started, if it still runs."""
        if self.process.is_alive():
            self.kill()


def _program(function, args, *outputs):
    os.setsid()
    for number, output in enumerate(outputs, start=1):
        os.dup2(output.fileno(), number)
        output.close()
    faulthandler.register(signal.SIGQUIT, file=2)
    function(*args)


def alive(group):
    """Whether a process of a process group still runs."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    # Some may have ended, and only wait until the system's first process notices.
    states = {state for _, state in processes_of(group)}
    return not states or not states <= set("ZX")


def gone(group, seconds=30):
    """Whether nothing is left of a process group by then."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not alive(group):
            return True
        time.sleep(0.02)
    return False


def processes_of(group):
    """The processes of a process group, as pairs (process id, state); empty where there is no /proc, as on macOS."""
    found = []
    for path in glob.glob("/proc/[0-9]*/stat"):
        with contextlib.suppress(OSError), open(path) as file:
            pid, _, rest = file.read().partition(" ")
            state, _, its_group, *_ = rest.rpartition(")")[2].split()
            found += [(int(pid), state)] * (int(its_group) == group)
    return found


def run_program(script, *words, quick=False):
    """Runs a script of the repository as a program; returns its exit code, standard output and standard error.

    Args:
        quick: whether the processes that it starts are forked (see `quick_launches`), and import nothing again.
    """
    return Program(_script_as_main, script, [str(word) for word in words], quick).finish(300)


def _script_as_main(script, words, quick):
    os.chdir(ROOT)
    sys.argv = [os.path.join(ROOT, script), *words]
    with quick_launches() if quick else contextlib.nullcontext():
        runpy.run_path(sys.argv[0], run_name="__main__")
