"""Makes a tiny fake ImageNet: folders train/ and val/ of JPEGs, with twelve classes that differ in shape and texture.

    python -m moco.tools.fake_imagenet DIR

A class is one of four shapes filled with one of three textures. Place, size, rotation, colours and the size of the
image vary within a class, so neither colour nor position tells the class. It needs only Pillow and NumPy.

A folder that is not empty is refused. But if an earlier call made it, the images of that call are replaced.
"""

import sys

if not __package__:  # otherwise `import moco` fails
    print("error: this program can't be started by its path; use python -m moco.tools.fake_imagenet", file=sys.stderr)
    sys.exit(2)

import json
import math
import multiprocessing
import os
import shutil
from itertools import product

import numpy as np
from PIL import Image, ImageDraw

from moco.engine.command_line import PROCESSES, SEED, Parser, number, output_folder
from moco.engine.progress import Progress

SHAPES = ("disk", "triangle", "square", "star")
TEXTURES = ("plain", "stripes", "dots")
SPLITS = ("train", "val")
MOST, LARGEST = 10_000, 2048  # images per class, since their names have 4 digits; pixels of a side
MARKER = ".fake_imagenet.json"  # the arguments of the call that wrote a folder, by which a later call recognises it
CLASSES = tuple(f"{shape}_{texture}" for shape, texture in product(SHAPES, TEXTURES))


def make(folder, train=60, val=20, size=160, classes=12, seed=0, workers=1):
    """Writes the images, and removes those of an earlier call.

    Args:
        folder: is created if it is missing. train, val: images per class.
        size: mean side in pixels; sides vary by a quarter. classes: number of classes, 12 at most.
        seed: random seed; equal seeds give equal images. workers: number of processes.

    Returns:
        The number of images of an earlier call that were removed.

    Raises:
        ValueError: the folder holds something that no earlier call wrote. Nothing is changed then.
    """
    removed = clear(folder)
    os.makedirs(folder, exist_ok=True)
    arguments = {"train": train, "val": val, "size": size, "classes": classes, "seed": seed}
    with open(os.path.join(folder, MARKER), "w") as file:
        json.dump(arguments, file)
    images = []
    for path, files in layout(arguments).items():
        os.makedirs(os.path.join(folder, path))
        split, name = path.split(os.sep)
        key = (seed, split == "val", CLASSES.index(name))
        images += [(os.path.join(folder, path, file), name, size, (*key, i)) for i, file in enumerate(files)]
    task = Progress("drawing", len(images), "images")
    if workers == 1:
        for image in images:
            write_image(image)
            task.add()
        return removed
    with multiprocessing.Pool(workers) as pool:
        for _ in pool.imap_unordered(write_image, images, chunksize=8):
            task.add()
    return removed


def layout(arguments):
    """What a call of `make` writes: a dict from each class folder, relative to its folder, to a list of file names."""
    return {
        os.path.join(split, name): [f"{i:04d}.jpg" for i in range(arguments[split])]
        for split in SPLITS
        for name in CLASSES[: arguments["classes"]]
    }


def clear(folder):
    """Removes the images that an earlier call wrote into a folder; returns their number.

    Raises:
        ValueError: the folder holds anything else, which is named.
    """
    marker, mine = os.path.join(folder, MARKER), set()
    if os.path.exists(marker):
        try:
            with open(marker) as file:
                written = layout(json.load(file))
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{marker!r} is damaged; give a new or an empty folder") from None
        mine = {MARKER, *SPLITS, *written, *(os.path.join(path, f) for path, files in written.items() for f in files)}
    removed = 0
    for top, below, files in os.walk(folder):
        for path in (os.path.join(top, name) for name in (*below, *files)):
            if os.path.relpath(path, folder) not in mine or os.path.islink(path):
                raise ValueError(
                    f"{path!r} is not from an earlier call of this program; give a new or an empty folder"
                )
        removed += sum(file != MARKER for file in files)
    for split in SPLITS:
        shutil.rmtree(os.path.join(folder, split), ignore_errors=True)
    return removed


