"""Images a second and core of the data path: ours on the device, ours on the CPU, and the original recipe.

    python -m moco.tools.bench_loader DIR [--enable-multicrop ...] [--workers N] [--seconds S] [--json]

The three run in turns in one process, with the same number of workers, so that whatever else the machine does
meets them alike. (a) `device`: workers decode and crop, the rest is left to the device. (b) `cpu`: everything by
Pillow, from the same draws. (c) `original`: torchvision's PIL transforms, ImageFolder and the default collation,
floats leaving the workers; RandAugment, which torchvision does not have in this form, is ours on Pillow. The floor is
what must be done on a CPU in any case, the decoding and the crops, in loops without a loader.
"""

import argparse
import json
import os
import platform
import statistics
import time
from itertools import count, islice

import numpy as np
import torch
import torchvision
from torch.multiprocessing import get_context
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

import main_moco
from moco.asymmetry.scalemix import scalemix
from moco.image_folder import ImageFolder
from moco.launch import cores
from moco.loader import CropsTransform, GaussianBlur, training_loader
from moco.prefetch import finisher
from moco.tools.gauges import timed
from moco.views.normalize import MEAN, STD
from moco.views.randaugment import LAYERS, UNIFORMS, apply_on_pil, draw_operation

BATCH = 32  # of one BN batch of the paper


