"""Writes a data set that torchvision reads as folders of PNGs, which is what this project trains on.

    python -m moco.tools.from_torchvision CIFAR10 ROOT OUT [--download]

NAME is a class of torchvision.datasets whose items are an image and a class number. OUT gets train/CLASS/ and
val/CLASS/; the split "test" becomes val/ if there is no other validation split. Images without a class, as those of
STL10's split "unlabeled", go to OUT/unlabeled/, which can be pretrained on like any folder of images. The folders are
named after the classes, with a number in front unless the names are in the order of the labels anyway; so the labels
stay the same. The pixels stay the same, too, but images that are neither RGB nor grey are converted to RGB.

If ROOT holds folders of images already, as for EuroSAT and Food101, pretraining can use them as they are, and needs
less space than with PNGs.
"""

import sys

if not __package__:  # otherwise `import moco` fails
    print(
        "error: this program can't be started by its path; use python -m moco.tools.from_torchvision", file=sys.stderr
    )
    sys.exit(2)
if __name__ == "__main__":
    from moco.engine.early_signals import exit_on_signals

    exit_on_signals()  # before the imports that take seconds

import argparse
import ast
import os
import re
import shlex
import shutil
from collections import Counter

from moco.engine.command_line import Parser, output_folder
from moco.engine.end_report import FEW
from moco.engine.progress import Progress
from moco.engine.stop_signals_raise import stop_signals_raise
from moco.pipe_safe_print import say
from moco.tools.internal.torchvision_source import TRAIN, UNLABELED, VAL, Source, item, names

LONGEST = 64  # characters of a class's name
SMALL = 64  # pixels of a side; below it, and for few images, other settings are sensible than for ImageNet


def main(argv=None):
    parser = Parser(__doc__, __spec__.name, example="CIFAR10 downloads cifar10 --download")
    add = parser.add_argument
    add("name", metavar="NAME", choices=names(), help="class of torchvision.datasets, one of " + ", ".join(names()))
    add("root", metavar="ROOT", help="folder from which torchvision reads the data set")
    add("out", metavar="OUT", type=output_folder, help="folder to write, which must be new or empty")
    add("--download", action="store_true", help="let torchvision download the data set to ROOT if it is not there")
    help = "further argument of the class, such as size=160px of Imagenette; can be given several times"
    add("--option", metavar="NAME=VALUE", type=option, action="append", default=[], help=help)
    args = parser.parse_args(argv)
    try:
        out = check_folders(args.root, args.out, args.download)
        source = Source(args.name, args.root, args.download, dict(args.option))
        with stop_signals_raise():
            report(args.out, *write(source, out))
    except (OSError, ValueError) as error:
        parser.error(error)


