"""What a run prints when it has finished: how long it took, its last checkpoint, and the command that comes next."""

import shlex
import time
from datetime import timedelta

from moco.data.image_places import place_of

FEW = 200_000  # images; for fewer, LARS with its settings for ImageNet makes too few steps


def finished(args, started, checkpoint):
    """The line at the end of a run.

    Args:
        args: the options. started: when the run started or was resumed, on the clock of `time.monotonic`.
        checkpoint: path of the last checkpoint.
    """
    took = timedelta(seconds=round(time.monotonic() - started))
    since = "resume" if args.resume else "start"
    plural = "s" * (args.epochs > 1)
    return f"finished: {args.epochs} epoch{plural}, {took} after the {since}; last checkpoint: {checkpoint!r}"


def knn_classification(args, launch, checkpoint):
    """The line with the command that classifies by nearest neighbours; None if it is done, or if there is no val/.

    Arguments as of `linear_classification`.
    """
    data = args.knn_data or args.data
    if args.knn_every or place_of(data, "val") is None:
        return None
    return (
        f"next, kNN classification (takes minutes): {shlex.join(['python', '-m', 'moco.tools.knn', checkpoint, data])}"
    )


def linear_classification(args, launch, checkpoint):
    """The line with the command that evaluates a pretrained checkpoint, with as many processes on one node.

    It is None if there are no validation images.

    Args:
        args: the options of main_moco.py. launch: its Launch. checkpoint: path of the last checkpoint.
    """
    if place_of(args.data, "val") is None:
        return None
    words = ["python", "main_lincls.py", *["--lars"] * (args.images >= FEW)]
    if launch.mode == "torchrun":
        words[:1] = ["torchrun", "--nproc-per-node", str(launch.local)]
    elif args.multiprocessing_distributed:
        words.append("--multiprocessing-distributed")
    elif args.nproc:
        words += ["--nproc", str(args.nproc)]
    for flag, name, usual in (("-a", "arch", "resnet50"), ("--crop-size", "crop_size", 224)):
        if getattr(args, name) != usual:
            words += [flag, str(getattr(args, name))]
    words += ["--pretrained", checkpoint, "--output-dir", f"{args.output_dir.rstrip('/') or '/'}/lincls", args.data]
    return f"next, linear classification: {shlex.join(words)}"
