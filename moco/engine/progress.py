"""Progress of a long task in lines: how far it is, and the time left."""

import time
from datetime import timedelta

from moco.distributed import rank
from moco.pipe_safe_print import say

INTERVAL = 10.0  # seconds between two lines


class Progress:
    """Prints a line every 10 seconds while a task runs; a task that takes less time prints nothing.

    Only rank 0 prints.

    Args:
        what: the task, the beginning of each line. total: number of items. unit: what the items are, in the plural.
        error: whether to print to standard error. Use it if another program reads standard output.
    """

    def __init__(self, what, total, unit, error=True):
        self.what, self.total, self.unit, self.error = what, total, unit, error
        self.done, self.start = 0, time.monotonic()
        self.printed = self.start

    def add(self, n=1):
        """Call when `n` further items are done."""
        self.done += n
        if time.monotonic() - self.printed >= INTERVAL and 0 < self.done < self.total:
            self.show()

    def show(self, now=""):
        """Prints a line at once, without the time left if nothing is done yet; `now` is what is being done."""
        self.printed = time.monotonic()
        line = f"{self.what}: {self.done:,} of {self.total:,} {self.unit} ({self.done / self.total:.0%})"
        if self.done:
            seconds = (self.printed - self.start) / self.done * (self.total - self.done)
            line += f", {timedelta(seconds=round(seconds))} left"
        if rank() == 0:
            say(line + f"; now: {now}" * bool(now), self.error)