def write_image(image):
    """Draws and writes an image, given as (path, class, mean side in pixels, tuple of non-negative integers: seed)."""
    path, name, size, seed = image
    draw_image(name, size, np.random.default_rng(seed)).save(path, quality=90)


def draw_image(name, size, rng):
    """One RGB image of the class `name`, about size x size pixels."""
    shape, texture = name.split("_")
    width, height = (int(size * rng.uniform(0.75, 1.25)) for _ in range(2))
    colours = distinct_colours(rng)
    image = Image.fromarray(background(width, height, colours[0], rng))
    mask = Image.new("L", (width, height))
    radius = rng.uniform(0.36, 0.48) * min(width, height)
    centre = [rng.uniform(radius, side - radius) for side in (width, height)]
    ImageDraw.Draw(mask).polygon(outline(shape, centre, radius, rng.uniform(0, 2 * math.pi)), fill=255)
    image.paste(Image.fromarray(fill(texture, width, height, radius, colours[1:], rng)), mask=mask)
    return image


def distinct_colours(rng):
    """Three RGB colours of clearly different brightness, as a list of float arrays."""
    levels = rng.permutation([40.0, 125.0, 210.0])
    return [np.clip(level + rng.uniform(-40, 40, 3), 0, 255) for level in levels]


def background(width, height, colour, rng):
    """A colour with a gradient of brightness and some noise: height x width x 3, uint8."""
    y, x = np.mgrid[0:height, 0:width]
    angle = rng.uniform(0, 2 * math.pi)
    slope = 30 * (math.cos(angle) * x / width + math.sin(angle) * y / height)
    return np.clip(colour + slope[..., None] + rng.normal(0, 6, (height, width, 3)), 0, 255).astype(np.uint8)


def outline(shape, centre, radius, turn):
    """The corners of a shape as a list of (x, y)."""
    corners, inner = {"disk": (40, 1), "triangle": (3, 1), "square": (4, 1), "star": (10, 0.45)}[shape]
    radii = [radius * (inner if i % 2 else 1) for i in range(corners)]
    angles = [turn + 2 * math.pi * i / corners for i in range(corners)]
    return [(centre[0] + r * math.cos(a), centre[1] + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


def fill(texture, width, height, radius, colours, rng):
    """A texture of one or two colours: height x width x 3, uint8."""
    y, x = np.mgrid[0:height, 0:width] / (radius / 3.5)  # 3.5 periods across the shape, so that small views show them
    angle = rng.uniform(0, 2 * math.pi)
    u, v = math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x
    second = {
        "plain": np.zeros((height, width), bool),
        "stripes": np.sin(math.pi * u) > 0,
        "dots": (np.sin(math.pi * u) > 0.2) & (np.sin(math.pi * v) > 0.2),
    }[texture]
    pixels = np.where(second[..., None], colours[1], colours[0]) + rng.normal(0, 6, (height, width, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def main(argv=None):
    parser = Parser(__doc__, __spec__.name, example="fake")
    count = number(int, 1, MOST)
    add = parser.add_argument
    add("dir", metavar="DIR", type=output_folder, help="folder in which to create train/ and val/")
    add("--train", metavar="N", type=count, default=60, help="training images per class")
    add("--val", metavar="N", type=count, default=20, help="validation images per class")
    add("--size", metavar="PX", type=number(int, 16, LARGEST), default=160, help="mean side of an image in pixels")
    add("--seed", metavar="N", type=SEED, default=0, help="random seed of the images")
    add("--workers", metavar="N", type=PROCESSES, default=1, help="processes that draw images")
    args = parser.parse_args(argv)
    try:
        removed = make(args.dir, args.train, args.val, args.size, seed=args.seed, workers=args.workers)
    except (ValueError, OSError) as error:
        parser.error(error)
    if removed:
        print(f"removed {removed} images of an earlier call")
    images = (args.train + args.val) * len(CLASSES)
    print(f"{images} images of {len(CLASSES)} classes are in {args.dir}")


if __name__ == "__main__":
    main()
