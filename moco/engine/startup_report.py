"""What a run prints at its start, and its advice if the loader is too slow."""

import torch

from moco.engine.launch_plan import cores
from moco.pipe_safe_print import say

PAPERS_BATCH = 32  # images per batch-norm group: 256 on 8 GPUs
WAIT_TO_REPORT = 0.2  # share of the time spent waiting for data
STEPS_TO_JUDGE = 100  # steps before the advice


def report(args, launch, device, start, workers):
    """Prints the seed, the devices and, after a resume, how much is done.

    Args:
        args: the options. launch: a Launch. device: of this process.
        start: (finished epochs, finished steps of the next epoch). workers: data workers per process.
    """
    if args.fast is not None:
        print(f"fast: {' '.join(args.fast) or 'nothing, since every speed flag was given'}")
    print(f"seed: {args.seed}")
    gpus = torch.cuda.device_count()
    name = (
        f"{torch.cuda.get_device_name(device)}, {gpus} visible" if device.type == "cuda" else f"CPU, {cores()} cores"
    )
    group = f", {launch.backend}" if launch.backend else ""
    print(f"devices: {launch.world} x {device.type} ({name}{group}), {workers} data workers each", flush=True)
    if args.resume:
        epochs, steps = start
        more = f" and {steps} steps" * bool(steps)
        print(f"resumed {args.resume!r}: {epochs} of {args.epochs} epochs{more} are done", flush=True)


def batchnorm_report(splits, processes, total_batch, earlier=None, slow=False):
    """How many images batch normalisation sees at a time, and which --bn-splits would match the paper.

    Args:
        splits: batch-norm groups per process. total_batch: images per step over all processes.
        earlier: how many it saw before a resume, or None.
        slow: whether groups run on a GPU without --compile.

    Returns:
        One to three lines.
    """
    batch, groups = total_batch // (processes * splits), total_batch // PAPERS_BATCH
    plural = "s" * (processes * splits > 1)
    line = f"batch normalisation: {processes * splits} group{plural} of {batch} images"
    if batch != PAPERS_BATCH and groups and total_batch % PAPERS_BATCH == 0 and groups % processes == 0:
        line += f"; --bn-splits {groups // processes} would give groups of {PAPERS_BATCH}, as in the paper"
    if earlier not in (None, batch):
        line += f"\nnote: before the resume it saw {earlier} images at a time"
        if total_batch % (earlier * processes) == 0:
            line += f"; --bn-splits {total_batch // (earlier * processes)} would keep that"
    if slow and splits > 1:
        line += "\nnote: --bn-splits without --compile starts two to three times as many GPU kernels; give --compile "
        line += "or --fast for more speed"
    return line


def advise(timer, augment_on, more_workers):
    """Prints a line of advice if much of the time so far went into waiting for data.

    Args:
        timer: a StepTimer. augment_on: the value of --augment-on. more_workers: whether more --workers are possible.
    """
    share = timer.share_waited()
    if share > WAIT_TO_REPORT:
        ways = ["--augment-on device"] * (augment_on == "cpu") + ["more --workers"] * more_workers
        say(f"note: {share:.0%} of the time is spent waiting for data; try {' or '.join(ways) or 'more CPU cores'}")
