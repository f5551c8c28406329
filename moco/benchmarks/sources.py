"""Measures how fast images are read from a folder and from a tar archive, and which system calls that takes.

    python -m moco.benchmarks.sources DIR [--images N] [--seconds S] [--json]

The images of DIR are packed into an uncompressed tar in a temporary folder. One process then goes through the images
of both, alternately, in an order that is new in each round and the same for both: first it only reads their bytes,
then it decodes them, too. All images are read once before, so the disk's cache holds them if they fit, and the
difference is that of the system calls. On a network file system each call may also wait for the server.

The system calls are counted by strace where it is installed and allowed. Otherwise only the files that Python opens
and the reads of the process are counted.
"""

import sys

if not __package__:  # otherwise `import moco` fails
    print("error: this program can't be started by its path; use python -m moco.benchmarks.sources", file=sys.stderr)
    sys.exit(2)
if __name__ == "__main__":
    from moco.engine.early_signals import exit_on_signals

    exit_on_signals()  # before the imports that take seconds

import io
import json
import os
import shutil
import statistics
import tarfile
import tempfile
import time

import numpy as np
import torch

from moco.benchmarks.internal.measuring import versions
from moco.benchmarks.internal.system_calls import count
from moco.data.file_list import ImageFolder
from moco.engine.command_line import SECONDS, Parser, number
from moco.engine.progress import Progress
from moco.engine.stop_signals_raise import stop_signals_raise

ROUNDS = 5
COUNTED = 200  # images whose system calls are counted
KINDS = {"read": "read", "decode": "load_tensor"}  # methods of an ImageFolder
HEADER = 1024  # bytes of a tar per image in addition to its file: a header, and what fills the last block


def main(argv=None):
    parser = Parser(__doc__, __spec__.name, example="/path/to/imagenet/train")
    add = parser.add_argument
    add("dir", metavar="DIR", help="folder of images, in folders or not")
    add("--images", metavar="N", type=number(int, 1), default=5000, help="number of images, drawn at random if fewer")
    add("--seconds", metavar="S", type=SECONDS, default=60, help="total measuring time")
    add("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        folder = ImageFolder(args.dir, any_tree=True)
        rng = np.random.default_rng(0)
        chosen = np.sort(rng.permutation(len(folder))[: args.images]).tolist()
        size = check(folder, chosen)
        with stop_signals_raise(), tempfile.TemporaryDirectory(prefix="sources-") as work:
            path = os.path.join(work, "images.tar")
            pack(folder, chosen, path)
            tar = ImageFolder(path, any_tree=True)
            compare(folder, tar, chosen)
            result = bench({"folder": (folder, chosen), "tar": (tar, range(len(tar)))}, args.seconds, rng)
    except (OSError, ValueError) as error:
        parser.error(error)
    report(result | {"images": len(chosen), "bytes_per_image": size / len(chosen)}, args.json)


def check(folder, chosen):
    """The bytes of all chosen images; raises ValueError if they are no files, or have no room in another copy."""
    odd = next((path for path in map(folder.path, chosen) if not os.path.isfile(path)), None)
    if odd:
        raise ValueError(f"{odd!r} is not a file of its own; give a folder of image files")
    size, place = sum(os.path.getsize(folder.path(i)) for i in chosen), tempfile.gettempdir()
    needed, free = size + HEADER * len(chosen), shutil.disk_usage(place).free
    if needed > free:
        raise ValueError(
            f"the tar needs {needed / 1e6:,.0f} MB, but the disk of {place!r} has {free / 1e6:,.0f} MB free; give "
            "fewer --images, or set TMPDIR to another folder"
        )
    return size


def pack(folder, chosen, path):
    """Writes the chosen images of an ImageFolder to an uncompressed tar, named as in the folder."""
    task = Progress("packing", len(chosen), "images")
    with tarfile.open(path, "w") as archive:
        for i in chosen:
            member, data = tarfile.TarInfo(os.path.relpath(folder.path(i), folder.root)), folder.read(i)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
            task.add()


def compare(folder, tar, chosen):
    """Reads all images of both; raises ValueError if they differ."""
    if len(tar) != len(chosen) or any(tar.read(j) != folder.read(i) for j, i in enumerate(chosen)):
        raise ValueError(f"the tar of {folder.root!r} has other images than the folder, or another order")


def bench(sources, seconds, rng):
    """Measures everything.

    Args:
        sources: a dict from the name of a source to (ImageFolder, the indices of its images).
        seconds: in total. rng: a generator, for the orders.

    Returns:
        A dict of figures: rates in images per second, ratios of the tar's to the folder's, and calls per image.
    """
    keys = [(kind, name) for kind in KINDS for name in sources]
    rates, task = {key: [] for key in keys}, Progress("sources", ROUNDS * len(keys), "measurements")
    for turn in range(ROUNDS):
        order = rng.permutation(len(sources["tar"][1])).tolist()
        for kind, name in keys[::-1] if turn % 2 else keys:
            images, indices = sources[name]
            some = [indices[j] for j in order]
            rates[kind, name].append(rate(getattr(images, KINDS[kind]), some, seconds / len(keys) / ROUNDS))
            task.add()
    result = {f"{name}_{kind}": statistics.median(values) for (kind, name), values in rates.items()}
    for kind in KINDS:
        pairs = zip(rates[kind, "tar"], rates[kind, "folder"], strict=True)
        result[f"tar_over_folder_{kind}"] = statistics.median(a / b for a, b in pairs)
    for name, (images, indices) in sources.items():
        some = [indices[j] for j in order[:COUNTED]]
        calls, result["counted_by"] = count(lambda images=images, some=some: [images.read(i) for i in some])
        result |= {f"{name}_{kind}": n if n is None else n / len(some) for kind, n in calls.items()}
    return result


def rate(function, order, seconds):
    """Images per second of `function(index)` for the indices in `order`, again and again."""
    start, done = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds or not done:
        function(order[done % len(order)])
        done += 1
    return done / elapsed


def report(result, as_json):
    """Prints the table, and the line of JSON."""
    print(f"{versions()}; one process, {ROUNDS} rounds, medians")
    print(f"{result['images']:,} images, {result['bytes_per_image'] / 1e3:.1f} kB on average")
    print(f"{'images/s':15s} {'folder':>9s} {'tar':>9s} {'tar / folder':>13s}")
    for kind, words in (("read", "read"), ("decode", "read and decode")):
        print(
            f"{words:15s} {result[f'folder_{kind}']:9.0f} {result[f'tar_{kind}']:9.0f} "
            f"{result[f'tar_over_folder_{kind}']:13.2f}"
        )
    print(f"calls per image, counted by {result['counted_by']}")
    for kind in ("opens", "reads", "stats"):
        figures = [result[f"{name}_{kind}"] for name in ("folder", "tar")]
        print(f"{kind:15s} " + " ".join(f"{'unknown' if x is None else format(x, '.2f'):>9s}" for x in figures))
    if as_json:
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
