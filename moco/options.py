"""The flags that both scripts share, and the checks at the door: one clear line, exit code 2, before any work."""

import argparse
import math
import os
import sys

from torchvision import models

# The networks of torchvision whose classifier is a Linear `fc` and that return one tensor in training.
ARCH_MODULES = (models.resnet, models.regnet, models.shufflenetv2)


def architectures():
    """Names for --arch, sorted."""
    return sorted(name for module in ARCH_MODULES for name in models.list_models(module))


class Parser(argparse.ArgumentParser):
    """ArgumentParser whose errors are one line, said once a node, with exit code 2."""

    def __init__(self, **kwargs):
        super().__init__(formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False, **kwargs)

    def error(self, message):
        """Prints the message, as the first of this node's processes only, and exits."""
        if os.environ.get("LOCAL_RANK", "0") == "0":
            line = " ".join(str(message).split())
            print(f"{self.prog}: error: {line}", file=sys.stderr, flush=True)
        sys.exit(2)


def number(kind, low=-math.inf, high=math.inf, exclusive=False):
    """A converter for argparse: a finite int or float within [low, high], or (low, high] if `exclusive`."""

    def convert(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not low <= value <= high or (exclusive and value == low):
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
        "-j", "--workers", default=32, type=whole, help="data loading workers of this node, at most its cores"
    )
    parser.add_argument("--epochs", default=epochs, type=some, help="epochs to run in all")
    parser.add_argument("--start-epoch", type=whole, help="0-based epoch to start with (default: 0, or as resumed)")
    parser.add_argument(
        "-b", "--batch-size", default=batch_size, type=some, help="images a step of all processes of this node"
    )
    parser.add_argument("--lr", "--learning-rate", default=lr, type=number(float, 0), help="initial learning rate")
    parser.add_argument("--momentum", default=0.9, type=number(float, 0, 1), help="of SGD")
    parser.add_argument(
        "--wd", "--weight-decay", dest="weight_decay", default=weight_decay, type=number(float, 0), help="of SGD"
    )
    parser.add_argument("-p", "--print-freq", default=10, type=some, help="steps between log lines")
    parser.add_argument("--resume", metavar="PATH", help="checkpoint to continue")
    parser.add_argument("--force", action="store_true", help="resume although flags differ from the checkpoint's")
    parser.add_argument("--seed", type=number(int, 0, 2**63 - 1), help="of everything random (default: chosen)")
    parser.add_argument("--output-dir", metavar="DIR", default=".", help="folder for the checkpoints")
    parser.add_argument("--crop-size", default=224, type=some, help="side of the views in pixels")

    group = parser.add_argument_group("processes (beside these: torchrun, which needs none of them)")
    group.add_argument(
        "--multiprocessing-distributed", action="store_true", help="one process a GPU of this node, as in MoCo"
    )
    group.add_argument("--nproc", type=some, help="processes on this node (default: its GPUs, or 1)")
    group.add_argument("--world-size", default=1, type=some, help="number of nodes")
    group.add_argument("--rank", default=0, type=whole, help="0-based rank of this node")
    group.add_argument("--dist-url", help="tcp://HOST:PORT where nodes meet (default: a free place on this node)")
    group.add_argument("--dist-backend", choices=["nccl", "gloo"], help="default: nccl with CUDA, else gloo")
    group.add_argument("--gpu", type=whole, help="the one GPU to use")