def main():
    parser = argparse.ArgumentParser(
        prog="python -m moco.tools.bench_loader",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dir", metavar="DIR", help="folder that holds train/ with a folder a class")
    main_moco.add_designs(parser)
    parser.add_argument("--crop-size", metavar="PX", type=int, default=224, help="side of the full-size views (224)")
    parser.add_argument("--mini-crop-size", metavar="PX", type=int, default=96, help="of MultiCrop's views (96)")
    parser.add_argument("--workers", metavar="N", type=int, default=cores(), help="data workers (default: the cores)")
    parser.add_argument("--seconds", metavar="S", type=float, default=60, help="measuring time in all (60)")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args()
    if args.workers < 1 or not args.seconds > 0:
        parser.error("--workers and --seconds must be positive")
    try:
        folder = ImageFolder(os.path.join(args.dir, "train"))
    except OSError as error:
        parser.error(str(error))
    if len(folder) < BATCH:
        parser.error(f"{folder.root!r} has {len(folder)} images; a batch of {BATCH} is measured")
    result = bench(folder, args)
    report(result, args)


def bench(folder, args):
    """Measures everything; returns a dict of the figures, rates in images a second and core."""
    plan = main_moco.view_plan(args)
    print(plan, flush=True)
    loaders = {
        "device": endless(training_loader(folder, plan.views, BATCH, 0, args.workers, augment_on="device")),
        "cpu": endless(training_loader(folder, plan.views, BATCH, 0, args.workers)),
        "original": endless(original_loader(folder.root, plan, args.workers)),
    }
    batches = {name: next(loader) for name, loader in loaders.items()}
    rounds = 5
    rates = {name: [] for name in (*loaders, "floor", "decode_only")}
    for _ in range(rounds):
        for name, loader in loaders.items():
            rates[name].append(rate_of(loader, args.seconds / rounds / 5, args.workers))
        for name in ("floor", "decode_only"):
            rates[name].append(rate_of_loops(folder, plan, name, args.seconds / rounds / 5, args.workers))
    result = {name: statistics.median(values) for name, values in rates.items()}
    for name in ("device", "cpu"):
        result[f"{name}_over_original"] = statistics.median(
            a / b for a, b in zip(rates[name], rates["original"], strict=True)
        )
    result["share_of_floor"] = statistics.median(a / b for a, b in zip(rates["device"], rates["floor"], strict=True))
    result |= {f"bytes_{name}": size_of(batch) for name, batch in batches.items()}
    result["device_part_ms"], result["device_name"] = device_part(plan, loaders["device"])
    return result


def endless(loader):
    """The batches of one epoch after another."""
    for epoch in count():
        if hasattr(loader.batch_sampler, "epoch"):
            loader.batch_sampler.epoch = epoch
        yield from loader


def rate_of(loader, seconds, workers):
    """Images a second and core, after what the workers had made ahead is gone."""
    for _ in islice(loader, 3 * workers):
        pass
    start, images = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds or not images:
        next(loader)
        images += BATCH
    return images / elapsed / workers


def rate_of_loops(folder, plan, kind, seconds, workers):
    """Images a second and core of processes that decode, and for the floor crop, and do nothing else."""
    dataset = training_loader(folder, plan.views, BATCH, 0, 0, augment_on="device").dataset
    context = get_context("fork")
    queue = context.SimpleQueue()
    processes = [
        context.Process(target=loop, args=(dataset, kind, seconds, seed, queue), daemon=True)
        for seed in range(workers)
    ]
    for process in processes:
        process.start()
    rates = [queue.get() for _ in processes]
    for process in processes:
        process.join()
    return sum(rates) / workers


def loop(dataset, kind, seconds, seed, queue):
    """One such process; the draws, which are not its task, are made before the clock runs."""
    torch.set_num_threads(1)
    order = np.random.default_rng(seed).permutation(len(dataset)).tolist()
    draws = {}
    for index in order:
        width, height = dataset.folder.load(index).size
        draws[index] = dataset.draws(0, index, width, height)
    out = {size: torch.empty(len(r), size, size, 3, dtype=torch.uint8) for size, r in dataset.layout.rows.items()}
    start, images = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        index = order[images % len(order)]
        image = dataset.folder.load_tensor(index)
        if kind == "floor":
            dataset.layout.crop(image, draws[index], out)
        images += 1
    queue.put(images / elapsed)


class RandAugment:
    """PIL transform of two random operations."""

    def __call__(self, image):
        for _ in range(LAYERS):
            operation = draw_operation(torch.rand(UNIFORMS, dtype=torch.float64).tolist())
            if operation is not None:
                image = apply_on_pil(operation, image)
        return image


def recipe(view):
    """A View as the original writes it."""
    steps = [transforms.RandomResizedCrop(view.size, scale=view.scale)]
    if view.jitter_p:
        steps.append(transforms.RandomApply([transforms.ColorJitter(*view.jitter)], p=view.jitter_p))
    if view.gray_p:
        steps.append(transforms.RandomGrayscale(p=view.gray_p))
    if view.blur_p:
        steps.append(transforms.RandomApply([GaussianBlur(view.sigma)], p=view.blur_p))
    steps.append(transforms.RandomHorizontalFlip())
    if view.randaugment:
        steps.append(RandAugment())
    steps += [transforms.ToTensor(), transforms.Normalize(mean=MEAN, std=STD)]
    one = transforms.Compose(steps)
    return (lambda image: scalemix(one(image), one(image))) if view.mixed else one


def original_loader(root, plan, workers):
    """The original's loader, with each view's recipe."""
    dataset = datasets.ImageFolder(root, CropsTransform(*(recipe(view) for view in plan.views)))
    return DataLoader(
        dataset,
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=True,
        multiprocessing_context="fork",
    )


def size_of(batch):
    """Bytes of all tensors of a batch."""
    if isinstance(batch, torch.Tensor):
        return batch.numel() * batch.element_size()
    return sum(map(size_of, batch.values() if isinstance(batch, dict) else batch))


def device_part(plan, loader, repeats=7):
    """Milliseconds an image of what the device does with a batch, and the device's name.

    A GPU gets the paper's 256 images at once, since starting its kernels would be most of a small batch's time.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    joined = list(islice(loader, 8 if device.type == "cuda" else 1))
    crops = {size: torch.cat([batch[0][size] for batch in joined]) for size in joined[0][0]}
    batch = (crops, *(torch.cat([batch[i] for batch in joined]) for i in (1, 2)))
    finish = finisher(plan.views, "device", device)
    times = [timed(lambda: finish(batch), 1) for _ in range(repeats + 1)]
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return statistics.median(times[1:]) / len(batch[2]) * 1000, name


def report(result, args):
    """Prints the table, and the JSON where it is asked for."""
    print(
        f"{platform.machine()}, {cores()} cores, Python {platform.python_version()}, torch {torch.__version__},",
        end=" ",
    )
    print(f"torchvision {torchvision.__version__}; {args.workers} workers, batch {BATCH}")
    print(f"{'path':12s} {'images/s/core':>14s} {'over original':>14s} {'MB a batch':>11s}")
    for name in ("device", "cpu", "original"):
        ratio = result.get(f"{name}_over_original", 1.0)
        print(f"{name:12s} {result[name]:14.1f} {ratio:14.2f} {result[f'bytes_{name}'] / 1e6:11.2f}")
    print(f"{'floor':12s} {result['floor']:14.1f}   of which `device` reaches {result['share_of_floor']:.0%}")
    print(f"{'decode only':12s} {result['decode_only']:14.1f}")
    print(f"the device's part takes {result['device_part_ms']:.3f} ms an image on {result['device_name']}")
    if args.json:
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
