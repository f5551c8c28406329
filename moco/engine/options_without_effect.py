"""Names the options of a command line that change nothing in this run, so that nobody relies on them."""

import torch

REASONS = {  # option: (a function of the options and the number of processes: whether it has no effect; why)
    "asym_bn_group": (lambda args, _: not args.enable_asym_bn, "without --enable-asym-bn"),
    "mini_crop_size": (lambda args, _: not args.enable_multicrop, "without --enable-multicrop"),
    "keep": (lambda args, _: args.keep >= args.epochs, "since the run has no more epochs than that"),
    "save_every": (
        lambda args, _: args.save_every >= getattr(args, "images", float("inf")) / args.total_batch,
        "since an epoch has no more steps than that",
    ),
    "force": (lambda args, _: not args.resume, "without a checkpoint to resume"),
    "timeout": (lambda args, world: world == 1, "with one process, which nobody watches"),
    "dist_backend": (lambda args, world: world == 1, "with one process"),
    "deterministic": (
        lambda args, _: not torch.cuda.is_available(),
        "without a GPU, since a CPU always repeats a run",
    ),
}


def notes(args, given, world):
    """The lines for the log, one for each option that was given in vain.

    Args:
        args: the checked options. given: names of the options that the user gave. world: number of processes.
    """
    vain = [name for name in REASONS if name in given and REASONS[name][0](args, world)]
    return [f"note: --{name.replace('_', '-')} has no effect {REASONS[name][1]}" for name in vain]
