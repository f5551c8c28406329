"""Counts the system calls of a function: how often it opens files, reads, and asks for the state of files."""

import contextlib
import ctypes
import os
import select
import shutil
import subprocess
import sys
import tempfile

KINDS = {
    "opens": {"open", "openat", "openat2"},
    "reads": {"read", "readv", "pread64", "preadv", "preadv2"},
    "stats": {"stat", "fstat", "lstat", "newfstatat", "fstatat64", "statx"},
}
PR_SET_PTRACER, ANY = 0x59616D61, ctypes.c_ulong(-1)


def count(function):
    """Counts the system calls of `function()`, which runs in a forked process.

    Returns:
        counts: a dict from the keys of KINDS to numbers; None where a number can't be known.
        means: "strace", which counts everything; or "Python and /proc" where it is not installed or not allowed, which
            counts the files that Python opens and the reads of the process.
    """
    if shutil.which("strace") and (counts := _by_strace(function)):
        return counts, "strace"
    return _in_process(function), "Python and /proc"


def _by_strace(function):
    """The counts by strace; None if it may not follow a process."""
    ready, go = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).prctl(PR_SET_PTRACER, ANY, 0, 0, 0)  # allows strace, which is no parent, to follow
        os.write(ready[1], b".")
        select.select([go[0]], [], [])  # not a read, which would be counted
        _end(function)
    os.read(ready[0], 1)
    with tempfile.NamedTemporaryFile("r") as table:
        command = ["strace", "-c", "-o", table.name, "-p", str(pid)]
        strace = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        follows = "attached" in strace.stderr.readline()
        os.write(go[1], b".")
        failed = os.waitpid(pid, 0)[1]
        strace.communicate()
        rows = [line.split() for line in table]
    for descriptor in (*ready, *go):
        os.close(descriptor)
    if failed or not follows:
        return None
    calls = {row[-1]: int(row[3]) for row in rows if len(row) > 4 and row[3].isdigit() and row[-1] != "total"}
    return {kind: sum(calls.get(name, 0) for name in names) for kind, names in KINDS.items()}


def _in_process(function):
    """The counts that Python and Linux tell; a value is None where the system does not tell."""
    receiver, sender = os.pipe()
    pid = os.fork()
    if pid == 0:  # since an audit hook can't be removed
        opened = []
        sys.addaudithook(lambda event, words: event == "open" and opened.append(words[0]))

        def measure():
            start, between = _reads(), _reads()
            del opened[:]
            function()
            opens = sum(not isinstance(name, int) for name in opened)
            reads = start is not None and _reads() - between - (between - start)
            os.write(sender, f"{opens} {reads if start is not None else -1}".encode())

        _end(measure)
    os.close(sender)
    with os.fdopen(receiver) as pipe:
        words = pipe.read().split()
    os.waitpid(pid, 0)
    if not words:
        return dict.fromkeys(KINDS)
    return {"opens": int(words[0]), "reads": int(words[1]) if int(words[1]) >= 0 else None, "stats": None}


def _reads():
    """The number of reads of this process until now; None if the system does not tell."""
    with contextlib.suppress(OSError), open("/proc/self/io") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("syscr"))


def _end(function):
    """Calls a function and ends this process; exit code 1 if the function raised an exception."""
    code = 1
    with contextlib.suppress(Exception):
        function()
        code = 0
    os._exit(code)
