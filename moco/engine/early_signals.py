"""Stop signals while there is nothing to save: they end the program at once, with one line and exit code 143.

This module imports nothing slow, so the scripts call `exit_on_signals` before they import torch.
"""

import contextlib
import os
import signal
import sys

from moco.data.worker_processes import STOP_SIGNALS
from moco.pipe_safe_print import say

EXIT_CODE = 143  # a shell's exit code for a process that SIGTERM ended


def exit_on_signals():
    """Makes stop signals end the program until a StopListener takes over. Call it first."""
    for number in STOP_SIGNALS:
        signal.signal(number, _end)


def _end(number, _frame):
    if os.environ.get("RANK", "0") == "0":  # torchrun signals all of its processes, and one of them speaks
        with contextlib.suppress(RuntimeError):  # the signal came in the middle of a print
            report_stop(number)
    # Importing multiprocessing takes a while. As long as nothing has imported it, there are no data workers.
    for worker in getattr(sys.modules.get("multiprocessing"), "active_children", list)():
        worker.terminate()
    # SystemExit would not do: code that is imported may ignore it, or turn it into an ImportError.
    os._exit(EXIT_CODE)


def report_stop(number):
    """Prints that signal `number` ended the program while there was nothing to save."""
    say(f"stopped by {signal_name(number)}; no training step was running, so nothing is lost")


def signal_name(number):
    """The name of a signal, such as SIGTERM."""
    return signal.Signals(number).name
