"""Signals that ask a run to stop: all processes agree after which step, so that one checkpoint holds all of it.

A scheduler that preempts a job, `kill` and Ctrl-C send a signal to one process of it, or to all, or to all and once
more through a launcher. The first one is remembered; the processes compare notes between steps, now and then. A second
one ends the process at once, whatever it is waiting for.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time

import torch
import torch.distributed as dist

from moco import checkpoint as ckpt
from moco.console import say
from moco.distributed import collective_device, is_initialized, rank

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
EXIT_CODE = 143  # a shell's for a process that SIGTERM ended
END = b"\0"  # no signal's number
ECHO = 2.0  # seconds in which a repeated signal is the same one, come another way
INTERVAL = 5.0  # seconds between two comparisons at most, as far as steps allow


class Stopped(SystemExit):
    """The end of every process of a run that was asked to stop, when all is saved."""


class Interruption:
    """A context manager that listens for SIGTERM, SIGINT and SIGUSR1 within it.

    Args:
        steps: steps between two comparisons at most.

    Attributes:
        number: of the signal that was received or, once all have agreed to stop, of one that some process received;
            else 0.
    """

    def __init__(self, steps):
        self.steps, self.number = steps, 0
        self.agreed, self.left = False, 0
        self.compared, self.steps_since = None, 0

    def __enter__(self):
        # Python runs a signal's handler only between two operations, which a hanging collective never reaches. The
        # signal's number is written to this file at once; a thread reads it.
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.writer, False)
        self.wakeup = signal.set_wakeup_fd(self.writer, warn_on_full_buffer=False)
        self.handlers = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
        self.listener = threading.Thread(target=self._listen, name="signals", daemon=True)
        self.listener.start()
        return self

    def __exit__(self, *_):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self.wakeup)
        os.write(self.writer, END)  # its being closed would not show, data workers have it open too
        self.listener.join()
        os.close(self.writer)
        os.close(self.reader)

    def _listen(self):
        since = None
        while END not in (numbers := os.read(self.reader, 256)):
            for number in (n for n in numbers if n in SIGNALS):  # that of a data worker's end comes here, too
                if since is None:
                    since, self.number = time.monotonic(), number
                    if rank() == 0:
                        how = f"{signal_name(number)}: the run stops after a step, with a checkpoint"
                        say(f"{how}; once more, {ECHO:g} s from now or later, ends it at once")
                elif time.monotonic() - since > ECHO:
                    end_at_once(EXIT_CODE)

    def asked(self, now=False):
        """Call between steps, equally often on every rank: whether the run shall stop here, the same on every rank.

        The ranks compare notes every so many steps, or `now`; then each waits for the others and for its device.
        """
        if self.agreed:
            return True
        if not is_initialized():
            self.agreed = self.number > 0
            return self.agreed
        self.left, self.steps_since = self.left - 1, self.steps_since + 1
        if self.left > 0 and not now:
            return False
        moment = time.monotonic()
        steps = self._steps_to_next(moment) if rank() == 0 else 0
        note = torch.tensor([self.number, steps], device=collective_device())
        dist.all_reduce(note, dist.ReduceOp.MAX)
        number, self.left = note.tolist()
        self.compared, self.steps_since = moment, 0
        if number:
            self.agreed, self.number = True, number
        return self.agreed

    def _steps_to_next(self, now):
        if self.compared is None:
            return 1
        seconds = max(now - self.compared, 1e-9) / self.steps_since  # a step
        return max(1, min(self.steps, int(INTERVAL / seconds)))


def signal_name(number):
    """A signal's name."""
    return signal.Signals(number).name


def exit_on_signals():
    """For a program's first line: until a run listens for them, the signals to stop end it, with their exit code."""
    for number in SIGNALS:
        signal.signal(number, lambda *_: sys.exit(EXIT_CODE))


def end_at_once(code):
    """Ends this process and its data workers without the usual farewells, but leaves no half-written checkpoint."""
    ckpt.remove_temporaries()
    for worker in multiprocessing.active_children():
        worker.terminate()
    os._exit(code)


@contextlib.contextmanager
def held():
    """Holds back the signals to stop from this thread, and from a process forked meanwhile until it is ready."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def obey_only(parent):
    """Has this process, a data worker, pass over the signals to stop, but for its parent's SIGTERM.

    A scheduler signals every process of a job, and a data worker that dies ends the run before it can save. Call it
    in a process that was forked while signals were `held`.

    Args:
        parent: its process number.
    """
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    if not hasattr(signal, "sigwaitinfo"):  # macOS; there only a user's Ctrl-C comes to all
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return
    main, end = threading.get_ident(), signal.SIGUSR2
    signal.signal(end, lambda *_: sys.exit())  # an orderly end, which leaves no files

    def wait():
        while True:
            info = signal.sigwaitinfo(SIGNALS)
            if info.si_signo == signal.SIGTERM and info.si_pid == parent:
                break
        for _ in range(5):
            signal.pthread_kill(main, end)
            time.sleep(1)
        os._exit(0)

    threading.Thread(target=wait, name="signals", daemon=True).start()
