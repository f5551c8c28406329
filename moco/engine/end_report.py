"""What a run prints when it has finished: how long it took, its last checkpoint, and the command that comes next."""

import shlex
import time
from datetime import timedelta


def finished(args, started, epochs, checkpoint):
    """The line at the end of a run.

    Args:
        args: the options. started: when the run started or was resumed, on the clock of `time.monotonic`.
        epochs: how many epochs were trained since then. checkpoint: path of the last checkpoint.
    """
    took = timedelta(seconds=round(time.monotonic() - started))
    since = " since the resume" * bool(args.resume)
    plural = "s" * (epochs != 1)
    return f"finished: {epochs} epoch{plural} in {took}{since}; last checkpoint: {checkpoint!r}"


def linear_classification(args, checkpoint):
    """The line with the command that evaluates a pretrained checkpoint; `args` are the options of main_moco.py."""
    words = ["python", "main_lincls.py", "--lars"]
    for flag, name, usual in (("-a", "arch", "resnet50"), ("--crop-size", "crop_size", 224)):
        if getattr(args, name) != usual:
            words += [flag, str(getattr(args, name))]
    if args.multiprocessing_distributed:
        words.append("--multiprocessing-distributed")
    words += ["--pretrained", checkpoint, "--output-dir", f"{args.output_dir.rstrip('/') or '/'}/lincls", args.data]
    return f"next, linear classification: {shlex.join(words)}"
