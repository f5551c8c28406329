"""Intra-image variance: how much the encodings of one image differ from view to view, for each recipe of the paper.

    python -m moco.tools.variance CHECKPOINT DIR [--views 32] [--json] [--out variance.png]

It answers the paper's question: which recipe causes a high variance, which helps the source, and which a low one,
which helps the target. The variance is in hundredths: 0 if all views of an image have the same encoding, 100 if each
has a random direction. Batch normalisation works as in pretraining. Compare ratios to the baseline: the paper's are
4.6 for MultiCrop's small views and 0.51 for MeanEnc (ImageNet, 800 epochs). All GPUs of the machine share the work.
"""

import sys

if not __package__:  # otherwise `import moco` fails
    print("error: this program can't be started by its path; use python -m moco.tools.variance", file=sys.stderr)
    sys.exit(2)
if __name__ == "__main__":
    from moco.engine.early_signals import exit_on_signals

    exit_on_signals()  # before the imports that take seconds

import json
import math
import os
from dataclasses import replace

from moco.batchnorm import check_splits
from moco.data.file_list import ImageFolder
from moco.data.image_places import VAL, place_of, training_images
from moco.data.passed_over_files import plural
from moco.distributed import rank
from moco.engine.checkpoint_format import bn_batch_of
from moco.engine.command_line import SEED, number, output_file
from moco.engine.pretrained_backbone import SOURCE, TARGET
from moco.engine.size_checks import check_views, process_memory, settle_mini_size
from moco.engine.stop_signals_raise import stop_signals_raise
from moco.evaluation.pretrained_encoder import open_encoder
from moco.evaluation.variance import WholeBatches, needed_views, paper_recipes, variances, view_loader, whole_batches
from moco.pipe_safe_print import say
from moco.tools.internal.encoder_program import EncoderParser, launch_of, start
from moco.views.augmentation_recipes import parse_field

ENCODERS = {"q": SOURCE, "k": TARGET}
BN_BATCH = 32  # images in a batch-norm group of the paper's runs
MEMORY = 0.25  # share of a process's memory that the sums of the encodings may fill


def main(argv=None):
    parser = EncoderParser(
        __doc__,
        __spec__.name,
        "/path/to/imagenet",
        "folder of images or tar archive, as for main_moco.py; if it holds val, that is used",
        "images in a batch, of which each process encodes a whole one",
    )
    add, some, least = parser.add_argument, number(int, 1), number(int, 2)
    add("--views", metavar="N", type=least, default=32, help="views of each image")
    add("--images", metavar="N", type=least, help="use only so many images, chosen at random (default: all)")
    help = "batch-norm groups in a batch (default: groups as large as in the pretraining, or of 32 images)"
    add("--bn-splits", metavar="N", type=some, help=help)
    add("--encoder", choices=ENCODERS, default="q", help="encoder of the source (q) or of the target (k)")
    add("--mini-crop-size", metavar="PX", type=some, help="side of the small views (default: as in the pretraining)")
    add("--augment-on", choices=["cpu", "device"], default="device", help="as for main_moco.py; equal up to rounding")
    help = "what to do if an image can't be decoded: end, or use the next image instead"
    add("--on-bad-image", choices=["stop", "skip"], default="stop", help=help)
    add("--seed", metavar="N", type=SEED, default=0, help="random seed of the views and of the choice of images")
    add("--json", action="store_true", help="print the result as JSON, too, in the last line")
    help = "picture to write, which needs the package matplotlib (default: none)"
    add("--out", metavar="FILE", type=output_file(".png", ".pdf", ".svg"), help=help)
    args = parser.parse_args(argv)
    try:
        check_picture(args.out)
        folder = images_of(args.dir)
        images, args.batch_size = whole_batches(images_to_use(folder, args.images), args.batch_size)
        encoder, recipes = open_with_recipes(args)
        check_sums(len(recipes), images, encoder.dim, process_memory(launch_of(args).local))
    except (OSError, ValueError) as error:
        parser.error(error)
    for line in (folder.summary(), encoder.summary(args.checkpoint), *introduction(args, images)):
        say(line)
    with stop_signals_raise():
        start(measure, args, encoder, folder, images, recipes)


def check_picture(out):
    """Raises ValueError if the picture can't be drawn."""
    if out:
        try:
            import matplotlib.figure  # noqa: F401
        except ImportError as error:
            raise ValueError("--out needs the package matplotlib; pip install matplotlib, or leave it out") from error


def images_of(data):
    """The ImageFolder of `data`/val, or else that of a pretraining; raises OSError as ImageFolder."""
    val = place_of(data, VAL)
    return ImageFolder(val, labels=False) if val else training_images(data)


