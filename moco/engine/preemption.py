"""Stop signals (SIGTERM, SIGINT, SIGUSR1): all processes agree on a step after which they save and stop.

Signals come from a scheduler, from `kill` or from Ctrl-C. They may reach one process or all, and some processes twice,
directly and through their launcher. The first signal is remembered, and between steps the processes exchange whether
they received one. A signal that comes 2 seconds later, or more, ends the process at once, whatever it is waiting for.
"""

import multiprocessing
import os
import signal
import threading
import time

import torch

from moco.data.worker_processes import STOP_SIGNALS
from moco.distributed import all_gather, collective_device, copy_to_device, is_initialized, rank
from moco.engine.checkpoint_atomic_write import remove_temporaries
from moco.engine.early_signals import EXIT_CODE, signal_name
from moco.pipe_safe_print import say

END = b"\0"  # not the number of any signal
ECHO = 2.0  # seconds; a signal that comes sooner than this after the first one counts as a copy of it
INTERVAL = 5.0  # longest time in seconds between two exchanges, unless a single step takes longer


class Stopped(SystemExit):
    """The end of every process of a run that was asked to stop, after everything is saved."""


class StopListener:
    """A context manager that listens for stop signals.

    Args:
        steps: greatest number of steps between two exchanges.

    Attributes:
        number: the number of the signal that this process received, 0 before there is one. After the ranks have
            agreed to stop, it may be a signal that another process received.
        agreed: whether all ranks have agreed to stop.
    """

    def __init__(self, steps):
        self.steps, self.number = steps, 0
        self.agreed, self.left = False, 0
        self.compared, self.steps_since = None, 0

    def __enter__(self):
        # Python runs a signal's handler only between two bytecodes, so never during a hanging collective. But Python's
        # low-level handler writes the signal's number to this pipe at once, and a thread reads the pipe.
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.writer, False)
        self.wakeup = signal.set_wakeup_fd(self.writer, warn_on_full_buffer=False)
        self.handlers = {number: signal.signal(number, lambda *_: None) for number in STOP_SIGNALS}
        self.listener = threading.Thread(target=self._listen, name="signals", daemon=True)
        self.listener.start()
        return self

    def __exit__(self, *_):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self.wakeup)
        os.write(self.writer, END)  # closing would not wake the thread, since data workers hold the pipe open
        self.listener.join()
        os.close(self.writer)
        os.close(self.reader)

    def _listen(self):
        since = None
        while END not in (numbers := os.read(self.reader, 256)):
            for number in (n for n in numbers if n in STOP_SIGNALS):  # others come too, as SIGCHLD
                if since is None:
                    since, self.number = time.monotonic(), number
                    if rank() == 0:
                        how = (
                            f"{signal_name(number)}: the run saves a checkpoint after one of the next steps and stops"
                        )
                        say(f"{how}; another signal, at least {ECHO:g} s from now, ends it at once")
                elif time.monotonic() - since > ECHO:
                    end_at_once(EXIT_CODE)

    def asked(self, now=False):
        """Whether the run shall stop here; the answer is the same on every rank.

        Call it between steps, equally often on every rank. Every few steps, or at once if `now`, the ranks exchange
        whether they received a signal. The exchange waits for all ranks and their devices.
        """
        if self.due(now):
            self.agree(all_gather(copy_to_device(self.note(), collective_device())[None]).tolist())
        return self.agreed

    def due(self, now=False):
        """Whether the ranks have to exchange their notes here. `asked` calls it; otherwise as `asked`.

        Without other processes nothing is exchanged, and `agreed` is up to date after this call.
        """
        self.left, self.steps_since = self.left - 1, self.steps_since + 1
        if is_initialized():
            return not self.agreed and (now or self.left <= 0)
        self.agreed = self.agreed or self.number > 0
        return False

    def note(self):
        """What this rank tells the others: its signal and the steps until the next exchange; 2 float64 numbers."""
        steps = self._steps_to_next(time.monotonic()) if rank() == 0 else 0
        return torch.tensor([self.number, steps], dtype=torch.float64)

    def agree(self, notes):
        """Takes the notes of all ranks, a list of pairs of numbers; sets `agreed`."""
        number, self.left = (int(max(values)) for values in zip(*notes, strict=True))
        self.compared, self.steps_since = time.monotonic(), 0
        if number:
            self.agreed, self.number = True, number

    def _steps_to_next(self, now):
        if self.compared is None:
            return 1
        seconds = max(now - self.compared, 1e-9) / max(self.steps_since, 1)  # per step
        return max(1, min(self.steps, int(INTERVAL / seconds)))


def end_at_once(code):
    """Ends this process and its data workers without clean-up, except that no half-written checkpoint stays."""
    remove_temporaries()
    for worker in multiprocessing.active_children():
        worker.terminate()
    os._exit(code)
