"""Checkpoints written in the background, whole or not at all, and only as many as there shall be."""

import os
import shutil
import sys
import threading

import torch

from moco import checkpoint as ckpt


class Saver:
    """Writes one checkpoint at a time while training goes on; a context manager that waits for the last at its end.

    The state is copied before `save` returns, since the next step changes it. A write that fails leaves the file
    before it, is reported, and ends the run only if the next one fails too, or if it was the last.

    Args:
        last: the path of the checkpoint that the run comes from, or None.
    """

    def __init__(self, last=None):
        self.thread, self.pending, self.error, self.failed = None, None, None, False
        self.last = last

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if kind is not None and self.thread is not None:
            self.thread.join()
        elif kind is None:
            self.close()

    def save(self, checkpoint, *paths, remove=()):
        """Copies `checkpoint` and begins to write it to each of `paths`, then removes the files `remove`.

        Waits for the write before.

        Raises:
            ckpt.CheckpointError: the write before failed, and so did the one before that.
        """
        self.wait()
        self.pending = (on_cpu(checkpoint), paths, remove)
        self._begin()

    def _begin(self):
        self.thread = threading.Thread(target=self._write)
        self.thread.start()

    def _write(self):
        checkpoint, paths, remove = self.pending
        try:
            for path in paths:
                ckpt.save(checkpoint, path)
        except Exception as error:  # of torch's writer too, which has types of its own
            self.error = f"can't write {path!r}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
            return
        for path in remove:
            if os.path.exists(path):
                os.remove(path)

    def wait(self):
        """Waits for the write in flight; raises as `save`."""
        if self.thread is None:
            return
        self.thread.join()
        self.thread = None
        if self.error is None:
            self.last, self.failed, self.pending = self.pending[1][0], False, None
            return
        error, self.error = self.error, None
        if self.failed:
            raise ckpt.CheckpointError(f"{error}; nor could the checkpoint before it, so the run ends here")
        self.failed = True
        print(
            f"warning: {error}; the file before it is kept, and the run ends if the next write fails too", flush=True
        )

    def last_path(self):
        """The path of the last whole checkpoint, or None; waits for the write in flight."""
        self.wait()
        return self.last

    def close(self):
        """Waits for the last write, and tries it once more if it failed; raises as `save`."""
        self.wait()
        if self.failed:
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
    """Prints a warning where `files` checkpoints of `size` bytes, and one more while it is written, will not fit."""
    free, needed = shutil.disk_usage(folder).free, size * (files + 1)
    if needed > free:
        print(
            f"warning: the checkpoints of this run will take about {needed / 1e9:.1f} GB, and {folder!r} has "
            f"{free / 1e9:.1f} GB free; give --keep N, or another --output-dir",
            file=sys.stderr,
            flush=True,
        )
