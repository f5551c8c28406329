"""Lines for whoever watches a run."""

import contextlib
import os
import sys


def say(line, error=False):
    """Prints a line at once, to the standard error if `error`; goes on in silence when nobody listens any more.

    A log that is piped into another program, or a terminal that was closed, must not end a run, least of all while it
    saves itself from the signal that ended the other program.
    """
    stream = sys.stderr if error else sys.stdout
    try:
        print(line, file=stream, flush=True)
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def first_line(error):
    """The first line of an error's message, or its kind where it has none."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
