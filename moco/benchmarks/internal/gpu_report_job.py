"""One part of the GPU report at work: its folders, its time, the commands that it runs, and what it has measured."""

import contextlib
import ctypes
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

# With --small. Several threads would make a program much slower while another program uses the same cores.
NO_GPU = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl


class PartFailed(Exception):
    """A part of the report has failed; the message is one line that says why."""


class PartSkipped(Exception):
    """A part of the report does not fit this machine; the message is one line that says why."""


class TimeOver(Exception):
    """The time of a part is over."""


class Job:
    """One attempt at a part; a context manager that finally kills all its processes and removes its work folder.

    Args:
        out: the absolute path of the report's folder. name: of the part.
        small: whether everything is shrunk and GPUs are hidden. machine: what the program `machine` found out.
        end: when the time is over, on the clock of time.monotonic().

    Attributes:
        log: path of the file with the output of all its commands. work: an empty folder.
        commands: what it has run, as a user would type it. figures: what it has measured so far, a dict.
    """

    def __init__(self, out, name, small, machine, end):
        self.out, self.small, self.machine, self.end = out, small, machine, end
        self.log, self.work = os.path.join(out, f"{name}.log"), os.path.join(out, "work")
        self.commands, self.figures, self.processes = [], {}, []

    def __enter__(self):
        shutil.rmtree(self.work, ignore_errors=True)
        os.makedirs(self.work)
        with contextlib.suppress(FileNotFoundError):
            os.remove(self.log)
        return self

    def __exit__(self, *_):
        for process in self.processes:
            if process.returncode is None:
                kill_group(process)
        shutil.rmtree(self.work, ignore_errors=True)

    def start(self, *words):
        """Starts a Python command in the repository's root, in a process group of its own; returns its Popen."""
        words = [str(word) for word in words]
        self.commands.append(f"python {shlex.join(words)}".replace(self.out, "DIR"))
        with open(self.log, "a") as log:
            print(f"$ {self.commands[-1]}", file=log, flush=True)
            process = subprocess.Popen(
                [sys.executable, *words],
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(NO_GPU if self.small else {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent if sys.platform == "linux" else None,
            )
        self.processes.append(process)
        return process

    def wait(self, process, code=0):
        """Waits for the end of a process; raises PartFailed if its exit code is not `code`, and TimeOver."""
        try:
            seen = process.wait(max(0, self.end - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise TimeOver from None
        kill_group(process)  # its children, if any are left
        if seen != code:
            lines = self.lines()
            errors = [line for line in lines if re.search(r"(error|Error|Exception): ", line)]
            raise PartFailed(f"exit code {seen} instead of {code}: {(errors or lines)[-1].strip()}")

    def run(self, *words):
        """Runs a Python command to its end; raises PartFailed if it fails, and TimeOver."""
        self.wait(self.start(*words))

    def result_of(self, *words):
        """Runs a Python command whose last line in braces is JSON, and returns that dict; raises as `run`."""
        self.run(*words)
        return json.loads([line for line in self.lines() if line.startswith("{")][-1])

    def wait_until(self, process, condition):
        """Waits until `condition()` is true; raises PartFailed if the process ends before, and TimeOver."""
        while not condition():
            if process.poll() is not None:
                self.wait(process)
                raise PartFailed("the run ended too early")
            if time.monotonic() > self.end:
                raise TimeOver
            time.sleep(0.01)

    def lines(self):
        """The lines of its commands' output that are not empty."""
        if not os.path.exists(self.log):
            return []
        with open(self.log, errors="replace") as file:
            return [line for line in file.read().splitlines() if line.strip()]


def kill_group(process):
    """Kills a process that `Job.start` has started, and all its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def die_with_parent():
    """Lets Linux kill this process when its parent ends, also by SIGKILL."""
    ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
