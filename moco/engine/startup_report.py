"""What a run prints at its start, and its advice if the loader is too slow."""

import torch

from moco.data.image_decoding import DECODER, WHY_NO_FASTER
from moco.engine.architectures import SMALL
from moco.engine.disk_space import size_of
from moco.engine.launch_plan import cores
from moco.pipe_safe_print import say

PAPERS_BATCH = 32  # images per batch-norm group: 256 on 8 GPUs
WAIT_TO_REPORT = 0.2  # share of the time spent waiting for data
STEPS_TO_JUDGE = 100  # steps before the advice
FEW_STEPS = 100  # a training of fewer steps learns next to nothing


def report(args, launch, device, start, workers):
    """Prints the small stem, the seed, the devices, the decoder of JPEGs and, after a resume, how much is done.

    Args:
        args: the options. launch: a Launch. device: of this process.
        start: (finished epochs, finished steps of the next epoch). workers: data workers per process.
    """
    if args.fast is not None:
        say(f"fast: {' '.join(args.fast) or 'nothing, since every speed flag was given'}")
    if args.stem == SMALL:
        say(f"network: {args.arch} with the small stem")
    say(f"run: {args.run}")
    say(f"seed: {args.seed}")
    gpus = torch.cuda.device_count()
    name = (
        f"{torch.cuda.get_device_name(device)}, {gpus} visible" if device.type == "cuda" else f"CPU, {cores()} cores"
    )
    group = f", {launch.backend}" if launch.backend else ""
    plural = "s" * (workers != 1)
    say(f"devices: {launch.world} x {device.type} ({name}{group}), {workers} data worker{plural} each")
    say(f"JPEG decoder: {DECODER.name}{WHY_NO_FASTER}")
    epochs, steps = start
    more = f" and {steps} steps" * bool(steps)
    if args.resume and getattr(args, "evaluate", False):
        say(f"evaluating {args.resume!r}, saved after {epochs} epoch{'s' * (epochs != 1)}{more}")
    elif args.resume:
        say(f"resumed {args.resume!r}: {epochs} of {args.epochs} epochs{more} are done")


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


def queue_notes(keys, images):
    """Yields a note if the queue of `keys` keys is too long for the number of training images."""
    if keys > images / 2:
        yield (
            f"note: with --moco-k {keys} and {images} images, the queue often holds keys of a step's own images, "
            f"which then count as negatives; give --moco-k {max(images // 2, 1)} or less"
        )


def steps_report(steps, epochs, place, save_every):
    """Yields lines on how many steps a run takes.

    Args:
        steps: in an epoch. place: (finished epochs, finished steps of the next epoch). save_every: of --save-every.
    """
    whole = steps * epochs
    left = whole - steps * place[0] - place[1]
    yield f"steps: {steps} per epoch, {whole} in all" + (f", {left} left" if left != whole else "")
    if save_every and save_every >= steps:
        yield f"note: --save-every has no effect, since an epoch has {steps} steps"
    if whole < FEW_STEPS:
        yield (
            f"note: {whole} step{'s are' if whole > 1 else ' is'} very few for a training; give more --epochs, more "
            "images or a smaller --batch-size"
        )


def memory_report(model):
    """A line on the memory that the model, its queue, its gradients and their momentum take."""
    state = model.state_dict()
    queue = size_of({name: tensor for name, tensor in state.items() if name.startswith("queue")})
    trained = size_of([p for p in model.parameters() if p.requires_grad])
    parts = {"model": size_of(state) - queue, "queue": queue, "gradients and momentum": 2 * trained}
    words = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in parts.items() if size)
    return f"memory: {words}; activations and batches come in addition"


def advise(timer, augment_on, more_workers):
    """Prints a line of advice if much of the time so far went into waiting for data.

    Args:
        timer: a StepTimer. augment_on: the value of --augment-on. more_workers: whether more --workers are possible.
    """
    share = timer.share_waited()
    if share > WAIT_TO_REPORT:
        ways = ["--augment-on device"] * (augment_on == "cpu") + ["more --workers"] * more_workers
        say(f"note: {share:.0%} of the time is spent waiting for data; try {' or '.join(ways) or 'more CPU cores'}")
