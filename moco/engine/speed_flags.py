"""The speed flags: --augment-on, --precision, --compile, --fast, which sets these three for this machine, and
--deterministic, which costs speed.

These flags change the results only by rounding, or by no more than another random seed does.
"""

import argparse
import importlib.util
import os
import shutil

import torch

from moco.precision import PRECISIONS

AMPERE, COMPILES = (8, 0), (7, 0)  # compute capabilities that TF32 and bf16, and torch.compile, need


def add_speed_flags(parser):
    """Adds the flags to `parser`; `settle` then fills in those that the user did not give."""
    group = parser.add_argument_group("speed")
    group.add_argument(
        "--augment-on",
        choices=["cpu", "device"],
        help="where images are augmented; cpu (default): Pillow does everything in the data workers, as in the paper; "
        "device: the data workers only decode and crop, and the GPU (or CPU) that trains does the rest",
    )
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="number format; default: PyTorch's default, float32 with TF32 in convolutions on GPUs that support TF32; "
        "fp32: no TF32; tf32: TF32 in matrix products and convolutions; bf16, fp16: autocast (the loss is float32)",
    )
    group.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="compile the network by torch.compile (default: no)",
    )
    group.add_argument(
        "--fast",
        action="store_true",
        help="same as --augment-on device and, on a GPU, --compile and --precision bf16 (if the GPU supports it); a "
        "speed flag that you give beside --fast overrides it",
    )
    group.add_argument(
        "--deterministic",
        action="store_true",
        help="make runs on the same GPUs repeatable bit by bit, at the cost of speed (on a CPU they always are)",
    )


def settle(args):
    """Fills in the speed flags that were not given and checks them against this machine.

    `args.fast` becomes the list of what --fast has turned on, as words, or None without --fast.

    Raises:
        ValueError: this machine can't do what a flag asks for.
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
    """Raises ValueError if the devices of this machine lack the number format.

    Args:
        capability: the GPU's compute capability, a pair of numbers; None without a GPU.
    """
    if precision == "tf32" and capability is None:
        raise ValueError("--precision tf32 is a format of NVIDIA GPUs and none is visible; leave the flag out")
    if precision in ("tf32", "bf16") and capability and capability < AMPERE:
        name = torch.cuda.get_device_name()
        raise ValueError(
            f"--precision {precision} needs a GPU of the Ampere generation or newer, not {name}; give fp16"
        )


def check_compiler(capability):
    """Raises ValueError if torch.compile lacks what it needs; `capability` as for `check_precision`."""
    if capability and capability < COMPILES:
        raise ValueError(
            "--compile needs a GPU of compute capability 7.0 or higher, not "
            f"{'.'.join(map(str, capability))}; give --no-compile"
        )
    if capability and importlib.util.find_spec("triton") is None:
        raise ValueError("--compile needs the package triton on a GPU; install it, or give --no-compile")
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++", "gcc", "clang")):
        raise ValueError(
            "--compile needs a C++ compiler such as g++ or clang++, and none is installed; install one, "
            "or give --no-compile"
        )
