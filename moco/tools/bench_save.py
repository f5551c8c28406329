"""How long a checkpoint holds up the training, how long its write takes, and what memory its copy takes.

On this machine's CPU; a GPU's copy goes over its bus first.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time

import torch

import main_moco
from moco import checkpoint as ckpt
from moco.saver import Saver, size_of
from moco.tools.gauges import peak_resident


def saves(arch, folder, repeats):
    """Saves so many times, each when the write before is through.

    Returns:
        (bytes of a checkpoint, stalls in seconds, writes in seconds, bytes that the process grew by at most).
    """
    args = main_moco.build_parser().parse_args(["-a", arch, "--seed", "0", folder])
    model, optimizer = main_moco.build(args)
    for p in filter(lambda p: p.requires_grad, model.parameters()):
        p.grad = torch.zeros_like(p)
    optimizer.step()  # which makes the momentum
    checkpoint, stalls, writes = ckpt.of_run(1, model, optimizer, {"arch": arch}), [], []

    def save():
        with Saver() as saver:
            for _ in range(repeats):
                start = time.perf_counter()
                saver.save(checkpoint, os.path.join(folder, "checkpoint.pth.tar"))
                stalls.append(time.perf_counter() - start)
                saver.wait()
                writes.append(time.perf_counter() - start - stalls[-1])

    before = peak_resident(lambda: None)
    peak = peak_resident(save)
    return size_of(checkpoint), stalls, writes, peak - before


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("-a", "--arch", default="resnet50", help="architecture")
    parser.add_argument("--dir", metavar="DIR", help="folder to write to (default: the temporary one)")
    parser.add_argument("--repeats", metavar="N", type=int, default=7, help="checkpoints")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        size, stalls, writes, memory = saves(args.arch, folder, args.repeats)
    print(f"{args.arch}, {args.repeats} checkpoints of {size / 1e6:.0f} MB, torch {torch.__version__}", end=", ")
    print(f"Python {platform.python_version()}")
    for name, times in (("stall", stalls), ("write", writes)):
        print(f"{name}: first {times[0]:.3f} s, median {statistics.median(times):.3f} s, longest {max(times):.3f} s")
    print(f"memory: {memory / 1e6:.0f} MB at most")


if __name__ == "__main__":
    main()