def images_to_use(folder, wanted):
    """The number of images of an ImageFolder to use, --images or all; raises ValueError if there are too few."""
    least = wanted or 2
    if len(folder) < least:
        rule = f"fewer than --images {wanted}; give fewer" if wanted else "but a variance needs 2 or more; add images"
        raise ValueError(f"{folder.root!r} has {plural(len(folder), 'image')}, {rule}")
    return least if wanted else len(folder)


def open_with_recipes(args):
    """Opens the checkpoint, and checks that the network can encode a batch. Sets `args.bn_splits`.

    Returns:
        (PretrainedEncoder, dict of Recipes); the encoder's `checkpoint` is empty.

    Raises:
        ValueError: the checkpoint or a flag does not fit.
    """
    launch = launch_of(args)
    found = open_encoder(args.checkpoint, args.arch, args.crop_size, True, ENCODERS[args.encoder], stem=args.stem)
    args.bn_splits = args.bn_splits or usual_splits(args.batch_size, bn_batch_of(found.checkpoint) or BN_BATCH)
    check_splits(args.bn_splits, args.batch_size)
    options = found.checkpoint.get("options", {})
    mini_size = args.mini_crop_size or options.get("mini_crop_size")
    mini_size = settle_mini_size(mini_size, found.crop_size, multicrop=True)
    recipes = paper_recipes(found.crop_size, mini_size, **dict(map(parse_field, options.get("recipe", []))))
    views, batches = needed_views(recipes), args.batch_size * launch.local
    check_views(views, found.arch, batches, launch.local, stem=found.stem)
    return replace(found, checkpoint={}), recipes


def usual_splits(batch, bn_batch):
    """The number of equal groups of a batch that have `bn_batch` images, or as few more as possible."""
    return next(n for n in range(max(1, batch // bn_batch), 0, -1) if batch % n == 0)


def check_sums(recipes, images, dim, room):
    """Raises ValueError if the sums of the encodings, twice in memory, fill too much of `room` bytes."""
    size = 2 * 8 * recipes * images * dim
    if size > MEMORY * room:
        raise ValueError(
            f"the encodings of {images} images need {size / 1e6:,.1f} MB in each process, more than a quarter of its "
            f"{room / 1e6:,.1f} MB of memory; give fewer --images"
        )


def introduction(args, images):
    """The lines that say what is measured; `images` is the number of images."""
    batch, groups = args.batch_size, args.bn_splits
    of = f"{groups} batch-norm groups of {batch // groups} images" if groups > 1 else "1 batch-norm group"
    of_whom = f"{images} images, {args.views} views of each, in batches of {batch} with {of}"
    yield f"variance by {ENCODERS[args.encoder]}, in hundredths (0: all views alike, 100: random): {of_whom}"
    if groups == 1:
        yield "note: asym_bn is equal to the baseline, since there is only one batch-norm group; give more --bn-splits"


def measure(encoding, folder, images, recipes):
    """Measures in one process; rank 0 prints the result and draws the picture."""
    args, encoder = encoding.args, encoding.encoder
    batches = WholeBatches(len(folder), images, args.batch_size, args.views, args.seed)
    workers, room = encoding.limits()
    loader = view_loader(folder, recipes, batches, workers, args.augment_on, args.on_bad_image == "skip", room)
    done = encoding.progress("variance", total=images * args.views, unit="views")
    how = loader, args.augment_on, args.bn_splits, encoding.device
    found = variances(encoder.network, encoder.dim, recipes, *how, step_done=done)
    if rank() != 0:
        return
    results = with_ratios(found)
    if not all(math.isfinite(one.variance) for one in found.values()):
        say("error: the encodings are not finite, so the network has diverged; give an earlier checkpoint", True)
        sys.exit(1)
    for line in table(results):
        say(line)
    if args.out:
        from moco.tools.internal.variance_figure import write

        write(results, args.out, f"{os.path.basename(args.checkpoint)}, {images} images, {args.views} views of each")
        say(f"wrote {args.out}")
    if args.json:
        say(json.dumps(results))


def with_ratios(found):
    """dict from name to dict of variance, standard_error and ratio, the last one None if the baseline's is 0."""
    base = found["baseline"].variance
    return {name: {**one._asdict(), "ratio": one.variance / base if base else None} for name, one in found.items()}


def table(results):
    """Yields the lines of the table."""
    yield f"{'recipe':16} {'variance':>9} {'std. error':>11} {'ratio':>7}"
    for name, one in results.items():
        ratio = "-" if one["ratio"] is None else f"{one['ratio']:.3f}"
        yield f"{name:16} {one['variance']:9.3f} {one['standard_error']:11.3f} {ratio:>7}"


if __name__ == "__main__":
    main()
