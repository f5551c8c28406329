"""Nearest neighbours as a picture: which images an encoder finds similar.

    python -m moco.tools.neighbours CHECKPOINT DIR --out neighbours.png [--queries 8] [--random]

Each row shows a query and its nearest images with their cosine similarity, which is green if the classes are known and
equal. With --random, the nearest images by a random encoder stand beside them. DIR is any folder of images. If it
holds train/ and val/, the queries are images of val/, and their neighbours are images of train/.
"""

import sys

if not __package__:  # otherwise `import moco` fails
    print("error: this program can't be started by its path; use python -m moco.tools.neighbours", file=sys.stderr)
    sys.exit(2)
if __name__ == "__main__":
    from moco.engine.early_signals import exit_on_signals

    exit_on_signals()  # before the imports that take seconds

import os

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from moco.data.file_list import ImageFolder
from moco.data.image_places import place_of
from moco.data.passed_over_files import plural
from moco.data.view_datasets import CentralViews
from moco.distributed import copy_from_rank_0, rank
from moco.engine.command_line import SEED, number, output_file
from moco.engine.stop_signals_raise import stop_signals_raise
from moco.evaluation.features import encode
from moco.evaluation.knn import NearestNeighbours
from moco.evaluation.pretrained_encoder import open_encoder
from moco.pipe_safe_print import say
from moco.tools.internal.encoder_program import EncoderParser, start
from moco.tools.view_gallery import INK, PAPER, PICTURES
from moco.views.normalize import normalize_images

SIDE, GAP, MARGIN, LINE = 100, 6, 16, 20  # pixels: of an image, between images, around them, of a line of text
SAME, QUERY = (0, 120, 40), (200, 60, 0)  # colours of a similarity within the query's class, and of a query's frame
MOST = 64  # queries and neighbours in a picture


def main(argv=None):
    parser = EncoderParser(
        __doc__, __spec__.name, "/path/to/imagenet", "folder of images or tar archive, or a folder with train and val"
    )
    add, some = parser.add_argument, number(int, 1, MOST)
    add("--out", metavar="FILE", type=output_file(*PICTURES), default="neighbours.png", help="file to write")
    add("--queries", metavar="N", type=some, default=8, help="number of queries, the rows of the picture")
    add("--neighbours", metavar="N", type=some, default=8, help="number of neighbours of each query")
    add("--random", action="store_true", help="also show the neighbours by a random encoder")
    add("--seed", metavar="N", type=SEED, default=0, help="random seed that chooses the queries")
    args = parser.parse_args(argv)
    try:
        queries, bank = folders(args.dir)
        check_enough(args, queries, bank)
        encoder = parser.open(args)
        if args.random and not encoder.tensors:
            raise ValueError("--random shows a random encoder beside a checkpoint; with none, leave it out")
        encoders = [encoder] + [open_encoder("none", encoder.arch, encoder.crop_size, stem=encoder.stem)] * args.random
    except (OSError, ValueError) as error:
        parser.error(error)
    for folder in [bank] if queries is bank else [queries, bank]:
        say(folder.summary())
    say(encoder.summary(args.checkpoint))
    chosen = np.random.default_rng(args.seed).choice(len(queries), args.queries, replace=False).tolist()
    with stop_signals_raise():
        start(draw, args, encoder, encoders, queries, bank, chosen)


def folders(data):
    """The ImageFolders of the queries and of their neighbours; one and the same unless `data` has train/ and val/."""
    places = [place_of(data, split) for split in ("val", "train")]
    if all(places):
        return tuple(ImageFolder(place, any_tree=True) for place in places)
    return (ImageFolder(data, any_tree=True),) * 2


def check_enough(args, queries, bank):
    """Raises ValueError if the picture would need more images than the ImageFolders have."""
    for flag, wanted, folder, own in (
        ("--queries", args.queries, queries, 0),
        ("--neighbours", args.neighbours, bank, queries is bank),
    ):
        if wanted > (most := len(folder) - own):
            images, way_out = plural(len(folder), "image"), f"give {most} at most" if most else "give more images"
            raise ValueError(f"{flag} {wanted} is too many for the {images} of {folder.root!r}; {way_out}")


