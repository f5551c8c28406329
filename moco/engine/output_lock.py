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


class OutputInUse(ValueError):
    """Another run of the script and tag writes into the folder; the message names it."""


def lock_output(names, run, create=True):
    """Locks the folder for this process. It waits WAIT seconds for a run that is just ending and may still save.

    Args:
        names: the script's CheckpointNames. run: the id of this run.
        create: whether to create the lock file. Otherwise nothing happens if it does not exist.

    Raises:
        OutputInUse: another run of the script and tag writes into the folder.
        ValueError: the lock file can't be opened.
    """
    if (descriptor := _open(names, create)) is None:
        return
    deadline = None
    while holder := _locked_by(descriptor, says=create):
        if deadline is None:
            say(f"waiting up to {WAIT:g} s for {holder}, which writes into {names.folder!r}")
            deadline = time.monotonic() + WAIT
        if time.monotonic() > deadline:
            unlock_output()
            raise _in_use(names, holder)
        time.sleep(0.1)
    with contextlib.suppress(OSError):  # no locks here, or a full disk
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, 1)  # for rank 0, which may be another process
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"run {run} (process {os.getpid()} on {socket.gethostname()})\n".encode(), 0)


def holder_of(names):
    """In words, which run has locked the folder; None if none has. It changes nothing."""
    if (descriptor := _open(names, create=False)) is None:
        return None
    holder = _locked_by(descriptor, says=False)
    unlock_output()
    return holder


def lock_output_in_rank_0(names):
    """Takes rank 0's own lock, in the process that called `lock_output` or one that it started.

    Raises:
        OutputInUse: another run has the folder, since the process that started this one was killed.
    """
    descriptor = _open(names, create=True)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 1)
    except HELD:
        raise _in_use(names, _holder(descriptor)) from None
    except OSError:
        pass  # this file system has no locks, as `lock_output` has said


def unlock_output():
    """Releases all locks of this process."""
    while _descriptors:
        os.close(_descriptors.popitem()[1])


def _open(names, create):
    """The descriptor of the lock file; None if it neither exists nor shall be created."""
    path = names.lock_file()
    if path not in _descriptors:
        try:
            _descriptors[path] = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0))
            with contextlib.suppress(OSError):  # the file of another user
                os.chmod(path, 0o666)  # for other users of a shared folder, whatever the umask
        except OSError as error:
            if not create:
                return None
            raise ValueError(
                f"can't open the lock file {path!r}: {error.strerror}; give another --output-dir"
            ) from error
    return _descriptors[path]


def _locked_by(descriptor, says):
    """Locks both bytes and returns None; if another process holds one of them, returns in words which process.

    Where the file system has no locks, it `says` so, or not.
    """
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 2, 0)
    except HELD:
        return _holder(descriptor)
    except OSError as error:
        if says:
            say(f"note: this file system has no locks ({error.strerror}); let only one run write into a folder")
    return None


def _holder(descriptor):
    return os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another run"


def _in_use(names, holder):
    return OutputInUse(
        f"{holder} writes {names.prefix}*.pth.tar into {names.folder!r}; wait until it ends, or give another "
        "--output-dir or, in main_moco.py, another --tag"
    )
