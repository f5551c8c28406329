"""A picture of what the two sides see: a row an image, the source's views on the left, the target's on the right.

    python -m moco.tools.view_gallery DIR [--enable-multicrop ...] [--augment-on cpu] --out views.png

The draws are those of training for that seed and epoch, and the images the first of that epoch's order. A line frames
ScaleMix's box. With --both-paths each image has three bands: the views by Pillow, by the device, and their difference.
"""

import argparse
import os
import textwrap

import torch
from PIL import Image, ImageChops, ImageDraw, ImageFont

import main_moco
from moco.image_folder import ImageFolder
from moco.loader import EpochBatches, RandomCrops, RandomViews
from moco.prefetch import finisher
from moco.views.normalize import MEAN, STD
from moco.views.on_tensor import BOX, Layout

GAP, MARGIN = 4, 16  # pixels: between views; around the sides
INK, PAPER, FRAME = (20, 20, 20), (255, 255, 255), (255, 230, 0)
AMPLIFY = 16  # of a difference, so that one level shows


def main():
    parser = argparse.ArgumentParser(
        prog="python -m moco.tools.view_gallery",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dir", metavar="DIR", help="folder that holds train/ with a folder a class")
    main_moco.add_designs(parser)
    parser.add_argument("--augment-on", choices=["cpu", "device"], default="cpu", help="the path to show (cpu)")
    parser.add_argument("--both-paths", action="store_true", help="show both paths and their difference")
    parser.add_argument("--images", metavar="N", type=int, default=4, help="rows (4)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the run (0)")
    parser.add_argument("--epoch", metavar="N", type=int, default=0, help="0-based (0)")
    parser.add_argument("--crop-size", metavar="PX", type=int, default=224, help="side of the full-size views (224)")
    parser.add_argument("--mini-crop-size", metavar="PX", type=int, default=96, help="of MultiCrop's views (96)")
    parser.add_argument("--out", metavar="FILE", default="views.png", help="the picture to write (views.png)")
    args = parser.parse_args()
    if min(args.images, args.crop_size, args.mini_crop_size) < 1 or min(args.seed, args.epoch) < 0:
        parser.error("--images and the sizes must be positive, --seed and --epoch not negative")
    try:
        folder = ImageFolder(os.path.join(args.dir, "train"))
        if len(folder) < args.images:
            raise OSError(f"{folder.root!r} has {len(folder)} images, fewer than --images {args.images}")
        picture(folder, main_moco.view_plan(args), args).save(args.out)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(f"wrote {args.out}")


def picture(folder, plan, args):
    """Draws the gallery; returns a PIL image."""
    order = EpochBatches(len(folder), len(folder), args.seed)
    order.epoch = args.epoch
    addresses = next(iter(order))[: args.images]
    paths = ("cpu", "device") if args.both_paths else (args.augment_on,)
    bands = {path: views_of(folder, plan, args.seed, addresses, path) for path in paths}
    if args.both_paths:
        bands[f"{AMPLIFY} x difference"] = [
            [difference(a, b) for a, b in zip(*pair, strict=True)] for pair in zip(*bands.values(), strict=True)
        ]
    framed = boxes(folder, plan, args.seed, addresses)
    rows = []
    for i in range(len(addresses)):
        for name, images in bands.items():
            views = [frame(view, box) for view, box in zip(images[i], framed[i], strict=True)]
            rows.append((name, *(side(views, places) for places in sides(plan))))
    return page(rows, str(plan), args)


def views_of(folder, plan, seed, addresses, path):
    """The views of some images on one path, as training makes them: lists of PIL images, one list an image."""
    if path == "cpu":
        dataset = RandomViews(folder, plan.views, seed)
        return [[to_pil(view) for view in dataset[address][0]] for address in addresses]
    batch = RandomCrops(folder, plan.views, seed).__getitems__(addresses)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    views, _ = finisher(plan.views, "device", device)(batch)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return [
        [to_pil(((view[i].cpu() * std + mean) * 255).round().byte()) for view in views] for i in range(len(addresses))
    ]


def boxes(folder, plan, seed, addresses):
    """Each view's ScaleMix box (top, left, bottom, right), or None; a list an image."""
    layout = Layout(plan.views)
    _, rows, _ = RandomCrops(folder, plan.views, seed).__getitems__(addresses)
    places = list(zip(layout.firsts, plan.views, strict=True))
    return [[tuple(map(int, row[i, BOX])) if view.mixed else None for i, view in places] for row in rows]


def to_pil(view):
    """3 x H x W, uint8, to a PIL image."""
    return Image.fromarray(view.permute(1, 2, 0).numpy())


def difference(a, b):
    """The absolute difference of two images, amplified."""
    return ImageChops.difference(a, b).point(lambda level: min(255, AMPLIFY * level))


def frame(view, box):
    """Draws the line around a box, where it has an inside."""
    if box is None or box[0] >= box[2] or box[1] >= box[3]:
        return view
    top, left, bottom, right = box
    view = view.copy()
    ImageDraw.Draw(view).rectangle((left, top, right - 1, bottom - 1), outline=FRAME)
    return view


def sides(plan):
    """The places of the source's and of the target's views in the plan's order."""
    n = len(plan.source) + len(plan.mini)
    return range(n), range(n, len(plan.views))


def side(views, places):
    """One side's views as a strip as high as its first one, smaller ones above each other."""
    views = [views[i] for i in places]
    height = views[0].height
    spots, x, y, width = [], 0, 0, 0
    for view in views:
        if y + view.height > height:  # the column is full
            x, y = width + GAP, 0
        spots.append((x, y))
        y, width = y + view.height + GAP, max(width, x + view.width)
    strip = Image.new("RGB", (width, height), PAPER)
    for view, spot in zip(views, spots, strict=True):
        strip.paste(view, spot)
    return strip


def page(rows, plan, args):
    """Puts the strips under a heading: the plan in words, the sides, what each band is."""
    font, small = ImageFont.load_default(size=18), ImageFont.load_default(size=14)
    label = 110  # the column of the bands' names
    source, target = (max(row[i].width for row in rows) for i in (1, 2))
    width = max(label + source + target + 4 * MARGIN, 640)
    parts = [*plan.split(" | "), f"seed {args.seed}, epoch {args.epoch}"]
    words = [line for part in parts for line in textwrap.wrap(part, width // 8)]
    top = MARGIN + 20 * len(words) + 40
    sheet = Image.new("RGB", (width, top + sum(row[1].height + 2 * GAP for row in rows) + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, line in enumerate(words):
        draw.text((MARGIN, MARGIN + 20 * i), line, INK, small)
    left, right = MARGIN + label, MARGIN + label + source + 2 * MARGIN
    draw.text((left, top - 28), "source", INK, font)
    draw.text((right, top - 28), "target", INK, font)
    y = top
    for name, first, second in rows:
        draw.text((MARGIN, y), name, INK, small)
        sheet.paste(first, (left, y))
        sheet.paste(second, (right, y))
        y += first.height + 2 * GAP
    draw.line((right - MARGIN, top, right - MARGIN, y), INK)
    return sheet


if __name__ == "__main__":
    main()
