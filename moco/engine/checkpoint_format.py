"""What a checkpoint file holds: the keys of the published checkpoints, and further keys for a resume.

The published keys are `epoch` (number of finished epochs), `arch`, `state_dict` (each name with the prefix `module.`,
as DistributedDataParallel saves it) and `optimizer`. This project adds `options`, `step`, `processes`, `run` and more.
"""

import re

PREFIX = "module."
UNKNOWN = "unknown"  # stands for the id of the run that wrote a file without an id


class CheckpointError(ValueError):
    """A checkpoint that can't be used; the message says why, and what would work."""


def state_dict_of(model):
    """The state dict of `model` (not a DDP wrapper) with the published names."""
    return {PREFIX + name: tensor for name, tensor in model.state_dict().items()}


def checkpoint_of(epoch, model, optimizer, options, **more):
    """Collects the content of a checkpoint, without copying any tensor.

    Args:
        epoch: number of finished epochs.
        model: a module, not a DDP wrapper. optimizer: its optimizer.
        options: dict of every option that changes results.
        more: further keys.
    """
    return {
        "epoch": epoch,
        "arch": options["arch"],
        "state_dict": state_dict_of(model),
        "optimizer": optimizer.state_dict(),
        "options": options,
        **more,
    }


def progress_of(checkpoint):
    """How far the run had come: (number of finished epochs, number of finished steps of the next epoch)."""
    return checkpoint.get("epoch", 0), checkpoint.get("step", 0)


def run_of(checkpoint):
    """The id of the run that wrote `checkpoint`. It is UNKNOWN for the published files and those of older commits."""
    run = checkpoint.get("run")
    return run if isinstance(run, str) and re.fullmatch("[0-9a-f]{8}", run) else UNKNOWN


def bn_batch_of(checkpoint):
    """How many images batch normalisation saw at a time before `checkpoint` was written; None if that is unknown."""
    if not {"processes", "options"} <= checkpoint.keys():
        return None
    stored = checkpoint["options"]
    return stored["total_batch"] // (checkpoint["processes"] * stored.get("bn_splits", 1))
