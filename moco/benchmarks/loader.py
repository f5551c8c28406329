"""Measures the data path in images per second and core: ours in both forms, and the original's.

    python -m moco.benchmarks.loader DIR [--enable-multicrop ...] [--workers N] [--seconds S] [--lightly] [--json]

Three loaders are timed alternately in one process, with the same number of workers, so that other load on the machine
affects all of them alike:
    device    the workers only decode and crop; the rest is left to the device
    cpu       Pillow does everything in the workers, with the same random draws
    original  torchvision's PIL transforms, ImageFolder and the default collate function; floats leave the workers
With --lightly, lightly's MoCoV2Transform is a fourth; it has the baseline's two views, whatever the designs.
The floor is what a CPU must do in any case, decoding and cropping, in bare loops without a loader.
"""

import sys

if not __package__:  # otherwise `import moco` fails
    print("error: this program can't be started by its path; use python -m moco.benchmarks.loader", file=sys.stderr)
    sys.exit(2)

import json
import os
import platform
import re
import statistics
import time
from itertools import count, islice

import numpy as np
import torch
import torchvision
from torch.multiprocessing import get_context

import main_moco
from moco.benchmarks.internal.lightly_loader import lightly_loader
from moco.benchmarks.internal.measuring import timed
from moco.benchmarks.internal.original_project_loader import original_loader
from moco.data.file_list import ImageFolder
from moco.data.prefetch_to_device import finisher
from moco.engine.command_line import PROCESSES, SECONDS, Parser, number
from moco.engine.design_flags import add_design_flags
from moco.engine.launch_plan import cores
from moco.engine.progress import Progress
from moco.engine.size_checks import check_memory
from moco.loader import IN_ADVANCE, training_loader

BATCH = 32  # images of one of the paper's GPUs
LOOPED = 1000  # images that the bare loops go through; they are decoded once before, which is not timed