def draw(encoding, encoders, queries, bank, chosen):
    """Finds the neighbours, all processes together; rank 0 writes the picture."""
    args, crop_size, same = encoding.args, encoding.encoder.crop_size, queries.root == bank.root
    panels = []
    for encoder in encoders:
        network = encoder.network.to(encoding.device, memory_format=torch.channels_last)
        features = torch.zeros(len(chosen), encoder.dim, device=encoding.device)
        if rank() == 0:  # it alone reports a query that can't be decoded
            views = torch.stack([CentralViews(queries, crop_size)[i][0] for i in chosen])
            features = network(normalize_images(views.to(encoding.device))).float()
        copy_from_rank_0([features])
        nearest, loader = NearestNeighbours(features, args.neighbours + same), encoding.loader(bank, "neighbours")
        done = encoding.progress("neighbours", loader)
        for indices, features in encode(network, loader, encoding.device, step_done=done):
            nearest.add(indices, features)
        nearest.merge_ranks()
        rows = zip(*(x.tolist() for x in nearest.result()), strict=True)
        pairs = [list(zip(*row, strict=True)) for row in rows]  # (similarity, index) of each neighbour
        if same:  # a query is no neighbour of itself
            pairs = [[p for p in row if p[1] != i][: args.neighbours] for row, i in zip(pairs, chosen, strict=True)]
        panels.append(pairs)
    if rank() == 0:
        names = [os.path.basename(args.checkpoint) if e.tensors else "random encoder" for e in encoders]
        names = [
            name + same_class_clause(panel, queries, bank, chosen) for name, panel in zip(names, panels, strict=True)
        ]
        picture(panels, names, queries, bank, chosen, crop_size).save(args.out)
        say(f"wrote {args.out}")


def picture(panels, names, queries, bank, chosen, crop_size):
    """Draws the picture.

    Args:
        panels: for each encoder, for each query, its neighbours as pairs (similarity, index). names: of the encoders.
        queries, bank: ImageFolders. chosen: the indices of the queries. crop_size: pixels that an encoder sees.

    Returns:
        A PIL image.
    """
    font, step = ImageFont.load_default(size=14), SIDE + GAP
    wide = len(panels[0][0]) * step
    left = [MARGIN + step + MARGIN + i * (wide + 2 * MARGIN) for i in range(len(panels))]
    top, width = MARGIN + LINE + GAP, left[-1] + wide + MARGIN
    sheet = Image.new("RGB", (width, top + len(chosen) * (step + LINE) + MARGIN), PAPER)
    pen, views = ImageDraw.Draw(sheet), (CentralViews(queries, crop_size), CentralViews(bank, crop_size))
    for x, name in zip((MARGIN, *left), ("query", *names), strict=False):
        pen.text((x, MARGIN), fitted(name, wide, font), INK, font)
    for row, i in enumerate(chosen):
        y = top + row * (step + LINE)
        sheet.paste(thumbnail(views[0][i][0]), (MARGIN, y))
        pen.rectangle((MARGIN, y, MARGIN + SIDE - 1, y + SIDE - 1), outline=QUERY, width=3)
        for x, panel in zip(left, panels, strict=True):
            for column, (similarity, j) in enumerate(panel[row]):
                place = x + column * step
                sheet.paste(thumbnail(views[1][j][0]), (place, y))
                colour = SAME if same_class(queries, i, bank, j) else INK
                pen.text((place, y + SIDE + 2), f"{similarity:.3f}", colour, font)
    return sheet


def thumbnail(view):
    """Converts 3 x size x size, uint8, to a PIL image of SIDE x SIDE pixels."""
    return Image.fromarray(view.permute(1, 2, 0).numpy()).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def fitted(text, width, font):
    """A line of text, or as much of its end as is at most `width` pixels wide."""
    ends = [text, *(f"...{text[i:]}" for i in range(1, len(text) + 1))]
    return next(end for end in ends if font.getlength(end) <= width)


def same_class_clause(panel, queries, bank, chosen):
    """How many of an encoder's neighbours have the class of their query, in words; "" if there are no classes."""
    if not bank.classes:
        return ""
    pairs = [(i, j) for i, row in zip(chosen, panel, strict=True) for _, j in row]
    same = sum(same_class(queries, i, bank, j) for i, j in pairs)
    return f": {same} of {len(pairs)} of the query's class (green)"


def same_class(queries, i, bank, j):
    """Whether query i and image j of the bank have the same class, which is known."""
    return class_of(bank, j) is not None and class_of(bank, j) == class_of(queries, i)


def class_of(folder, index):
    """The name of the class of an image; None if it has none."""
    label = folder.labels[index]
    return folder.classes[label] if label >= 0 else None


if __name__ == "__main__":
    main()
