"""Stop signals as exceptions, for programs that save nothing in between but must leave nothing half-written."""

import contextlib
import math
import signal
import time
import traceback

from moco.data.worker_processes import STOP_SIGNALS
from moco.distributed import rank
from moco.engine.early_signals import EXIT_CODE, signal_name
from moco.engine.preemption import ECHO, Stopped
from moco.pipe_safe_print import say

AGAIN = 0.1  # seconds from a stop signal within a destructor to the next try


@contextlib.contextmanager
def stop_signals_raise():
    """Context manager in which a stop signal raises Stopped, so that nothing half-written stays. Rank 0 says it."""
    before = raise_at_stop_signals()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_at_stop_signals():
    """Makes stop signals raise Stopped; returns the handlers before, by signal."""
    said, raised = False, -math.inf

    def stop(number, frame):
        nonlocal said, raised
        if not said and rank() == 0:
            with contextlib.suppress(RuntimeError):  # the signal came in the middle of a print
                say(f"stopped by {signal_name(number)}", True)
        said = True
        if any(f.f_code.co_name == "__del__" for f, _ in traceback.walk_stack(frame)):
            signal.setitimer(signal.ITIMER_REAL, AGAIN)  # an exception would get lost here
        elif time.monotonic() - raised > ECHO:  # otherwise a copy, as of Ctrl-C, which the launcher passes on
            raised = time.monotonic()
            raise Stopped(EXIT_CODE)

    return {number: signal.signal(number, stop) for number in (*STOP_SIGNALS, signal.SIGALRM)}
