"""Progress of a long task in lines: how far it is, and the time left."""

import time
from datetime import timedelta

from moco.pipe_safe_print import say

INTERVAL = 10.0  # seconds between two lines


class Progress:
    """Prints a line every 10 seconds while a task runs; a task that takes less time prints nothing.

    Args:
        what: the task, the beginning of each line. total: number of items. unit: what the items are, in the plural.
        error: whether to print to standard error. A program whose output is read by others needs that.
    """

    def __init__(self, what, total, unit, error=True):
        self.what, self.total, self.unit, self.error = what, total, unit, error
        self.done, self.start = 0, time.monotonic()
        self.printed = self.start

    def add(self, n=1):
        """Call when `n` further items are done."""
        self.done += n
        now = time.monotonic()
        if now - self.printed >= INTERVAL and 0 < self.done < self.total:
            self.printed = now
            left = timedelta(seconds=round((now - self.start) / self.done * (self.total - self.done)))
            share = f"{self.done:,} of {self.total:,} {self.unit} ({self.done / self.total:.0%})"
            say(f"{self.what}: {share}, {left} left", self.error)
