"""Draws what the two sides see: one row per image, the source's views on the left, the target's views on the right.

    python -m moco.tools.view_gallery DIR [--enable-multicrop ...] [--augment-on cpu] --out views.png

It shows the views that a training with that seed uses for the first images of that epoch. A yellow line frames the box
of ScaleMix. With --both-paths each image has three rows: its views made by Pillow, by the device, and the difference.
"""

import sys

if not __package__:  # otherwise `import moco` fails
    print("error: this program can't be started by its path; use python -m moco.tools.view_gallery", file=sys.stderr)
    sys.exit(2)

import textwrap

import torch
from PIL import Image, ImageChops, ImageDraw, ImageFont

import main_moco
from moco.data.image_places import training_images
from moco.data.prefetch_to_device import finisher
from moco.data.sampler import EpochBatchSampler
from moco.data.view_datasets import RandomCrops, RandomViews
from moco.engine.command_line import SEED, Parser, number, output_file
from moco.engine.design_flags import add_design_flags
from moco.engine.progress import Progress
from moco.engine.size_checks import check_memory
from moco.views.augment_on_device import BOX, Layout
from moco.views.normalize import to_pixels

GAP, MARGIN = 4, 16  # pixels between views, and around the sides
LABEL = 110  # width of the column with the names of the rows
INK, PAPER, FRAME = (20, 20, 20), (255, 255, 255), (255, 230, 0)
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".tiff", ".bmp", ".pdf")
COPIES = 16  # of a view, as uint8: its floats on the device, their results, and the picture
AMPLIFY = 16  # factor for the difference, so that one level is visible


def main(argv=None):
    parser = Parser(__doc__, __spec__.name, example="--enable-multicrop /path/to/imagenet")
    some = number(int, 1)
    parser.add_argument("dir", metavar="DIR", help="folder of images or tar archive, as for main_moco.py")
    add_design_flags(parser)
    add = parser.add_argument
    add("--augment-on", choices=["cpu", "device"], default="cpu", help="which path makes the views")
    add("--both-paths", action="store_true", help="show both paths and their difference")
    add("--images", metavar="N", type=some, default=4, help="number of images")
    add("--seed", metavar="N", type=SEED, default=0, help="random seed of the training")
    add("--epoch", metavar="N", type=number(int, 0), default=0, help="0-based epoch of the training")
    add("--crop-size", metavar="PX", type=some, default=224, help="side of the full-size views")
    add("--mini-crop-size", metavar="PX", type=some, help="side of the small views (default: 96/224 of --crop-size)")
    add("--out", metavar="FILE", type=output_file(*PICTURES), default="views.png", help="file to write")
    args = parser.parse_args(argv)
    try:
        plan = main_moco.view_plan(args)
        check_memory(plan.views, args.images, COPIES, "fewer --images")
        folder = training_images(args.dir)
        if len(folder) < args.images:
            raise ValueError(
                f"{folder.root!r} has {len(folder)} images, fewer than --images {args.images}; give fewer"
            )
        picture(folder, plan, args).save(args.out)
    except (OSError, ValueError) as error:
        parser.error(error)
    print(f"wrote {args.out}")


def picture(folder, plan, args):
    """Draws the gallery; returns a PIL image."""
    order = EpochBatchSampler(len(folder), len(folder), args.seed)
    order.epoch = args.epoch
    addresses = next(iter(order))[: args.images]
    paths = ("cpu", "device") if args.both_paths else (args.augment_on,)
    rows, task = [], Progress("drawing", len(addresses), "images")
    for address in addresses:
        bands = {path: views_of(folder, plan, args.seed, address, path) for path in paths}
        if args.both_paths:
            bands[f"{AMPLIFY} x difference"] = [difference(a, b) for a, b in zip(*bands.values(), strict=True)]
        boxes = boxes_of(folder, plan, args.seed, address)
        for name, views in bands.items():
            framed = [frame(view, box) for view, box in zip(views, boxes, strict=True)]
            rows.append((name, *(side(framed, places) for places in sides(plan))))
        task.add()
    return page(rows, [*str(plan).split(" | "), f"seed {args.seed}, epoch {args.epoch}"])


def views_of(folder, plan, seed, address, path):
    """The views of an image as training makes them on one path: a list of PIL images."""
    if path == "cpu":
        return [to_pil(view) for view in RandomViews(folder, plan.views, seed)[address][0]]
    batch = RandomCrops(folder, plan.views, seed).__getitems__([address])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    views, _ = finisher(plan.views, "device", device)(batch)
    return [to_pil(to_pixels(view[0].cpu())) for view in views]


def boxes_of(folder, plan, seed, address):
    """The box (top, left, bottom, right) of each mixed view of an image, None for other views: a list."""
    _, (row,), _ = RandomCrops(folder, plan.views, seed).__getitems__([address])
    places = zip(Layout(plan.views).firsts, plan.views, strict=True)
    return [tuple(map(int, row[i, BOX])) if view.mixed else None for i, view in places]


def to_pil(view):
    """Converts 3 x H x W, uint8, to a PIL image."""
    return Image.fromarray(view.permute(1, 2, 0).numpy())


def difference(a, b):
    """The amplified absolute difference of two images."""
    return ImageChops.difference(a, b).point(lambda level: min(255, AMPLIFY * level))


def frame(view, box):
    """Draws a line around the box, unless the box is empty."""
    if box is None or box[0] >= box[2] or box[1] >= box[3]:
        return view
    top, left, bottom, right = box
    view = view.copy()
    ImageDraw.Draw(view).rectangle((left, top, right - 1, bottom - 1), outline=FRAME)
    return view


def sides(plan):
    """The indices of the source's and of the target's views in the order of the plan."""
    n = len(plan.source.full + plan.source.mini)
    return range(n), range(n, len(plan.views))


def side(views, places):
    """Arranges the views of one side in a strip, as high as the first view; small views stand above each other."""
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


def page(rows, heading):
    """Puts the strips on one sheet under a heading, a list of lines; returns a PIL image."""
    font, small = ImageFont.load_default(size=18), ImageFont.load_default(size=14)
    source, target = (max(row[i].width for row in rows) for i in (1, 2))
    width = max(LABEL + source + target + 4 * MARGIN, 640)
    words = [line for part in heading for line in textwrap.wrap(part, width // 8)]
    top = MARGIN + 20 * len(words) + 40
    sheet = Image.new("RGB", (width, top + sum(row[1].height + 2 * GAP for row in rows) + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, line in enumerate(words):
        draw.text((MARGIN, MARGIN + 20 * i), line, INK, small)
    left, right = MARGIN + LABEL, MARGIN + LABEL + source + 2 * MARGIN
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
