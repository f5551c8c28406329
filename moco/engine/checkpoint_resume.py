"""--resume: which checkpoint to continue from, whether it fits this run, and what is loaded from it."""

import os
import secrets

import torch

from moco.engine.checkpoint_file_read import check_numbers, newest_intact, read
from moco.engine.checkpoint_format import PREFIX, CheckpointError, progress_of, run_of, state_dict_of
from moco.engine.design_flags import as_flags, designs_of
from moco.engine.pretrained_backbone import encoder_of, stem_of
from moco.engine.result_changing_options import label, result_options, shown
from moco.pipe_safe_print import first_line, say


def check_resume(args, launch, build, names, any_options=False):
    """Refuses a checkpoint that --resume can't continue. Without --seed, `args.seed` becomes the checkpoint's seed.

    Only the process that is rank 0, or that will start it, reads the file. For "auto", `args.resume` becomes the
    newest intact candidate, or None. `args.run` becomes the id of the run that is continued. If `args.stem` is None,
    it becomes the checkpoint's.

    Args:
        build: called without arguments; returns (model, optimizer) as the run will have them.
        names: the script's CheckpointNames; "auto" chooses from its files.
        any_options: whether the flags may differ from the checkpoint's.

    Returns:
        (finished epochs, finished steps of the next epoch) from which the run continues; None if it starts afresh.

    Raises:
        CheckpointError, ValueError: the checkpoint does not fit this run.
    """
    if not args.resume or not launch.has_rank_0:
        return None
    auto = args.resume == "auto"
    if auto:
        args.resume = newest_intact(names.resumable())
        if args.resume is None:
            line = f"resume: no checkpoint in {args.output_dir!r}; this run starts from the beginning"
            if earlier := max(names.in_earlier_folders(), key=os.path.getmtime, default=None):
                line += f", though there is {earlier!r} of an earlier run"
            say(line)
            return None
    checkpoint = read(args.resume, check=not auto)  # `newest_intact` has compared the checksums already
    check_numbers(checkpoint, args.resume)
    if args.seed is None:
        args.seed = checkpoint.get("options", {}).get("seed", secrets.randbits(31))
    if args.stem is None:
        args.stem = stem_of(checkpoint, encoder_of(checkpoint, args.resume))
    force = args.force or any_options
    compared = result_options(args)
    if "options" in checkpoint:  # older files were written before these flags existed
        designs = as_flags(designs_of(checkpoint["options"]))
        checkpoint["options"] = {"bn_splits": 1, "recipe": [], "design": designs} | checkpoint["options"]
    if checkpoint.get("processes") != launch.world:
        # --bn-splits may have to change when the number of processes changes, so it is not compared then. The start-up
        # report prints a note if batch normalisation sees another number of images.
        compared.pop("bn_splits", None)
    deterministic = compared.pop("deterministic")  # may differ, since both give valid results
    earlier = checkpoint.get("options", {}).get("deterministic", deterministic)
    if earlier != deterministic and torch.cuda.device_count() and not any_options:
        now, then = ("on" if value else "off" for value in (deterministic, earlier))
        difference = f"--deterministic is {now}, but was {then} before the resume"
        say(f"note: {difference}; the run as a whole can't be repeated bit by bit")
    check_resumable(checkpoint, args.resume, *build(), compared, force)
    if not force and args.start_epoch not in (None, checkpoint["epoch"]):
        raise ValueError(
            f"--start-epoch is {args.start_epoch}, but the checkpoint {args.resume!r} has finished "
            f"{checkpoint['epoch']} epochs; leave the flag out, or give --force"
        )
    args.run = run_of(checkpoint)
    return progress_of(checkpoint) if args.start_epoch in (None, checkpoint["epoch"]) else (args.start_epoch, 0)


def check_resumable(checkpoint, path, model, optimizer, options, force=False):
    """Compares a checkpoint with the run that wants to continue it.

    Args:
        checkpoint: as `read` returns it. path: for the messages.
        model, optimizer: temporary ones, built like those of the run; their values are overwritten.
        options: dict of every option that changes results; each one that the file has too is compared.
        force: whether options may differ.

    Raises:
        CheckpointError: keys are missing, or the architecture, names, shapes or options differ.
    """
    for key, kind in (("epoch", int), ("arch", str), ("state_dict", dict), ("optimizer", dict)):
        if not isinstance(checkpoint.get(key), kind):
            raise CheckpointError(
                f"the checkpoint {path!r} has no {key!r}; --resume needs a file that this script wrote"
            )
    check_numbers(checkpoint, path)
    if checkpoint["arch"] != options["arch"]:
        raise CheckpointError(f"the checkpoint {path!r} is of --arch {checkpoint['arch']}, not {options['arch']}")
    theirs, ours = (stem_of({}, encoder_of(state, path)) for state in (checkpoint, state_dict_of(model)))
    if theirs != ours:
        raise CheckpointError(f"the checkpoint {path!r} is of --stem {theirs}, not {ours}; give --stem {theirs}")
    saved, wanted = checkpoint["state_dict"], state_dict_of(model)
    if PREFIX + "queue" in saved.keys() - wanted.keys():
        raise CheckpointError(
            f"the checkpoint {path!r} is one of pretraining; main_moco.py resumes it, and main_lincls.py takes it as "
            "--pretrained"
        )
    if "best_acc1" in checkpoint and PREFIX + "queue" in wanted:
        raise CheckpointError(
            f"the checkpoint {path!r} is one of linear classification; only main_lincls.py can resume it"
        )
    for name in sorted(saved.keys() ^ wanted.keys()):
        what = f"lacks the tensor {name}" if name in wanted else f"has the tensor {name}, which this model lacks"
        raise CheckpointError(f"the checkpoint {path!r} {what}; was it written by this script?")
    for name, tensor in wanted.items():
        shape = tuple(getattr(saved[name], "shape", ()))
        if shape != tensor.shape:
            raise CheckpointError(
                f"{name} has the shape {shape} in the checkpoint {path!r}, but {tuple(tensor.shape)} in this run; "
                "give the flags that the checkpoint was trained with"
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
                f"{label(name)} is {shown(options[name])}, but the checkpoint {path!r} was trained with "
                f"{shown(value)}; "
                "use the setting of the checkpoint, or give --force to continue with this one"
            )


def _check_optimizer(saved, path, optimizer):
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    try:
        indices = [i for group in saved["param_groups"] for i in group["params"]]
        buffers = [saved["state"].get(i, {}).get("momentum_buffer") for i in indices]
        fits = len(indices) == len(parameters) and all(
            b is None or b.shape == p.shape for b, p in zip(buffers, parameters, strict=True)
        )
    except Exception:  # the file may hold anything in these places
        fits = False
    if not fits:
        raise CheckpointError(f"the optimizer state of the checkpoint {path!r} does not fit this model's parameters")


def restore(checkpoint, model, optimizer, scaler=None):
    """Loads the weights, the optimizer's state and, if the checkpoint has one, the state of the loss scaler.

    The optimizer keeps the hyper-parameters of the command line. Each loaded momentum buffer is converted
    to the memory format of its parameter, because a fused update needs equal formats; those of published files are
    NCHW.

    Args:
        checkpoint: as `read` returns it. model: a module. optimizer: its optimizer. scaler: a GradScaler or None.
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
