"""Data worker processes: how they start, which signals they ignore, and what to do if one dies."""

import contextlib
import os
import re
import shutil
import signal
import sys
import threading
import time

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # what asks a run to stop
SHARED = "/dev/shm"  # where the batches of the data workers lie
# torch's words for a data worker that a signal ended because of shared memory, or for a file that it could not make.
NO_SHARED_MEMORY = re.compile(r"DataLoader worker.*Bus error|</torch_\d+.*>.*(No space left|Cannot allocate)")


@contextlib.contextmanager
def stop_signals_held():
    """A context in which stop signals wait, for this thread and for processes that it forks.

    A process that is forked meanwhile receives them only after it has set up its own handling.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_worker(parent, _number):
    """The first function that a data worker runs: ties its life to the process `parent`, which started it."""
    obey_only(parent)
    if os.getppid() != parent:  # the parent died before torch began to look for it
        os._exit(1)


def obey_only(parent):
    """Makes this process, a data worker, ignore all stop signals except a SIGTERM from its parent.

    A scheduler signals every process of a job. A data worker that died from it would end the run before the run could
    save itself. Call this in a process that was forked under `stop_signals_held`.

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


def cause_of_death(error):
    """What to do about a dead data worker, if `error` or an exception behind it reports one; otherwise None."""
    while error is not None:
        text = str(error)
        if NO_SHARED_MEMORY.search(text):
            size = f" ({shutil.disk_usage(SHARED).total / 1e9:.1f} GB here)" if os.path.isdir(SHARED) else ""
            return (
                f"a data worker ran out of shared memory: enlarge {SHARED}{size}, in a container by --shm-size or "
                "--ipc=host, or give fewer --workers"
            )
        if "DataLoader worker" in text and "is killed by signal: Killed" in text:
            return "a data worker was killed, by the system if memory is short; give fewer --workers"
        error = error.__cause__ or error.__context__
    return None
