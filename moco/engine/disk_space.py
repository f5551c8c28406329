"""How much disk space the checkpoints of a run need, and whether the output folder has it."""

import shutil

import torch

from moco.engine.command_line import existing_part
from moco.pipe_safe_print import say


def size_of(checkpoint):
    """Bytes of all tensors in nested dicts, lists and tuples, which is about the size of the file."""
    if isinstance(checkpoint, torch.Tensor):
        return checkpoint.numel() * checkpoint.element_size()
    values = checkpoint.values() if isinstance(checkpoint, dict) else checkpoint
    return sum(size_of(v) for v in values) if isinstance(checkpoint, (dict, list, tuple)) else 0


def check_disk_space(folder, size, files, report=False):
    """Prints a warning if the disk can't hold `files` more checkpoints of `size` bytes and a temporary one.

    Args:
        folder: --output-dir, which may not exist yet. report: whether to print the figures in any case.
    """
    free, needed = shutil.disk_usage(existing_part(folder)).free, size * (files + 1)
    if report:
        say(f"disk: the checkpoints take at most {needed / 1e9:.2f} GB; {folder!r} has {free / 1e9:.2f} GB free")
    if needed > free:
        say(
            f"warning: the checkpoints of this run will take about {needed / 1e9:.1f} GB, and {folder!r} has "
            f"{free / 1e9:.1f} GB free; give another --output-dir or, in main_moco.py, --keep N",
            True,
        )
