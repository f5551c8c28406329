"""Makes a tiny fake ImageNet: folders train/ and val/ of JPEGs, with twelve classes that differ in shape and texture.

    python -m moco.tools.fake_imagenet DIR

A class is one of four shapes filled with one of three textures. Place, size, rotation, colours and the size of the
image vary within a class, so neither colour nor position tells the class. It needs only Pillow and NumPy.
"""

import argparse
import math
import multiprocessing
import os
from itertools import product

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("disk", "triangle", "square", "star")
TEXTURES = ("plain", "stripes", "dots")
CLASSES = tuple(f"{shape}_{texture}" for shape, texture in product(SHAPES, TEXTURES))


def make(folder, train=60, val=20, size=160, classes=12, seed=0, workers=1):
    """Writes the images.

    Args:
        folder: is created if it is missing. train, val: images per class.
        size: mean side in pixels; sides vary by a quarter. classes: number of classes, 12 at most.
        seed: random seed; equal seeds give equal images. workers: number of processes.
    """
    images = []
    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(CLASSES[:classes]):
            path = os.path.join(folder, split, name)
            os.makedirs(path, exist_ok=True)
            for i in range(count):
                images.append((os.path.join(path, f"{i:04d}.jpg"), name, size, (seed, split == "val", label, i)))
    if workers == 1:
        for image in images:
            write_image(*image)
        return
    with multiprocessing.Pool(workers) as pool:
        pool.starmap(write_image, images, chunksize=8)


def write_image(path, name, size, seed):
    """Draws an image of the class `name` and writes it to `path`; `seed` is a tuple of non-negative integers."""
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
    parser = argparse.ArgumentParser(
        prog="python -m moco.tools.fake_imagenet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dir", metavar="DIR", help="folder in which to create train/ and val/")
    parser.add_argument("--train", metavar="N", type=int, default=60, help="training images per class (60)")
    parser.add_argument("--val", metavar="N", type=int, default=20, help="validation images per class (20)")
    parser.add_argument("--size", metavar="PX", type=int, default=160, help="mean side of an image in pixels (160)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="random seed of the images (0)")
    parser.add_argument("--workers", metavar="N", type=int, default=1, help="processes that draw images (1)")
    args = parser.parse_args(argv)
    if min(args.train, args.val, args.seed) < 0 or args.size < 16 or args.workers < 1:
        parser.error(
            "--train, --val and --seed must not be negative, --size must be 16 or more, --workers must be 1 or more"
        )
    make(args.dir, args.train, args.val, args.size, seed=args.seed, workers=args.workers)
    images = (args.train + args.val) * len(CLASSES)
    print(f"{images} images of {len(CLASSES)} classes are in {args.dir}")


if __name__ == "__main__":
    main()
