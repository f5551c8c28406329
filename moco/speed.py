"""The flags that change how fast a run is and its results only by rounding, and what --fast makes of them."""

import argparse
import importlib.util
import os
import shutil

import torch

from moco.device import PRECISIONS

AMPERE, COMPILES = (8, 0), (7, 0)  # compute capabilities: of TF32 and bf16, and what torch.compile needs


def add_flags(parser):
    """Adds --augment-on, --precision, --compile and --fast; `settle` fills in what is not given."""
    group = parser.add_argument_group("speed")
    group.add_argument(
        "--augment-on",
        choices=["cpu", "device"],
        help="cpu (default): all by Pillow in the workers, as in the paper; device: the workers only decode and crop",
    )
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="default: torch's own, float32 with TF32 convolutions on GPUs that have them; fp32: no TF32; tf32: in "
        "all products; bf16, fp16: autocast. Loss, logits and queue are never below float32",
    )
    group.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="pass the encoders through torch.compile",
    )
    group.add_argument(
        "--fast",
        action="store_true",
        help="turn on all that is faster and equal in distribution, though not to the bit: --augment-on device, and "
        "on a GPU --compile and, from Ampere on, --precision bf16; a flag that is given stays as it is",
    )


def settle(args):
    """Fills in the flags of `add_flags` that are not given, and checks them against this machine.

    `args.fast` becomes the list of what it turned on, as words.

    Raises:
        ValueError: the machine can't do what a flag asks for.
    """
    capability = torch.cuda.get_device_capability(args.gpu or 0) if torch.cuda.is_available() else None
    check_precision(args.precision, capability)
    faster = {"augment_on": ("device", "--augment-on device")}
    if capability and capability >= COMPILES:
        faster["compile"] = (True, "--compile")
    if capability and capability >= AMPERE:
        faster["precision"] = ("bf16", "--precision bf16")
    chosen = {name: wanted for name, wanted in faster.items() if args.fast and getattr(args, name) is None}
    for name, (value, _) in chosen.items():
        setattr(args, name, value)
    args.fast = [words for _, words in chosen.values()] if args.fast else None
    args.augment_on = args.augment_on or "cpu"
    args.compile = bool(args.compile)
    if args.compile:
        check_compiler(capability)


def check_precision(precision, capability):
    """Raises ValueError where this machine's devices do not have the number format.

    Args:
        capability: the GPU's compute capability, a pair of numbers; None without one.
    """
    if precision == "tf32" and capability is None:
        raise ValueError("--precision tf32 is a format of NVIDIA GPUs and none is visible; leave the flag out")
    if precision in ("tf32", "bf16") and capability and capability < AMPERE:
        name = torch.cuda.get_device_name()
        raise ValueError(
            f"--precision {precision} needs a GPU of the Ampere generation or newer, not {name}; give fp16"
        )


def check_compiler(capability):
    """Raises ValueError where torch.compile lacks what it works with; `capability` as for `check_precision`."""
    if capability and capability < COMPILES:
        raise ValueError(
            f"--compile needs a GPU of compute capability 7.0, not {'.'.join(map(str, capability))}; give --no-compile"
        )
    if capability and importlib.util.find_spec("triton") is None:
        raise ValueError("--compile needs the package triton on a GPU; install it, or give --no-compile")
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++", "gcc", "clang")):
        raise ValueError("--compile needs a C++ compiler, and neither g++ nor clang++ is here; give --no-compile")
