"""Lets only one run of a script and tag write into an output folder at a time.

The lock is a POSIX record lock on a hidden file in the folder. It ends with the process that holds it, however that
process ends, and forked data workers do not inherit it. The process that the user starts locks byte 0. Rank 0 locks
byte 1, since it writes the checkpoints and may live some seconds longer than its launcher.

On a network file system the lock works as far as the file system passes locks on: NFS with its lock service does, also
between nodes. A mount with the option `nolock` or `local_lock` knows only the locks of its own node, and some parallel
file systems (Lustre without `flock`) know none; then the run starts with a note.
"""

import contextlib
import fcntl
import os
import socket
import time

from moco.pipe_safe_print import say

WAIT = 10.0  # seconds to wait for a run that is just ending
HELD = (BlockingIOError, PermissionError)  # what the system raises if another process holds the lock
_descriptors = {}  # of the lock files that this process has open; closing one would release all its locks on that file


def lock_output(names, run, create=True):
    """Locks the folder for this process. It waits WAIT seconds for a run that is just ending and may still save.

    Args:
        names: the script's CheckpointNames. run: the id of this run.
        create: whether to create the lock file. Otherwise nothing happens if it does not exist.

    Raises:
        ValueError: another run of the script and tag writes into the folder, or the lock file can't be opened.
    """
    if (descriptor := _open(names, create)) is None:
        return
    deadline = None
    while holder := _locked_by(descriptor):
        if deadline is None:
            print(f"waiting up to {WAIT:g} s for {holder}, which writes into {names.folder!r}", flush=True)
            deadline = time.monotonic() + WAIT
        if time.monotonic() > deadline:
            unlock_output()
            raise ValueError(
                f"{holder} writes {names.prefix}*.pth.tar into {names.folder!r}; wait until it ends, or give another "
                "--output-dir or, in main_moco.py, another --tag"
            )
        time.sleep(0.1)
    with contextlib.suppress(OSError):  # no locks here, or a full disk
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, 1)  # for rank 0, which may be another process
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"run {run} (process {os.getpid()} on {socket.gethostname()})\n".encode(), 0)


def holder_of(names):
    """In words, which run has locked the folder; None if none has. It changes nothing."""
    if (descriptor := _open(names, create=False)) is None:
        return None
    holder = _locked_by(descriptor)
    unlock_output()
    return holder


def lock_output_in_rank_0(names):
    """Takes rank 0's own lock, in a process that `lock_output` was called in or for."""
    with contextlib.suppress(OSError):  # `lock_output` has printed what can't be done here
        fcntl.lockf(_open(names, create=True), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 1)


def unlock_output():
    """Releases all locks of this process."""
    while _descriptors:
        os.close(_descriptors.popitem()[1])


def _open(names, create):
    """The descriptor of the lock file; None if it neither exists nor shall be created."""
    path = names.lock_file()
    if path not in _descriptors:
        try:
            _descriptors[path] = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o666)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise ValueError(
                f"can't open the lock file {path!r}: {error.strerror}; give another --output-dir"
            ) from error
    return _descriptors[path]


def _locked_by(descriptor):
    """Locks both bytes and returns None; if another process holds one of them, returns in words which process."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 2, 0)
    except HELD:
        return os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another run"
    except OSError as error:
        say(f"note: this file system has no locks ({error.strerror}); let only one run write into a folder")
    return None
