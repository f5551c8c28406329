"""Checkpoints in the published format: saved, loaded, compared with the command line, reduced to a backbone.

A file holds `epoch` (epochs finished), `arch`, `state_dict` (names with the prefix `module.`, as
DistributedDataParallel saves them), `optimizer`, and what else its writer adds. Every file is loaded with
`weights_only=True`.
"""

import io
import os
import zipfile

import torch
import torch.distributed as dist

from moco.distributed import collective_device, is_initialized, rank

PREFIX = "module."
LABELS = {  # of the stored options that are not one flag
    "total_batch": "--batch-size times the nodes",
    "init_lr": "the initial learning rate, --lr times --batch-size / 256,",
    "images": "the number of images",
}


def label(name):
    """A stored option's name as a message says it."""
    return LABELS.get(name, "--" + name.replace("_", "-"))


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


def save(checkpoint, path):
    """Writes `checkpoint` to `path` at once: a reader sees the old file or the new one, after a power cut too.

    Raises whatever the system or torch's writer raises; then the old file is as it was.
    """
    temporary = f"{path}.tmp"  # in the same folder, hence on the same file system
    try:
        with open(temporary, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too, is on the disk
    finally:
        os.close(folder)


def read(path, mmap=False):
    """Reads a checkpoint to the CPU; with `mmap` the tensors only when they are used.

    Raises:
        CheckpointError: the file is missing, unreadable or holds no state dict.
    """
    if not os.path.isfile(path):
        raise CheckpointError(f"no checkpoint {path!r}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"can't read the checkpoint {path!r}: {reason}") from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"the checkpoint {path!r} holds a {type(checkpoint).__name__}, not a dict")
    for key, part in (("state_dict", checkpoint.get("state_dict", {})), ("options", checkpoint.get("options", {}))):
        if not isinstance(part, dict) or not all(isinstance(name, str) for name in part):
            raise CheckpointError(f"the checkpoint {path!r} has a {key!r} that is not a dict of names")
    return checkpoint


def newest(paths):
    """The path of the newest intact checkpoint, by the (epoch, step) inside; None where there is none.

    A damaged one is passed over with a warning. Only the newest ones' tensors are read.
    """
    places = []
    for path in paths:
        try:
            places.append((*place_of(read(path, mmap=True)), path))
        except CheckpointError as error:
            print(f"warning: {error}; it is passed over", flush=True)
    for *_, path in sorted(places, reverse=True):
        try:
            with zipfile.ZipFile(path) as file:
                damaged = file.testzip()  # compares checksums, which torch does not
        except (OSError, zipfile.BadZipFile) as error:
            damaged = error
        if damaged is None:
            return path
        print(f"warning: the checkpoint {path!r} is damaged ({damaged}); it is passed over", flush=True)
    return None


def place_of(checkpoint):
    """(epochs finished, steps done of the next)."""
    return checkpoint.get("epoch", 0), checkpoint.get("step", 0)


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


def check_resumable(checkpoint, path, model, optimizer, options, force=False):
    """Compares a checkpoint with the run that wants to continue it.

    Args:
        checkpoint: as read. path: for the messages.
        model, optimizer: such as the run will load into; nothing is loaded here.
        options: dict of every option that changes results, by name; compared with the file's where it has them.
        force: pass over differing options.

    Raises:
        CheckpointError: keys are missing, or architecture, names, shapes or options differ.
    """
    for key, kind in (("epoch", int), ("arch", str), ("state_dict", dict), ("optimizer", dict)):
        if not isinstance(checkpoint.get(key), kind):
            raise CheckpointError(
                f"the checkpoint {path!r} has no {key!r}; --resume needs a file that this script wrote"
            )
    if checkpoint["arch"] != options["arch"]:
        raise CheckpointError(f"the checkpoint {path!r} is of --arch {checkpoint['arch']}, not {options['arch']}")
    saved, wanted = checkpoint["state_dict"], state_dict_of(model)
    for name in sorted(saved.keys() ^ wanted.keys()):
        what = "lacks" if name in wanted else "has, beyond this model,"
        raise CheckpointError(f"the checkpoint {path!r} {what} the tensor {name}; is it of this script?")
    for name, tensor in wanted.items():
        if saved[name].shape != tensor.shape:
            raise CheckpointError(
                f"the checkpoint {path!r} has {name} of shape {tuple(saved[name].shape)}, this run of "
                f"{tuple(tensor.shape)}; give the flags that it was trained with"
            )
    _check_optimizer(checkpoint["optimizer"], path, optimizer)
    if force:
        return
    for name, value in checkpoint.get("options", {}).items():
        if name in options and options[name] != value:
            raise CheckpointError(
                f"{label(name)} is {options[name]}, but the checkpoint {path!r} was trained with {value}; "
                "give that value, or --force to go on with another"
            )


def _check_optimizer(saved, path, optimizer):
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    try:
        indices = [i for group in saved["param_groups"] for i in group["params"]]
        buffers = [saved["state"].get(i, {}).get("momentum_buffer") for i in indices]
        fits = len(indices) == len(parameters) and all(
            b is None or b.shape == p.shape for b, p in zip(buffers, parameters, strict=True)
        )
    except (KeyError, TypeError, AttributeError):
        fits = False
    if not fits:
        raise CheckpointError(f"the optimizer state of the checkpoint {path!r} does not fit this model's parameters")


def restore(checkpoint, model, optimizer, scaler=None):
    """Loads the weights, the optimizer's state and the loss scaler's.

    The optimizer's hyper-parameters stay those of the command line. Its momentum takes the memory format of its
    parameter, as a fused update needs it; a published one is NCHW.
    """
    model.load_state_dict({n.removeprefix(PREFIX): t for n, t in checkpoint["state_dict"].items()})
    ours = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(checkpoint["optimizer"])
    for group, hyper_parameters in zip(optimizer.param_groups, ours, strict=True):
        group.update(hyper_parameters)
    for parameter, state in optimizer.state.items():
        if state.get("momentum_buffer") is not None:
            state["momentum_buffer"] = torch.empty_like(parameter).copy_(state["momentum_buffer"])
    if scaler is not None and checkpoint.get("scaler"):
        scaler.load_state_dict(checkpoint["scaler"])


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
