"""Reads checkpoint files and checks them for damage. Every file is loaded with `weights_only=True`."""

import io
import os
import warnings
import zipfile

import torch
import torch.distributed as dist

from moco.distributed import collective_device, is_initialized, rank
from moco.engine.checkpoint_file_diagnosis import SAVE_TENSORS, missing, unreadable
from moco.engine.checkpoint_format import CheckpointError, progress_of, run_of
from moco.engine.progress import Progress
from moco.pipe_safe_print import first_line, say


def read(path, check=True):
    """Reads a checkpoint to the CPU.

    Args:
        check: whether to check the file against its checksums. Without it, tensors are read only when they are used.

    Raises:
        CheckpointError: the file is missing, unreadable or damaged, or its content is no checkpoint.
    """
    if not os.path.isfile(path):
        raise CheckpointError(missing(path))
    if check:
        check_intact(path)
    try:
        mmap = not check and zipfile.is_zipfile(path)  # files of old torch releases can't be mapped
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about files that it then refuses
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        raise CheckpointError(unreadable(path, error)) from error
    if not isinstance(checkpoint, dict):
        kind = type(checkpoint).__name__
        raise CheckpointError(f"the checkpoint {path!r} holds a {kind}, not a dict; {SAVE_TENSORS}")
    for key, part in (("state_dict", checkpoint.get("state_dict", {})), ("options", checkpoint.get("options", {}))):
        if not isinstance(part, dict) or not all(isinstance(name, str) for name in part):
            raise CheckpointError(f"the checkpoint {path!r} has a {key!r} that is not a dict with names as keys")
    return checkpoint


def check_intact(path):
    """Checks a file against the checksums that it holds, which torch does not do. Files before torch 1.6 have none.

    Raises:
        CheckpointError: a checksum differs, or the file is no complete archive.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as file:
            records = file.infolist()
            task = Progress(f"checking {path!r}", sum(record.file_size for record in records), "bytes")
            for record in records:
                with file.open(record) as content:  # at its end, the checksum is compared
                    while data := content.read(2**20):
                        task.add(len(data))
    except Exception as error:  # a damaged directory of the archive raises many kinds of errors
        raise CheckpointError(f"the checkpoint {path!r} is damaged ({first_line(error)})") from None


def check_numbers(checkpoint, path):
    """Raises CheckpointError if a count, the seed or a size in a checkpoint is not an integer of its allowed range."""
    options = checkpoint.get("options", {})
    numbers = [(checkpoint, "epoch", 0), (checkpoint, "step", 0), (checkpoint, "processes", 1)]
    for where, key, low in [*numbers, (options, "seed", 0), (options, "total_batch", 1), (options, "bn_splits", 1)]:
        value = where.get(key, low)
        if type(value) is not int or not low <= value < 2**63:
            raise CheckpointError(f"the checkpoint {path!r} has an invalid {key!r}: {value!r:.80}")


def newest_intact(paths):
    """The path of the newest intact checkpoint, by the epoch and step that it holds; None if there is none.

    A damaged checkpoint is skipped with a warning. Tensors are read only as far as needed.

    Raises:
        CheckpointError: several runs wrote the checkpoints, so it is not clear which run to continue.
    """
    found, runs = [], {}
    for path in paths:
        try:
            checkpoint = read(path, check=False)
            check_numbers(checkpoint, path)
            found.append((*progress_of(checkpoint), path))
            runs[run_of(checkpoint)] = path
        except CheckpointError as error:
            say(f"warning: {error}; it is skipped")
    if len(runs) > 1:
        whose = ", ".join(f"{path!r} of run {run}" for run, path in runs.items())
        raise CheckpointError(f"the checkpoints belong to several runs ({whose}); give --resume with one of the files")
    for *_, path in sorted(found, reverse=True):
        try:
            check_intact(path)
            return path
        except CheckpointError as error:
            say(f"warning: {error}; it is skipped")
    return None


def read_on_all_ranks(path):
    """Reads a checkpoint on rank 0 and returns it on every rank. It must have passed `read` before."""
    if not is_initialized():
        return read(path)
    device = collective_device()
    size = torch.zeros(1, dtype=torch.long, device=device)
    if rank() == 0:
        with open(path, "rb") as file:
            data = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8).to(device)
        size.fill_(len(data))
    dist.broadcast(size, src=0)
    if rank() != 0:
        data = torch.empty(int(size), dtype=torch.uint8, device=device)
    dist.broadcast(data, src=0)
    return torch.load(io.BytesIO(data.cpu().numpy()), map_location="cpu", weights_only=True)
