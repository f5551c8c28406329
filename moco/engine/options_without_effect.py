"""Names the options of a command line that change nothing in this run, so that nobody relies on them."""

import torch

from moco.engine.design_flags import designs_of

TRAINING = {
    "epochs",
    "start_epoch",
    "lr",
    "momentum",
    "weight_decay",
    "lars",
    "save_every",
    "on_bad_image",
    "augment_on",
    "tensorboard",
}
REASONS = {  # option: (a function of the options and of `alone`, whether it has no effect; why)
    "asym_bn_group": (lambda args, _: "asym_bn" not in designs_of(args), "without the design asym_bn"),
    "mini_crop_size": (lambda args, _: "multicrop" not in designs_of(args), "without the design multicrop"),
    "knn_data": (lambda args, _: args.knn_every is None, "without --knn-every"),
    "knn_k": (lambda args, _: args.knn_every is None, "without --knn-every"),
    "keep": (lambda args, _: args.keep >= args.epochs, "since the run has no more epochs than that"),
    "force": (lambda args, _: not args.resume, "without a checkpoint to resume"),
    "timeout": (lambda args, alone: alone, "since a run of one process has no watchdog"),
    "dist_backend": (lambda args, alone: alone, "with one process"),
    "deterministic": (
        lambda args, _: not torch.cuda.is_available(),
        "without a GPU, since a CPU always repeats a run",
    ),
}


def notes(args, given, alone):
    """The lines for the log, one for each option that was given in vain.

    Args:
        args: the checked options. given: names of the options that the user gave.
        alone: whether there is only this process, without a process group.
    """
    reasons = {name: reason for name, (in_vain, reason) in REASONS.items() if name in given and in_vain(args, alone)}
    if getattr(args, "evaluate", False):
        reasons |= dict.fromkeys(sorted(given & TRAINING), "since --evaluate trains nothing")
    return [f"note: --{name.replace('_', '-')} has no effect {reason}" for name, reason in reasons.items()]