def option(text):
    """Converter for argparse: "NAME=VALUE" to (name, value); a value that looks like a number or a bool becomes it."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE; for example: size=160px")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def check_folders(root, out, download):
    """Raises ValueError if ROOT is missing or OUT is not to be written; returns the real path of OUT."""
    real = os.path.realpath(out)
    if not download and not os.path.isdir(root):
        raise ValueError(f"no folder {root!r}; give the one that holds the data set, or --download")
    if os.path.isdir(real) and (os.listdir(real) or os.path.ismount(real)):
        what = "is not empty" if os.listdir(real) else "is a mount point"
        raise ValueError(f"{out!r} {what}; give the name of a new folder")
    if os.path.commonpath([real, os.path.realpath(root)]) == real:
        raise ValueError(f"{out!r} is or contains the folder {root!r} that is read; give another")
    return real


def write(source, out):
    """Writes all splits of a Source; the folder `out` appears when it is complete.

    Returns:
        counts: a dict from the folders in `out` to Counters of the images by label. classes: names of the folders by
        label. side: the shorter side of the first image. unused: names of the splits that were not written.

    Raises:
        OSError, ValueError: the data set can't be read or written. Nothing is left then.
    """
    unfinished = f"{out}.unfinished"
    os.makedirs(os.path.dirname(out), exist_ok=True)
    try:
        os.mkdir(unfinished)
    except FileExistsError:
        raise ValueError(
            f"{unfinished!r} exists; if no other call of this program writes it now, one was killed: remove it"
        ) from None
    counts, classes, side = {}, None, None
    try:
        for folder, selection in source.splits.items():
            dataset = source.open(**selection)
            classes = classes or getattr(dataset, "classes", None) or getattr(dataset, "categories", None)
            side = side or min(item(source.name, dataset, 0)[0].size)
            for name, labels in write_split(source.name, dataset, unfinished, folder).items():
                counts[name] = counts.get(name, Counter()) + labels
        labels = set().union(*counts.values()) - {-1}
        classes = folder_names(classes or (), max(labels, default=-1) + 1)
        for folder in counts:
            for label in counts[folder].keys() - {-1}:
                os.rename(numbered(unfinished, folder, label), os.path.join(unfinished, folder, classes[label]))
        os.rename(unfinished, out)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return counts, classes, side, source.unused


def write_split(name, dataset, out, folder):
    """Writes one split; returns a dict from the folders that it used to a Counter of the images by label."""
    counts, task, width = {}, Progress(f"writing {folder}", len(dataset), "images"), len(str(len(dataset) - 1))
    for i in range(len(dataset)):
        image, label = item(name, dataset, i)
        used = folder if label >= 0 else UNLABELED
        labels = counts.setdefault(used, Counter())
        place = numbered(out, used, label) if label >= 0 else os.path.join(out, used)
        if not labels[label]:
            os.makedirs(place, exist_ok=True)
        labels[label] += 1
        prefix = "" if used == folder else f"{folder}_"  # since several splits may have images without a class
        image.save(os.path.join(place, f"{prefix}{i:0{width}d}.png"))
        task.add()
    return counts


def numbered(out, folder, label):
    """The folder of a class until all labels are known."""
    return os.path.join(out, folder, f"{label:08d}")


def folder_names(classes, n):
    """Names for the folders of labels 0 to n - 1, whose sorted order is that of the labels.

    Args:
        classes: the names of the classes, by label, or tuples of which the first item is the name; or nothing.
    """
    texts = [str(c[0] if isinstance(c, tuple) else c) for c in classes]
    safe = [re.sub(r"[^\w-]+", "_", text, flags=re.ASCII).strip("_")[:LONGEST] for text in texts]
    safe = safe[:n] if len(safe) >= n else [""] * n
    # Some file systems take names that differ only in case for equal.
    if all(safe) and len({name.lower() for name in safe}) == n and safe == sorted(safe):
        return safe
    return [f"{label:0{len(str(n - 1))}d}" + f"_{name}" * bool(name) for label, name in enumerate(safe)]


def report(out, counts, classes, side, unused):
    """Prints what was written, what to know of it, and the commands that come next; the arguments as of `write`."""
    sizes = {folder: labels.total() for folder, labels in counts.items()}
    say(f"wrote {out!r}: " + ", ".join(f"{folder}/ {size:,} images" for folder, size in sizes.items()))
    if unused:
        say(f"note: splits that are not written: {', '.join(unused)}; --option split=NAME writes one as train/")
    found = {label for labels in counts.values() for label in labels}
    if unseen := sorted(set(range(len(classes))) - found):
        say(f"note: no image has the label {', '.join(map(str, unseen))}; so the labels above it shift down by one")
    for folder in (folder for folder in (TRAIN, VAL) if folder in counts):
        if missing := sorted(found - counts[folder].keys() - {-1}):
            say(f"note: {folder}/ has no image of the class {classes[missing[0]]!r}; train/ and val/ differ in it")
    if VAL not in counts:
        say("note: there is no validation split; linear classification needs val/, with some images of each class")
    sized = ["--crop-size", str(min(side, 224))] * (side < 224)
    images = sizes[UNLABELED if UNLABELED in counts else TRAIN]
    small, few = side <= SMALL, images < FEW
    queue = 1 << max(8, min(12, images.bit_length() - 2))  # at most half of the images, but no less than a batch
    network = ["-a", "resnet18"] * few + sized
    flags = network + ["--stem", "small", "--recipe", "blur_p=0"] * small + ["--moco-k", str(queue)] * few
    data = os.path.join(out, UNLABELED) if UNLABELED in counts else out
    run = os.path.join("runs", os.path.basename(os.path.abspath(out)))
    say("pretraining:")
    say(shlex.join(["python", "main_moco.py", *flags, "--output-dir", run, data]))
    if VAL in counts:
        words = [*["--lars"] * (not few), *network, "--pretrained", f"{run}/checkpoint__0099.pth.tar"]
        say("then linear classification:")
        say(shlex.join(["python", "main_lincls.py", *words, "--output-dir", f"{run}/lincls", out]))


if __name__ == "__main__":
    main()
