"""Progress that prints after each step, for programs that have a process of their own."""

from types import SimpleNamespace

from moco.engine import checkpoint_file_read, progress


def often():
    """Lets a Progress print in each step, except the one that counts the bytes of a checkpoint."""
    progress.INTERVAL = 0
    progress.timedelta = lambda seconds: "0:00:00"
    checkpoint_file_read.Progress = lambda *_: SimpleNamespace(add=lambda n: None)
