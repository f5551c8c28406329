"""Checkpoints written in the background, whole or not at all, and only as many as there shall be."""

import contextlib
import os
import shutil
import threading

import torch

from moco import checkpoint as ckpt
from moco.console import first_line, say

THREAD = "checkpoint"  # the name of the thread that writes


class Saver:
    """Writes one checkpoint at a time while training goes on; a context manager that waits for the last at its end.

    The state is copied before `save` returns, since the next step changes it. A write that fails leaves the file
    before it, is reported, and ends the run only if the next one fails too, or if it was the last.

    Args:
        last: the path of the checkpoint that the run comes from, or None.
    """

    def __init__(self, last=None):
        self.thread, self.error, self.failed, self.complaints = None, None, False, []
        self.jobs = []  # (checkpoint, paths, files to remove after it): the newest, then what could not be written
        self.newest, self.last = None, last

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if kind is None:
            self.close()
        elif self.thread is not None:
            self.thread.join()
            for line in filter(None, [self.error, *self.complaints]):
                say(f"warning: {line}")

    def save(self, checkpoint, *paths, remove=()):
        """Copies `checkpoint` and begins to write it to each of `paths`, then removes the files `remove`.

        Waits for the write before. What that could not write is tried again, unless it is of `paths` too. The last of
        `paths` is the one that counts: it is written when the others are.

        Raises:
            ckpt.CheckpointError: the write before failed, and so did the one before that.
        """
        self.wait()
        owed = [(old, [path for path in names if path not in paths], files) for old, names, files in self.jobs]
        self.jobs = [(on_cpu(checkpoint), list(paths), remove), *(job for job in owed if job[1])]
        self.newest = paths[-1]
        self._begin()

    def _begin(self):
        self.thread = threading.Thread(target=self._write, name=THREAD)
        self.thread.start()

    def _write(self):
        for checkpoint, paths, remove in self.jobs:
            for path in list(paths):
                try:
                    ckpt.save(checkpoint, path)
                except Exception as error:  # of torch's writer too, which has types of its own
                    line = f"can't write {path!r}: {first_line(error)}"
                    if path == self.newest:
                        self.error = line
                    else:
                        self.complaints.append(line)
                else:
                    paths.remove(path)
                    self.last = path if path == self.newest else self.last
            for path in remove if not paths else ():
                with contextlib.suppress(OSError):  # it is gone, or stays
                    os.remove(path)
        self.jobs = [job for job in self.jobs if job[1]]

    def wait(self):
        """Waits for the write in flight; raises as `save`."""
        if self.thread is None:
            return
        self.thread.join()
        self.thread = None
        for line in self.complaints:
            say(f"warning: {line}; it is tried again")
        error, self.error, self.complaints = self.error, None, []
        if error is None:
            self.failed = False
            return
        if self.failed:
            raise ckpt.CheckpointError(f"{error}; nor could the checkpoint before it, so the run ends here")
        self.failed = True
        say(f"warning: {error}; the file before it is kept, and the run ends if the next write fails too")

    def last_path(self):
        """The path of the last whole checkpoint, or None; waits for the write in flight."""
        if self.thread is not None:
            self.thread.join()
        return self.last

    def close(self):
        """Waits for the last write, and tries once more what could not be written; raises as `save`."""
        self.wait()
        if self.jobs:
            self._begin()
            self.wait()


def on_cpu(x):
    """A copy of nested dicts, lists and tuples whose tensors are on the CPU, in memory of their own."""
    if isinstance(x, torch.Tensor):
        return x.detach().to("cpu", copy=True)
    if isinstance(x, dict):
        return {key: on_cpu(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return type(x)(on_cpu(value) for value in x)
    return x


def size_of(checkpoint):
    """Bytes of a checkpoint's tensors, which are about those of its file."""
    if isinstance(checkpoint, torch.Tensor):
        return checkpoint.numel() * checkpoint.element_size()
    values = checkpoint.values() if isinstance(checkpoint, dict) else checkpoint
    return sum(size_of(v) for v in values) if isinstance(checkpoint, (dict, list, tuple)) else 0


def check_space(folder, size, files):
    """Prints a warning where `files` more checkpoints of `size` bytes, and one while it is written, will not fit."""
    free, needed = shutil.disk_usage(folder).free, size * (files + 1)
    if needed > free:
        say(
            f"warning: the checkpoints of this run will take about {needed / 1e9:.1f} GB, and {folder!r} has "
            f"{free / 1e9:.1f} GB free; give --keep N, or another --output-dir",
            True,
        )
