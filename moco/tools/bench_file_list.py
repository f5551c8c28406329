"""Memory of the list of images: bytes per image of ours, and of torchvision's list of Python objects.

    python -m moco.tools.bench_file_list [--images N]

Makes a folder of N empty files, lists it in both ways, and lets a forked worker touch every entry, as a data worker
does in an epoch. What grows in the worker then is its own copy (PyTorch issue 13246).
"""

import argparse
import os
import platform
import sys
import tempfile
import tracemalloc

import torch
import torchvision
from torchvision.datasets import ImageFolder as TorchvisionFolder

from moco.image_folder import ImageFolder

CLASSES = 100


def main():
    parser = argparse.ArgumentParser(
        prog="python -m moco.tools.bench_file_list",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", metavar="N", type=int, default=100_000, help="files to list (100000)")
    args = parser.parse_args()
    if args.images < CLASSES:
        parser.error(f"--images {args.images} is too few, give {CLASSES} at least")
    if not os.path.exists("/proc/self/smaps_rollup"):
        parser.error("this system does not tell a process's own memory (/proc/self/smaps_rollup)")
    with tempfile.TemporaryDirectory() as root:
        make_files(root, args.images)
        kinds = {
            "arrays (ours)": (ImageFolder, lambda folder, i: (folder.path(i), int(folder.labels[i]))),
            "list (torchvision)": (TorchvisionFolder, lambda folder, i: folder.samples[i]),
        }
        rows = [(name, *measure(root, make, read)) for name, (make, read) in kinds.items()]
    print(f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__},", end=" ")
    print(f"torchvision {torchvision.__version__}; {args.images} images of {CLASSES} classes")
    print(f"{'list':20s} {'bytes per image':>16s} {'copied by a worker, bytes per image':>38s}")
    for name, size, copied in rows:
        print(f"{name:20s} {size / args.images:16.1f} {copied / args.images:38.1f}")


def make_files(root, images):
    """Empty files with names of ImageNet's length."""
    for c in range(CLASSES):
        os.makedirs(os.path.join(root, f"n{c:08d}"))
    for i in range(images):
        c = i % CLASSES
        with open(os.path.join(root, f"n{c:08d}", f"n{c:08d}_{i:06d}.JPEG"), "wb"):
            pass


def measure(root, make, read):
    """Bytes that a list takes, and bytes that a forked worker copies by reading it once."""
    tracemalloc.start()
    folder = make(root)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    receiver, sender = os.pipe()
    pid = os.fork()
    if pid == 0:
        # Once over a few entries first: what a fork copies anyway is not the list's.
        for i in range(min(100, len(folder))):
            read(folder, i)
        before = own_memory()
        for i in range(len(folder)):
            read(folder, i)
        os.write(sender, str(own_memory() - before).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    copied = int(os.read(receiver, 100))
    os.close(receiver)
    os.close(sender)
    return size, copied


def own_memory():
    """Bytes of this process that it shares with no other."""
    with open("/proc/self/smaps_rollup") as file:
        lines = [line.split() for line in file]
    return sum(int(words[1]) for words in lines if words[0] in ("Private_Dirty:", "Private_Clean:")) * 1024


if __name__ == "__main__":
    sys.exit(main())
