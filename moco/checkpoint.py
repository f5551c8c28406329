"""Checkpoints in the published format: saved, loaded, compared with the command line, reduced to a backbone.

A file holds `epoch` (epochs finished), `arch`, `state_dict` (names with the prefix `module.`, as
DistributedDataParallel saves them), `optimizer`, and what else its writer adds. Every file is loaded with
`weights_only=True`.
"""

import contextlib
import io
import os
import zipfile

import torch
import torch.distributed as dist

from moco.console import first_line
from moco.distributed import collective_device, is_initialized, rank

PREFIX = "module."
TEMPORARY = ".tmp"  # behind the name of a file that is being written


class CheckpointError(ValueError):
    """A checkpoint that can't serve; the message says why and what would."""


def state_dict_of(model):
    """The state dict with the published names, whether or not `model` (never a DDP wrapper) was wrapped."""
    return {PREFIX + name: tensor for name, tensor in model.state_dict().items()}


def of_run(epoch, model, optimizer, options, **more):
    """What a checkpoint holds: the published keys and those that a resume compares.

    Args:
        epoch: epochs finished. options: dict of every option that changes results. more: further keys.
    """
    return {
        "epoch": epoch,
        "arch": options["arch"],
        "state_dict": state_dict_of(model),
        "optimizer": optimizer.state_dict(),
        "options": options,
        **more,
    }


_temporaries = set()  # that are being written


def save(checkpoint, path):
    """Writes `checkpoint` to `path` at once: a reader sees the old file or the new one, after a power cut too.

    Raises whatever the system or torch's writer raises; then the old file is as it was.
    """
    temporary = f"{path}{TEMPORARY}"  # in the same folder, hence on the same file system
    _temporaries.add(temporary)
    try:
        with open(temporary, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        if os.path.exists(temporary):
            os.remove(temporary)
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None  # torch's writer hides the disk's error behind one of its own
        raise
    finally:
        _temporaries.discard(temporary)
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too, is on the disk
    finally:
        os.close(folder)


def remove_temporaries():
    """Removes what `save` is writing at this moment; for a process that ends without waiting for it."""
    for temporary in list(_temporaries):
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


def read(path, check=True):
    """Reads a checkpoint to the CPU; without `check` the tensors only when they are used, and their checksums not.

    Raises:
        CheckpointError: the file is missing, unreadable, damaged or holds no state dict.
    """
    if not os.path.isfile(path):
        raise CheckpointError(f"no checkpoint {path!r}")
    if check:
        check_intact(path)
    try:
        mmap = not check and zipfile.is_zipfile(path)  # older files can't be mapped
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        raise CheckpointError(f"can't read the checkpoint {path!r}: {first_line(error)}") from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"the checkpoint {path!r} holds a {type(checkpoint).__name__}, not a dict")
    for key, part in (("state_dict", checkpoint.get("state_dict", {})), ("options", checkpoint.get("options", {}))):
        if not isinstance(part, dict) or not all(isinstance(name, str) for name in part):
            raise CheckpointError(f"the checkpoint {path!r} has a {key!r} that is not a dict of names")
    return checkpoint


def check_intact(path):
    """Compares the checksums in a file, which torch does not; files of torch before 1.6 have none."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except Exception as error:  # of many kinds, where the archive's directory is damaged
        damaged = first_line(error)
    if damaged is not None:
        raise CheckpointError(f"the checkpoint {path!r} is damaged ({damaged})")


def read_on_all_ranks(path):
    """What `read` returns, on every rank; only rank 0 touches the file and sends it."""
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


def backbone_of(checkpoint, path):
    """The source encoder without its `fc`, from any MoCo-style file.

    Takes names with or without `module.` and `encoder_q.`, or a bare backbone's.

    Returns:
        dict of bare names to tensors.

    Raises:
        CheckpointError: the file holds no tensors.
    """
    state = checkpoint.get("state_dict", checkpoint)
    tensors = {n: t for n, t in state.items() if isinstance(n, str) and isinstance(t, torch.Tensor)}
    state = {n.removeprefix(PREFIX): t for n, t in tensors.items()}
    if not state:
        raise CheckpointError(f"the checkpoint {path!r} holds no tensors")
    if any(name.startswith("encoder_q.") for name in state):
        state = {n.removeprefix("encoder_q."): t for n, t in state.items() if n.startswith("encoder_q.")}
    return {n: t for n, t in state.items() if not n.startswith("fc.")}


def backbone_for(model, checkpoint, path, arch):
    """The tensors of a checkpoint for a torchvision network, all of it but `fc`; checked, not loaded.

    Args:
        model: of the architecture `arch`, with any classifier.

    Returns:
        dict of names to tensors, for `model.load_state_dict(..., strict=False)`.

    Raises:
        CheckpointError: a tensor is missing, of another shape, or not of this architecture.
    """
    backbone = backbone_of(checkpoint, path)
    wanted = {n: t for n, t in model.state_dict().items() if not n.startswith("fc.")}
    hint = f"; is it of --arch {arch}?"
    if not wanted.keys() & backbone.keys():
        raise CheckpointError(f"the checkpoint {path!r} matches no tensor of the backbone{hint}")
    for name in sorted(wanted.keys() - backbone.keys()):
        # Files of very old torch lack the counters of BN, which change nothing here.
        if not name.endswith("num_batches_tracked"):
            raise CheckpointError(f"the checkpoint {path!r} lacks the backbone's {name}{hint}")
    for name, tensor in backbone.items():
        if name not in wanted:
            raise CheckpointError(f"the checkpoint {path!r} has {name}, which the backbone lacks{hint}")
        if tensor.shape != wanted[name].shape:
            shapes = f"{tuple(tensor.shape)}, the backbone {tuple(wanted[name].shape)}"
            raise CheckpointError(f"the checkpoint {path!r} has {name} of shape {shapes}{hint}")
    return backbone
