"""The programs that a study starts: they end with it, and those that run at once share the cores and the GPUs."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time

import torch

from moco.engine.launch_processes import noted_signals
from moco.engine.preemption import Stopped
from moco.pipe_safe_print import say

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
PAUSE = 0.1  # seconds between two looks at the running programs


class ProgramFailed(RuntimeError):
    """A program ended with another code than 0; the message names its command and its log."""


class Programs:
    """Context manager for Python programs. At its end, those that still run get SIGTERM, and it waits for them.

    A run of main_moco.py then saves a checkpoint. Use it in `stop_signals_raise`.
    """

    def __init__(self):
        self.started = []

    def start(self, words, **options):
        """Starts `python WORDS` in the current folder, in which also the paths that a user gives are looked up.

        Args:
            words: list of str. options: those of subprocess.Popen.

        Returns:
            The Popen.
        """
        path = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))  # for `-m moco...`
        environment = {**os.environ, **options.pop("env", {}), "PYTHONPATH": path}
        with noted_signals() as received:  # an exception could get between the start and the list
            self.started.append(subprocess.Popen([sys.executable, *words], env=environment, **options))
        for number in received:
            signal.raise_signal(number)
        return self.started[-1]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        ended = False
        while not ended:
            with contextlib.suppress(Stopped):  # by a second signal, which is passed on, too
                for process in self.started:
                    process.terminate()
                for process in self.started:
                    process.wait()
                ended = True


def run_program(words, log):
    """Runs `python WORDS` to its end, and appends its output to the file `log`.

    Raises:
        ProgramFailed: its exit code is not 0.
    """
    with open(log, "ab") as file, Programs() as programs:
        code = programs.start(words, stdout=file, stderr=subprocess.STDOUT).wait()
    if code:
        with open(log, errors="replace") as file:
            last = (file.read().splitlines() or ["nothing"])[-1]
        raise ProgramFailed(f"code {code} of `python {shlex.join(words)}`; its log {log!r} ends with: {last}")


def run_at_once(commands, gpus):
    """Runs several programs, as many at once as there are shares of the GPUs; each gets its share of the cores, too.

    Args:
        commands: dict from titles to WORDS of `python WORDS`. gpus: as of `gpu_shares`.

    Returns:
        dict from the titles to the exit codes.
    """
    codes, running, waiting = dict.fromkeys(commands), {}, list(commands)
    with Programs() as programs:
        while waiting or running:
            for slot in set(range(len(gpus))) - running.keys():
                if waiting:
                    title = waiting.pop(0)
                    say(f"run {len(commands) - len(waiting)} of {len(commands)} starts: {title}")
                    with on_cores(slot, len(gpus)):
                        running[slot] = title, programs.start(commands[title], env=gpus[slot])
            time.sleep(PAUSE)
            for slot, (title, process) in list(running.items()):
                if process.poll() is not None:
                    codes[title] = process.returncode
                    del running[slot]
    return codes


def share(things, slot, jobs):
    """The part of a list for number `slot` of `jobs` programs that run at once; all parts have the same size."""
    each = max(1, len(things) // jobs)
    first = slot * each % len(things)
    return things[first : first + each]


def gpu_shares(jobs):
    """For each of `jobs` programs that run at once, the environment variables that show it its share of the GPUs."""
    gpus = visible_gpus() if jobs > 1 else []
    return [{"CUDA_VISIBLE_DEVICES": ",".join(share(gpus, slot, jobs))} if gpus else {} for slot in range(jobs)]


@contextlib.contextmanager
def on_cores(slot, jobs):
    """Context manager: programs that start in it get the share of the cores of number `slot` of `jobs` programs.

    They inherit it from this thread, and their own data workers, processes and threads inherit it from them.
    """
    if not hasattr(os, "sched_setaffinity"):  # not Linux: they all use all cores
        yield
        return
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, share(sorted(own), slot, jobs))
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)


def visible_gpus():
    """The names of the GPUs for CUDA_VISIBLE_DEVICES, a list of str."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    count = torch.cuda.device_count()
    return names[:count] if names[0] else [str(number) for number in range(count)]
