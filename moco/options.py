"""The flags that both scripts share, and the checks at the door: one clear line, exit code 2, before any work."""

import argparse
import math
import os
import re
import secrets
import sys

import torch
from torchvision import models

from moco import checkpoint as ckpt
from moco import speed
from moco.bad_images import Substitutes
from moco.console import say
from moco.launch import cores, plan_launch

# The networks of torchvision whose classifier is a Linear `fc` and that return one tensor in training.
ARCH_MODULES = (models.resnet, models.regnet, models.shufflenetv2)

WAIT_WORTH_A_WORD = 0.2  # share of the time
STEPS_TO_JUDGE = 100


def architectures():
    """Names for --arch, sorted."""
    modules = {module.__name__ for module in ARCH_MODULES}
    return [name for name in models.list_models(models) if models.get_model_builder(name).__module__ in modules]


class Parser(argparse.ArgumentParser):
    """ArgumentParser whose errors are one line, said once a node, with exit code 2."""

    def __init__(self, **kwargs):
        super().__init__(formatter_class=_HelpFormatter, allow_abbrev=False, **kwargs)

    def error(self, message):
        """Prints the message, as the first of this node's processes only, and exits."""
        if os.environ.get("LOCAL_RANK", "0") == "0":
            line = " ".join(str(message).split())
            print(f"{self.prog}: error: {line}", file=sys.stderr, flush=True)
        sys.exit(2)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that say something."""

    def _get_help_string(self, action):
        silent = action.default in (None, False, "")
        return action.help if silent else super()._get_help_string(action)


def number(kind, low=-math.inf, high=math.inf, exclusive=False):
    """A converter for argparse: a finite int or float within [low, high], or (low, high] if `exclusive`."""

    def convert(text):
        try:
            value = kind(text)
            valid = math.isfinite(value) and low <= value <= high and not (exclusive and value == low)
        except (ValueError, OverflowError):
            valid = False
        if not valid:
            bounds = [f"{'>' if exclusive else '>='} {low}"] * (low > -math.inf) + [f"<= {high}"] * (high < math.inf)
            noun = "an integer" if kind is int else "a finite number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {noun} {' and '.join(bounds)}".rstrip())
        return value

    return convert


def add_shared(parser, epochs, batch_size, lr, weight_decay):
    """Adds the flags of both scripts, with the defaults in which they differ."""
    whole, some = number(int, 0), number(int, 1)
    names = architectures()
    parser.add_argument("data", metavar="DIR", help="folder that holds train/ and val/, with a folder a class")
    parser.add_argument(
        "-a", "--arch", metavar="ARCH", default="resnet50", choices=names, help="architecture: " + " | ".join(names)
    )
    parser.add_argument(
        "-j",
        "--workers",
        metavar="N",
        default=32,
        type=whole,
        help="data loading workers of this node, its cores at most",
    )
    parser.add_argument("--epochs", metavar="N", default=epochs, type=some, help="epochs to run in all")
    parser.add_argument(
        "--start-epoch", metavar="N", type=whole, help="0-based epoch to start with (default: 0, or as resumed)"
    )
    parser.add_argument(
        *("-b", "--batch-size"),
        metavar="N",
        default=batch_size,
        type=some,
        help="images a step of all processes of this node",
    )
    parser.add_argument(
        "--lr", "--learning-rate", metavar="LR", default=lr, type=number(float, 0), help="initial learning rate"
    )
    parser.add_argument("--momentum", metavar="M", default=0.9, type=number(float, 0, 1), help="of SGD")
    parser.add_argument(
        *("--wd", "--weight-decay"),
        metavar="W",
        dest="weight_decay",
        default=weight_decay,
        type=number(float, 0),
        help="weight decay of SGD",
    )
    parser.add_argument("-p", "--print-freq", metavar="N", default=10, type=some, help="steps between log lines")
    parser.add_argument(
        "--resume", metavar="FILE", help="checkpoint to continue; auto: the newest of --output-dir, if there is one"
    )
    parser.add_argument(
        "--save-every", metavar="STEPS", type=some, help="steps between checkpoints within an epoch (default: none)"
    )
    parser.add_argument(
        "--timeout",
        metavar="S",
        default=600.0,
        type=number(float, 0, exclusive=True),
        help="seconds that a step, or the start, may take before the run ends and names the processes that hold it up",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="resume although flags that change the result differ from the checkpoint's",
    )
    parser.add_argument(
        "--seed",
        metavar="N",
        type=number(int, 0, 2**63 - 1),
        help="of everything random (default: the resumed checkpoint's, else chosen and printed)",
    )
    parser.add_argument("--output-dir", metavar="DIR", default=".", help="folder for the checkpoints")
    parser.add_argument(
        "--on-bad-image",
        choices=["stop", "skip"],
        default="stop",
        help="a training image that can't be decoded ends the run, or another takes its place",
    )
    parser.add_argument("--crop-size", metavar="PX", default=224, type=some, help="side of the full-size views")

    speed.add_flags(parser)

    group = parser.add_argument_group("processes (under torchrun none of these is needed)")
    group.add_argument(
        "--multiprocessing-distributed", action="store_true", help="start one process a GPU of this node, as in MoCo"
    )
    group.add_argument(
        "--nproc", metavar="N", type=some, help="processes to start on this node (default: its GPUs, or 1)"
    )
    group.add_argument("--world-size", metavar="N", default=1, type=some, help="number of nodes")
    group.add_argument("--rank", metavar="N", default=0, type=whole, help="0-based rank of this node")
    group.add_argument(
        "--dist-url", metavar="URL", help="tcp://HOST:PORT where nodes meet (default: a free place here)"
    )
    group.add_argument("--dist-backend", choices=["nccl", "gloo"], help="default: nccl with CUDA, else gloo")
    group.add_argument("--gpu", metavar="N", type=whole, help="the one GPU to use")


def parse(parser, prepare, argv=None, least=1):
    """Parses a command line and passes every check at the door; exits with one line and code 2 where one fails.

    Args:
        parser: a Parser with the shared flags.
        prepare: called as `prepare(args, launch)` for the script's own checks; raises ValueError or OSError where one
            fails, and what it returns is passed on.
        least: images that a process needs in a batch.

    Returns:
        (args, launch, what `prepare` returned). `args.seed` is set on global rank 0's node.
    """
    args = parser.parse_args(argv)
    try:
        launch = plan_launch(args)
        speed.settle(args)
        args.total_batch = args.batch_size * launch.nodes
        if args.batch_size % launch.local or args.batch_size < least * launch.local:
            raise ValueError(
                f"--batch-size {args.batch_size} does not give each of the {launch.local} processes of this node the "
                f"same number of images, {least} at least; give "
                f"{max(args.batch_size // launch.local, least) * launch.local}"
            )
        if args.start_epoch is not None and args.start_epoch >= args.epochs:
            raise ValueError(
                f"--start-epoch {args.start_epoch} leaves nothing of --epochs {args.epochs}, it counts from 0"
            )
        prepared = prepare(args, launch)
        if launch.has_rank_0 and args.seed is None:
            args.seed = secrets.randbits(31)
    except (ValueError, OSError) as error:
        parser.error(error)
    return args, launch, prepared


def check_folder(folder, args):
    """Raises ValueError where an ImageFolder has fewer images than one batch."""
    if len(folder) < args.total_batch:
        raise ValueError(
            f"{folder.root!r} has {len(folder)} images, fewer than one batch of {args.total_batch}; "
            f"give a smaller --batch-size"
        )


def workers_a_process(args, launch):
    """Data loading workers of one process: its share of --workers, which counts for the node and ends at its cores."""
    return math.ceil(min(args.workers, cores()) / launch.local)


def substitutes(args, folder):
    """The Substitutes that --on-bad-image asks for, or None."""
    if args.on_bad_image == "stop":
        return None
    return Substitutes(folder, args.seed, os.path.join(args.output_dir, "bad_images.txt"))


def announce(args, launch, device, start, workers):
    """Prints where and on what this run goes on, `start` being (epochs, steps of the next) done."""
    if args.fast is not None:
        print(f"fast: {' '.join(args.fast) or 'nothing, every flag of it was given'}")
    print(f"seed: {args.seed}")
    gpus = torch.cuda.device_count()
    name = f"{torch.cuda.get_device_name(device)}, {gpus} here" if device.type == "cuda" else f"CPU, {cores()} cores"
    group = f", {launch.backend}" if launch.backend else ""
    print(f"devices: {launch.world} x {device.type} ({name}{group}), {workers} data workers each")
    if args.resume:
        epochs, steps = start
        more = f" and {steps} steps" * bool(steps)
        print(f"resumed {args.resume!r}: {epochs} of {args.epochs} epochs{more} are done", flush=True)


def advise(watch, args):
    """Prints a line where much of the time so far went into waiting for data, by a Stopwatch."""
    share = watch.share_waited()
    if share > WAIT_WORTH_A_WORD:
        ways = ["--augment-on device"] * (args.augment_on == "cpu") + ["more --workers"] * (args.workers < cores())
        say(f"note: {share:.0%} of the time goes into waiting for data; try {' or '.join(ways) or 'more CPU cores'}")


def check_output(args, launch, names):
    """Makes the folder for the checkpoints, where this process or one that it starts will write them.

    What an earlier run of it left half-written is removed: `names` is the pattern of the checkpoints' names.
    """
    folder = args.output_dir
    if not launch.has_rank_0:
        return
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output-dir {folder!r} can't be made: {error.strerror}; give another") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"--output-dir {folder!r} is not writable; give another")
    for file in os.listdir(folder):
        if file.endswith(ckpt.TEMPORARY) and re.fullmatch(names, file.removesuffix(ckpt.TEMPORARY)):
            os.remove(os.path.join(folder, file))
