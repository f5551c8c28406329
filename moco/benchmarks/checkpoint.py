"""Measures how long a checkpoint delays the training, how long it takes to write, and how much memory its copy needs.

    python -m moco.benchmarks.checkpoint [-a resnet50] [--dir DIR] [--repeats N]

The model is on the CPU. From a GPU, the copy would have to pass the bus in addition.
"""

import sys

if not __package__:  # otherwise `import moco` fails
    name = "moco.benchmarks.checkpoint"
    print(f"error: this program can't be started by its path; use python -m {name}", file=sys.stderr)
    sys.exit(2)

import os
import platform
import statistics
import tempfile
import time

import torch

import main_moco
from moco.benchmarks.internal.measuring import peak_resident
from moco.engine.architectures import architectures
from moco.engine.checkpoint_background_writer import BackgroundWriter
from moco.engine.checkpoint_format import checkpoint_of
from moco.engine.command_line import Parser, number, writable_folder
from moco.engine.disk_space import size_of
from moco.engine.progress import Progress


def saves(arch, folder, repeats):
    """Saves a checkpoint `repeats` times into `folder`, each time after the previous write has ended.

    Returns:
        (bytes of a checkpoint, list of delays in seconds, list of write times in seconds, bytes of additional memory).
    """
    args = main_moco.build_parser().parse_args(["-a", arch, "--seed", "0", folder])
    model, optimizer = main_moco.build(args)
    for p in filter(lambda p: p.requires_grad, model.parameters()):
        p.grad = torch.zeros_like(p)
    optimizer.step()  # creates the momentum
    checkpoint, stalls, writes = checkpoint_of(1, model, optimizer, {"arch": arch}), [], []

    def save():
        task = Progress("checkpoint", repeats, "checkpoints")
        with BackgroundWriter() as writer:
            for _ in range(repeats):
                start = time.perf_counter()
                writer.save(checkpoint, os.path.join(folder, "checkpoint.pth.tar"))
                stalls.append(time.perf_counter() - start)
                writer.wait()
                writes.append(time.perf_counter() - start - stalls[-1])
                task.add()

    before = peak_resident(lambda: None)
    peak = peak_resident(save)
    return size_of(checkpoint), stalls, writes, peak - before


def main(argv=None):
    parser = Parser(__doc__, __spec__.name)
    parser.add_argument("-a", "--arch", metavar="ARCH", default="resnet50", choices=architectures(), help="network")
    help = "folder to write to (default: the system's temporary folder)"
    parser.add_argument("--dir", metavar="DIR", type=writable_folder, help=help)
    parser.add_argument("--repeats", metavar="N", type=number(int, 1), default=7, help="number of checkpoints")
    args = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory(dir=args.dir) as folder:
            size, stalls, writes, memory = saves(args.arch, folder, args.repeats)
    except OSError as error:
        parser.error(f"can't write into --dir {args.dir!r}: {error.strerror}; give another")
    print(f"{args.arch}, {args.repeats} checkpoints of {size / 1e6:.0f} MB, torch {torch.__version__}", end=", ")
    print(f"Python {platform.python_version()}")
    for name, times in (("stall", stalls), ("write", writes)):
        print(f"{name}: first {times[0]:.3f} s, median {statistics.median(times):.3f} s, longest {max(times):.3f} s")
    print(f"memory: {memory / 1e6:.0f} MB at most")


if __name__ == "__main__":
    main()
