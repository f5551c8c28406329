"""Going on from a checkpoint: which one, whether it is of this run, and what is loaded from it."""

import secrets

import torch

from moco import checkpoint as ckpt
from moco.checkpoint import PREFIX, CheckpointError, state_dict_of
from moco.console import first_line
from moco.distributed import from_all

# Flags that may differ between a run and its continuation: where things are and how they are computed, not what.
# The batch size is compared as the sum over the nodes.
FREE = {
    *("data", "workers", "print_freq", "resume", "force", "output_dir", "tag", "start_epoch", "batch_size"),
    *("multiprocessing_distributed", "nproc", "world_size", "rank", "dist_url", "dist_backend", "gpu"),
    *("pretrained", "evaluate", "fast", "save_every", "keep", "timeout", "on_bad_image"),
}
# Those of them that decide what the processes do together, and must be the same on all.
COMMON = {"print_freq", "save_every", "start_epoch", "evaluate", "on_bad_image", "timeout"}
DEPENDENT = {"asym_bn_group": "enable_asym_bn", "mini_crop_size": "enable_multicrop"}  # without effect unless it is on
LABELS = {  # of the stored options that are not one flag
    "total_batch": "--batch-size times the nodes",
    "init_lr": "the initial learning rate, --lr times --batch-size / 256,",
    "images": "the number of images",
}


def label(name):
    """A stored option's name as a message says it."""
    return LABELS.get(name, "--" + name.replace("_", "-"))


def result_options(args):
    """Every option that changes a run's result, by name; a checkpoint keeps them for the comparison at its resume."""
    idle = {name for name, design in DEPENDENT.items() if not getattr(args, design, False)}
    return {name: value for name, value in vars(args).items() if name not in FREE | idle}


def check_same_options(args):
    """Compares what changes the result, or the collectives, over all ranks; several nodes' command lines may differ.

    Raises:
        RuntimeError: on every rank, where a flag differs; names it and both values.
    """
    ours = result_options(args) | {name: value for name, value in vars(args).items() if name in COMMON}
    for r, theirs in enumerate(everywhere := from_all(ours)):
        for name, value in everywhere[0].items():
            if theirs.get(name) != value:
                raise RuntimeError(f"{label(name)} is {value} on rank 0, but {theirs.get(name)} on rank {r}")


def check_resume(args, launch, build, candidates, any_options=False):
    """Refuses a checkpoint that --resume can't continue, and takes the seed from it where none is given.

    Only global rank 0 reads the file. For "auto", `args.resume` becomes the newest intact of the candidates, or None.

    Args:
        build: called without arguments; returns (model, optimizer) as the run will have them.
        candidates: paths for "auto".
        any_options: the flags need not be the checkpoint's.
    """
    if not args.resume or not launch.has_rank_0:
        return
    auto = args.resume == "auto"
    if auto:
        args.resume = newest(candidates)
        if args.resume is None:
            print(f"resume: no checkpoint in {args.output_dir!r} to go on from, this is a fresh start", flush=True)
            return
    checkpoint = ckpt.read(args.resume, check=not auto)  # which `newest` has done
    _check_numbers(checkpoint, args.resume)
    if args.seed is None:
        args.seed = checkpoint.get("options", {}).get("seed", secrets.randbits(31))
    force = args.force or any_options
    compared = result_options(args)
    checkpoint.get("options", {}).setdefault("bn_splits", 1)  # which files from before that flag lack
    if checkpoint.get("processes") != launch.world:
        compared.pop("bn_splits", None)  # another number of processes may want it; the start says what it comes to
    check_resumable(checkpoint, args.resume, *build(), compared, force)
    if not force and args.start_epoch not in (None, checkpoint["epoch"]):
        raise ValueError(
            f"--start-epoch is {args.start_epoch}, but the checkpoint {args.resume!r} has finished "
            f"{checkpoint['epoch']} epochs; leave the flag out, or give --force"
        )


def newest(paths):
    """The path of the newest intact checkpoint, by the (epoch, step) inside; None where there is none.

    A damaged one is passed over with a warning. Only the newest ones' tensors are read.
    """
    places = []
    for path in paths:
        try:
            checkpoint = ckpt.read(path, check=False)
            _check_numbers(checkpoint, path)
            places.append((*place_of(checkpoint), path))
        except CheckpointError as error:
            print(f"warning: {error}; it is passed over", flush=True)
    for *_, path in sorted(places, reverse=True):
        try:
            ckpt.check_intact(path)
            return path
        except CheckpointError as error:
            print(f"warning: {error}; it is passed over", flush=True)
    return None


def place_of(checkpoint):
    """(epochs finished, steps done of the next)."""
    return checkpoint.get("epoch", 0), checkpoint.get("step", 0)


def _check_numbers(checkpoint, path):
    options = checkpoint.get("options", {})
    numbers = [(checkpoint, "epoch", 0), (checkpoint, "step", 0), (checkpoint, "processes", 1)]
    for where, key, low in [*numbers, (options, "seed", 0), (options, "total_batch", 1), (options, "bn_splits", 1)]:
        value = where.get(key, low)
        if type(value) is not int or not low <= value < 2**63:
            raise CheckpointError(f"the checkpoint {path!r} has a {key!r} that is no such number: {value!r:.80}")


def check_resumable(checkpoint, path, model, optimizer, options, force=False):
    """Compares a checkpoint with the run that wants to continue it.

    Args:
        checkpoint: as read. path: for the messages.
        model, optimizer: such as the run will load into, but others: what these are given is lost.
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
    _check_numbers(checkpoint, path)
    if checkpoint["arch"] != options["arch"]:
        raise CheckpointError(f"the checkpoint {path!r} is of --arch {checkpoint['arch']}, not {options['arch']}")
    saved, wanted = checkpoint["state_dict"], state_dict_of(model)
    for name in sorted(saved.keys() ^ wanted.keys()):
        what = "lacks" if name in wanted else "has, beyond this model,"
        raise CheckpointError(f"the checkpoint {path!r} {what} the tensor {name}; is it of this script?")
    for name, tensor in wanted.items():
        shape = tuple(getattr(saved[name], "shape", ()))
        if shape != tensor.shape:
            raise CheckpointError(
                f"the checkpoint {path!r} has {name} of shape {shape}, this run of {tuple(tensor.shape)}; give the "
                "flags that it was trained with"
            )
    _check_optimizer(checkpoint["optimizer"], path, optimizer)
    try:
        restore(checkpoint, model, optimizer)
    except Exception as error:
        raise CheckpointError(f"the checkpoint {path!r} can't be loaded: {first_line(error)}") from error
    if force:
        return
    for name, value in checkpoint.get("options", {}).items():
        if name in options and (type(options[name]) is not type(value) or options[name] != value):
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
    except Exception:  # whatever stands where it should not
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


def bn_batch(checkpoint):
    """Images that batch normalisation saw at a time when `checkpoint` was written; None where it does not say."""
    if not {"processes", "options"} <= checkpoint.keys():
        return None
    stored = checkpoint["options"]
    return stored["total_batch"] // (checkpoint["processes"] * stored.get("bn_splits", 1))
