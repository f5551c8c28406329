"""Checkpoints in the published format: saved, loaded, compared with the command line, reduced to a backbone.

A file holds `epoch` (epochs finished), `arch`, `state_dict` (names with the prefix `module.`, as
DistributedDataParallel saves them), `optimizer`, and what else its writer adds. Every file is loaded with
`weights_only=True`.
"""

import io
import os

import torch
import torch.distributed as dist

from moco.distributed import is_initialized, rank

PREFIX = "module."


class CheckpointError(ValueError):
    """A checkpoint that can't serve; the message says why and what would."""


def state_dict_of(model):
    """The state dict with the published names, whether or not `model` (never a DDP wrapper) was wrapped."""
    return {PREFIX + name: tensor for name, tensor in model.state_dict().items()}


def save(checkpoint, path):
    """Writes `checkpoint` to `path` at once: a reader sees the old file or the new one."""
    temporary = f"{path}.tmp"
    torch.save(checkpoint, temporary)
    os.replace(temporary, path)


def read(path):
    """Reads a checkpoint to the CPU.

    Raises:
        CheckpointError: the file is missing, unreadable or holds no state dict.
    """
    if not os.path.isfile(path):
        raise CheckpointError(f"no checkpoint {path!r}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"can't read the checkpoint {path!r}: {reason}") from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"the checkpoint {path!r} holds a {type(checkpoint).__name__}, not a dict")
    return checkpoint


def read_on_all_ranks(path):
    """What `read` returns, on every rank; only rank 0 touches the file."""
    if not is_initialized():
        return read(path)
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else "cpu"
    size = torch.zeros(1, dtype=torch.long, device=device)
    if rank() == 0:
        with open(path, "rb") as file:
            data = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8).to(device)
        size.fill_(len(data))
    dist.broadcast(size, src=0)
    if rank() != 0:
        data = torch.empty(int(size), dtype=torch.uint8, device=device)
    dist.broadcast(data, src=0)
    return torch.load(io.BytesIO(data.cpu().numpy().tobytes()), map_location="cpu", weights_only=True)


def check_resumable(checkpoint, path, arch, state_dict, options, force=False):
    """Compares a checkpoint with the run that wants to continue it.

    Args:
        checkpoint: as read. path: for the messages.
        arch: the architecture asked for.
        state_dict: of the model to load into (any device, `meta` too), with published names.
        options: dict of every option that changes results, by name; compared with the file's where it has them.
        force: pass over differing options.

    Raises:
        CheckpointError: keys are missing, or architecture, names, shapes or options differ.
    """
    for key in ("epoch", "arch", "state_dict", "optimizer"):
        if key not in checkpoint:
            raise CheckpointError(f"the checkpoint {path!r} has no {key!r}; --resume needs one that this script wrote")
    if checkpoint["arch"] != arch:
        raise CheckpointError(f"the checkpoint {path!r} is of --arch {checkpoint['arch']}, not {arch}")
    saved = checkpoint["state_dict"]
    for name in sorted(saved.keys() ^ state_dict.keys()):
        what = "lacks" if name in state_dict else "has, beyond this model,"
        raise CheckpointError(f"the checkpoint {path!r} {what} the tensor {name}")
    for name, tensor in state_dict.items():
        if saved[name].shape != tensor.shape:
            raise CheckpointError(
                f"the checkpoint {path!r} has {name} of shape {tuple(saved[name].shape)}, this run of "
                f"{tuple(tensor.shape)}; give the flags that it was trained with"
            )
    if force:
        return
    for name, value in checkpoint.get("options", {}).items():
        if name in options and options[name] != value:
            flag = "--" + name.replace("_", "-")
            raise CheckpointError(
                f"{flag} is {options[name]}, but the checkpoint {path!r} was trained with {value}; give that value, "
                "or --force to go on with another"
            )


def backbone_of(checkpoint, path):
    """The source encoder without its `fc`, from any MoCo-style file.

    Takes names with or without `module.` and `encoder_q.`, or a bare backbone's.

    Returns:
        dict of bare names to tensors.

    Raises:
        CheckpointError: the file holds no tensors.
    """
    state = checkpoint.get("state_dict", checkpoint)
    state = {n.removeprefix(PREFIX): t for n, t in state.items() if isinstance(t, torch.Tensor)}
    if not state:
        raise CheckpointError(f"the checkpoint {path!r} holds no tensors")
    if any(name.startswith("encoder_q.") for name in state):
        state = {n.removeprefix("encoder_q."): t for n, t in state.items() if n.startswith("encoder_q.")}
    return {n: t for n, t in state.items() if not n.startswith("fc.")}


def load_backbone(model, checkpoint, path, arch):
    """Loads a backbone into a torchvision network, all of it but `fc`.

    Returns:
        The number of tensors that matched.

    Raises:
        CheckpointError: a tensor is missing, of another shape, or not of this architecture; `model` is unchanged.
    """
    backbone = backbone_of(checkpoint, path)
    wanted = {n: t for n, t in model.state_dict().items() if not n.startswith("fc.")}
    matched = wanted.keys() & backbone.keys()
    hint = f"; is it of --arch {arch}?"
    if not matched:
        raise CheckpointError(f"the checkpoint {path!r} matches no tensor of the backbone{hint}")
    for name in sorted(wanted.keys() - matched):
        # Files of very old torch lack the counters of BN, which change nothing here.
        if not name.endswith("num_batches_tracked"):
            raise CheckpointError(f"the checkpoint {path!r} lacks the backbone's {name}{hint}")
    for name in sorted(backbone.keys() - matched):
        raise CheckpointError(f"the checkpoint {path!r} has {name}, which the backbone lacks{hint}")
    for name in matched:
        if backbone[name].shape != wanted[name].shape:
            shapes = f"{tuple(backbone[name].shape)}, the backbone {tuple(wanted[name].shape)}"
            raise CheckpointError(f"the checkpoint {path!r} has {name} of shape {shapes}{hint}")
    model.load_state_dict({n: backbone[n] for n in matched}, strict=False)
    return len(matched)
