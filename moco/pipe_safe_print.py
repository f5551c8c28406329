"""Printing that survives a closed terminal or a broken pipe."""

import contextlib
import os
import sys


def say(line, error=False):
    """Prints a line and flushes it; to standard error if `error`.

    If nobody reads the stream any more, all further output is dropped silently. So a closed terminal, or the end of
    the program that the log is piped into, does not end a run while it saves its last checkpoint.
    """
    stream = sys.stderr if error else sys.stdout
    try:
        print(line, file=stream, flush=True)
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def first_line(error):
    """The first line of an exception's message, or the exception's type if it has no message."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
