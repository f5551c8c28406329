"""Writes checkpoints in a background thread while training continues, and handles a disk that fails."""

import contextlib
import os
import threading

import torch

from moco.engine import checkpoint_atomic_write
from moco.engine.checkpoint_format import CheckpointError
from moco.pipe_safe_print import first_line, say

THREAD = "checkpoint"  # name of the writing thread


class BackgroundWriter:
    """Writes one checkpoint at a time; a context manager that waits for the last write at its end.

    `save` copies the state before it returns, since the next step changes it. If a write fails, a warning is printed
    and the previous version of the file stays. The run ends only if two writes in a row fail, or if the last write
    fails.

    Args:
        last: path of the checkpoint that the run was resumed from, or None.

    Attributes:
        last: path of the newest checkpoint that is completely written, or None.
    """

    def __init__(self, last=None):
        self.thread, self.error, self.failed, self.complaints = None, None, False, []
        self.jobs = []  # (checkpoint, paths, files to remove afterwards): the newest job, then those that failed
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
        """Copies `checkpoint`, starts to write it to each of `paths`, and then removes the files `remove`.

        First it waits for the previous write. Files that the previous write could not write are tried again, unless
        they are also in `paths`. The last of `paths` is written last; a failure to write it counts as a failed
        checkpoint.

        Raises:
            CheckpointError: the previous write failed, and so did the one before it.
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
                    checkpoint_atomic_write.save(checkpoint, path)
                except Exception as error:  # torch's writer raises types of its own, too
                    line = f"can't write {path!r}: {first_line(error)}"
                    if path == self.newest:
                        self.error = line
                    else:
                        self.complaints.append(line)
                else:
                    paths.remove(path)
                    self.last = path if path == self.newest else self.last
            for path in remove if not paths else ():
                with contextlib.suppress(OSError):  # a file that can't be removed is kept
                    os.remove(path)
        self.jobs = [job for job in self.jobs if job[1]]

    def wait(self):
        """Waits for the current write; raises the errors of `save`."""
        if self.thread is None:
            return
        self.thread.join()
        self.thread = None
        for line in self.complaints:
            say(f"warning: {line}; it is tried again with the next checkpoint")
        error, self.error, self.complaints = self.error, None, []
        if error is None:
            self.failed = False
            return
        if self.failed:
            raise CheckpointError(f"{error}; the checkpoint before it could not be written either, so the run ends")
        self.failed = True
        say(f"warning: {error}; the previous file is kept, and the run ends if the next write fails, too")

    def last_path(self):
        """Waits for the current write; returns the path of the newest complete checkpoint, or None."""
        if self.thread is not None:
            self.thread.join()
        return self.last

    def close(self):
        """Waits for the last write and tries once more what failed; raises the errors of `save`."""
        self.wait()
        if self.jobs:
            self._begin()
            self.wait()


def on_cpu(x):
    """Copies nested dicts, lists and tuples; every tensor is copied into CPU memory of its own."""
    if isinstance(x, torch.Tensor):
        return x.detach().to("cpu", copy=True)
    if isinstance(x, dict):
        return {key: on_cpu(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return type(x)(on_cpu(value) for value in x)
    return x