def main(argv=None):
    parser = Parser(__doc__, __spec__.name, example="/path/to/imagenet")
    side = number(int, 1)
    add = parser.add_argument
    add("dir", metavar="DIR", help="folder with train/, which has one folder per class")
    add_design_flags(parser)
    add("--crop-size", metavar="PX", type=side, default=224, help="side of the full-size views")
    add("--mini-crop-size", metavar="PX", type=side, help="side of the small views (default: 96/224 of --crop-size)")
    add("--workers", metavar="N", type=PROCESSES, default=cores(), help="number of data workers")
    add("--seconds", metavar="S", type=SECONDS, default=60, help="total measuring time")
    add("--lightly", action="store_true", help="time lightly's MoCoV2Transform, too, which must be installed")
    add("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args(argv)
    try:
        plan = main_moco.view_plan(args)
        check_memory(plan.views, BATCH * (IN_ADVANCE * args.workers + 1), 4, "fewer --workers")  # as floats
        folder = ImageFolder(os.path.join(args.dir, "train"))
        if len(folder) < BATCH:
            raise ValueError(
                f"{folder.root!r} has {len(folder)} images, fewer than a batch of {BATCH}; give more images"
            )
        result = bench(folder, plan, args)
    except (ValueError, OSError) as error:
        last = (str(error) or repr(error)).splitlines()[-1]  # the error of a data worker ends a traceback
        parser.error(re.sub(r"^[\w.]+Error: ", "", last))
    report(result, args.workers)
    if args.json:
        print(json.dumps(result), flush=True)


def bench(folder, plan, args):
    """Measures everything; returns a dict of figures; rates are in images per second and core."""
    print(plan, flush=True)
    loaders = {
        "device": endless(training_loader(folder, plan.views, BATCH, 0, args.workers, augment_on="device")),
        "cpu": endless(training_loader(folder, plan.views, BATCH, 0, args.workers)),
        "original": endless(original_loader(folder.root, plan, BATCH, args.workers)),
    }
    if args.lightly:
        loaders["lightly"] = endless(lightly_loader(folder.root, args.crop_size, BATCH, args.workers))
    sizes = {f"bytes_{name}": size_of(next(loader)) for name, loader in loaders.items()}
    rounds = 5
    rates = {name: [] for name in (*loaders, "floor", "decode_only")}
    task, seconds = Progress("loader", rounds * len(rates), "measurements"), args.seconds / rounds / len(rates)
    for _ in range(rounds):
        for name in rates:
            if name in loaders:
                rates[name].append(rate_of(loaders[name], seconds, args.workers))
            else:
                rates[name].append(rate_of_loops(folder, plan, name, seconds, args.workers))
            task.add()
    result = {name: statistics.median(values) for name, values in rates.items()}
    for name in (name for name in loaders if name != "original"):
        result[f"{name}_over_original"] = statistics.median(
            a / b for a, b in zip(rates[name], rates["original"], strict=True)
        )
    result["share_of_floor"] = statistics.median(a / b for a, b in zip(rates["device"], rates["floor"], strict=True))
    result |= sizes
    result["device_part_ms"], result["device_name"] = device_part(plan, loaders["device"])
    return result


def endless(loader):
    """Yields the batches of epoch after epoch."""
    for epoch in count():
        if hasattr(loader.batch_sampler, "epoch"):
            loader.batch_sampler.epoch = epoch
        yield from loader


def rate_of(loader, seconds, workers):
    """Images per second and core, after the batches that the workers had prepared in advance are used up."""
    for _ in islice(loader, 3 * workers):
        pass
    start, images = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds or not images:
        next(loader)
        images += BATCH
    return images / elapsed / workers


def rate_of_loops(folder, plan, kind, seconds, workers):
    """Images per second and core of processes that only decode ("decode_only"), or decode and crop ("floor")."""
    dataset = training_loader(folder, plan.views, BATCH, 0, 0, augment_on="device").dataset
    context = get_context("fork")
    queue = context.SimpleQueue()
    processes = [
        context.Process(target=attempt, args=(dataset, kind, seconds, seed, queue), daemon=True)
        for seed in range(workers)
    ]
    for process in processes:
        process.start()
    rates = [queue.get() for _ in processes]
    for error in (rate for rate in rates if isinstance(rate, OSError)):
        raise error
    for process in processes:
        process.join()
    return sum(rates) / workers


def attempt(dataset, kind, seconds, seed, queue):
    """One such process: sends its images per second, or the error about an image that can't be decoded."""
    try:
        queue.put(loop(dataset, kind, seconds, seed))
    except OSError as error:
        queue.put(error)


def loop(dataset, kind, seconds, seed):
    """The images per second of one such process. The random parameters are drawn before the clock starts."""
    torch.set_num_threads(1)
    order = np.random.default_rng(seed).permutation(len(dataset))[:LOOPED].tolist()
    draws = {}
    for index in order:
        width, height = dataset.folder.load(index).size
        draws[index] = dataset.draws(0, index, width, height)
    out = {size: torch.empty(len(r), size, size, 3, dtype=torch.uint8) for size, r in dataset.layout.rows.items()}
    start, images = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds or not images:
        index = order[images % len(order)]
        image = dataset.folder.load_tensor(index)
        if kind == "floor":
            dataset.layout.crop(image, draws[index], out)
        images += 1
    return images / elapsed


def size_of(batch):
    """Bytes of all tensors of a batch."""
    if isinstance(batch, torch.Tensor):
        return batch.numel() * batch.element_size()
    return sum(map(size_of, batch.values() if isinstance(batch, dict) else batch))


def device_part(plan, loader, repeats=7):
    """The time of the device's part in milliseconds per image, and the device's name.

    A GPU gets the paper's 256 images at once, because launching its kernels would dominate the time of a small batch.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    joined = list(islice(loader, 8 if device.type == "cuda" else 1))
    crops = {size: torch.cat([batch[0][size] for batch in joined]) for size in joined[0][0]}
    batch = (crops, *(torch.cat([batch[i] for batch in joined]) for i in (1, 2)))
    if device.type == "cuda":  # as the loader's thread does
        crops, rows, labels = batch
        batch = {size: x.pin_memory() for size, x in crops.items()}, rows.pin_memory(), labels.pin_memory()
    finish = finisher(plan.views, "device", device)
    times = [timed(lambda: finish(batch), 1) for _ in range(repeats + 1)]
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return statistics.median(times[1:]) / len(batch[2]) * 1000, name


def report(result, workers):
    """Prints the table."""
    print(
        f"{platform.machine()}, {cores()} cores, Python {platform.python_version()}, torch {torch.__version__},",
        end=" ",
    )
    print(f"torchvision {torchvision.__version__}; {workers} workers, batch {BATCH}")
    print(f"{'path':12s} {'images/s/core':>14s} {'over original':>14s} {'MB a batch':>11s}")
    for name in ("device", "cpu", "original", *(["lightly"] if "lightly" in result else [])):
        ratio = result.get(f"{name}_over_original", 1.0)
        print(f"{name:12s} {result[name]:14.1f} {ratio:14.2f} {result[f'bytes_{name}'] / 1e6:11.2f}")
    print(f"{'floor':12s} {result['floor']:14.1f}   of which `device` reaches {result['share_of_floor']:.0%}")
    print(f"{'decode only':12s} {result['decode_only']:14.1f}")
    print(f"the device's part takes {result['device_part_ms']:.3f} ms an image on {result['device_name']}")


if __name__ == "__main__":
    main()
