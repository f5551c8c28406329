"""Data worker processes: how they start, and which signals they ignore."""

import contextlib
import os
import signal
import sys
import threading
import time

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # what asks a run to stop


@contextlib.contextmanager
def stop_signals_held():
    """Context manager that blocks stop signals in this thread and in processes that it forks.

    A forked process receives them later, when it has set up its own handling.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_worker(parent, _number):
    """The first function that a data worker runs: makes it ignore stop signals and exit with its parent.

    Args:
        parent: process id of the process that started it. _number: the worker's number, which torch passes.
    """
    obey_only(parent)
    if os.getppid() != parent:  # the parent died before torch's own check for it began
        os._exit(1)


def obey_only(parent):
    """Makes this process, a data worker, ignore all stop signals except a SIGTERM from its parent.

    A scheduler signals every process of a job. If a data worker died from the signal, the run would end before it
    could write a checkpoint. Call this in a process that was forked under `stop_signals_held`.

    Args:
        parent: process id of the parent.
    """
    signal.set_wakeup_fd(-1)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    if not hasattr(signal, "sigwaitinfo"):  # macOS, where in practice only Ctrl-C reaches all processes
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        return
    main, end = threading.get_ident(), signal.SIGUSR2
    signal.signal(end, lambda *_: sys.exit())  # an orderly exit, which leaves no files behind

    def wait():
        while True:
            info = signal.sigwaitinfo(STOP_SIGNALS)
            if info.si_signo == signal.SIGTERM and info.si_pid == parent:
                break
        for _ in range(5):
            signal.pthread_kill(main, end)
            time.sleep(1)
        os._exit(0)

    threading.Thread(target=wait, name="signals", daemon=True).start()
