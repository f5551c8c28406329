"""Features of images: one vector per image, computed by the frozen backbone of a checkpoint.

    python -m moco.tools.extract CHECKPOINT DIR --out features.npz
    python -m moco.tools.extract CHECKPOINT DIR --out FOLDER/

DIR is any folder of images or tar archive. An .npz file holds the arrays `features` (N x d), `labels` (N; the index of
the image's folder in DIR, or -1 for an image directly in DIR), `classes` (the names of these folders) and `paths` (N).
For sets that do not fit into memory, FOLDER/ gets features.npy, labels.npy, classes.txt and paths.txt instead.
"""

import sys

if not __package__:  # otherwise `import moco` fails
    print("error: this program can't be started by its path; use python -m moco.tools.extract", file=sys.stderr)
    sys.exit(2)
if __name__ == "__main__":
    from moco.engine.early_signals import exit_on_signals

    exit_on_signals()  # before the imports that take seconds

import argparse
import os
import shutil
import tempfile

import numpy as np

from moco.data.file_list import ImageFolder
from moco.distributed import from_all, from_rank_0, rank
from moco.engine.command_line import existing_part, output_file, output_folder
from moco.engine.stop_signals_raise import stop_signals_raise
from moco.evaluation.features import encode
from moco.pipe_safe_print import say
from moco.tools.internal.encoder_program import EncoderParser, start

FEATURES, LABELS, CLASSES, PATHS = "features.npy", "labels.npy", "classes.txt", "paths.txt"


def main(argv=None):
    dir_help = "folder of images or tar archive; its folders, if there are some, count as classes"
    parser = EncoderParser(__doc__, __spec__.name, "/path/to/imagenet/val --out features.npz", dir_help)
    add = parser.add_argument
    help = "file to write, or a folder; files of an earlier call are replaced"
    add("--out", metavar="FILE.npz", type=destination, required=True, help=help)
    add("--half", action="store_true", help="write float16 instead of float32")
    add("--projected", action="store_true", help="take the output of the projector instead of the backbone's")
    args = parser.parse_args(argv)
    try:
        folder = ImageFolder(args.dir, any_tree=True)
        encoder = parser.open(args, args.projected)
        place = existing_part(os.path.dirname(os.path.abspath(args.out)) if is_file(args.out) else args.out)
        check_room(len(folder) * encoder.dim * (2 if args.half else 4), is_file(args.out), place)
        check_names(folder, args.out)
        # A hidden folder, so that only complete files get the names that the user expects.
        hidden = tempfile.TemporaryDirectory(prefix=".features-", dir=place)
    except (OSError, ValueError) as error:
        parser.error(error)
    with stop_signals_raise(), hidden as work:
        for line in (folder.summary(), encoder.summary(args.checkpoint)):
            say(line)
        if {"train", "val"} <= set(folder.classes):
            say(f"note: the labels are the folders of {args.dir!r}, such as train and val, not the classes below them")
        start(extract, args, encoder, folder, work)
    kind = "float16" if args.half else "float32"
    say(f"wrote {args.out}: {len(folder):,} x {encoder.dim:,} features, {kind}")


def destination(text):
    """Converter for argparse: an .npz file in an existing folder, or a folder."""
    if is_file(text):
        return output_file(".npz")(text)
    if os.path.splitext(text)[1] and not os.path.isdir(text):
        message = f"{text!r} is neither an .npz file nor a folder; give FILE.npz, or FOLDER/ with its slash"
        raise argparse.ArgumentTypeError(message)
    return output_folder(text)


def is_file(out):
    """Whether --out names a file, not a folder."""
    return out.lower().endswith(".npz")


def check_room(size, twice, place):
    """Raises ValueError if the disk of the folder `place` has less than `size` bytes free, or `twice` as many."""
    free, needed = shutil.disk_usage(place).free, size * (1 + twice)
    if needed > free:
        way_out = "give --half or another --out" + ", or a folder as --out, which needs half as much" * twice
        raise ValueError(
            f"the features need {needed / 1e6:,.1f} MB, but the disk of {place!r} has {free / 1e6:,.1f} MB free; "
            + way_out
        )


def check_names(folder, out):
    """Raises ValueError if the name of an image would take two lines of paths.txt."""
    if is_file(out):
        return
    bad = next((path for path in paths_of(folder) if "\n" in path or "\r" in path), None)
    if bad is not None:
        raise ValueError(f"the path {bad!r} has a line break, which {PATHS} can't hold; give --out FILE.npz")


def paths_of(folder):
    """The paths of all images of an ImageFolder."""
    return (folder.path(i) for i in range(len(folder)))


def extract(encoding, folder, work):
    """Encodes the images, all processes together; rank 0 then completes the files in the folder `work`."""
    encoder, out = encoding.encoder, encoding.args.out
    kind = np.dtype(np.float16 if encoding.args.half else np.float32)
    loader, path = encoding.loader(folder, "features"), os.path.join(work, FEATURES)
    if rank() == 0:
        header = {"descr": kind.str, "fortran_order": False, "shape": (len(folder), encoder.dim)}
        with open(path, "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
    start = from_rank_0(rank() == 0 and os.path.getsize(path))
    with open(path, "r+b") as file:
        file.seek(start + loader.sampler.start * encoder.dim * kind.itemsize)
        done = encoding.progress("features", loader)
        for _, features in encode(encoder.network, loader, encoding.device, step_done=done):
            file.write(features.cpu().numpy().astype(kind).tobytes())
    from_all(None)  # every process has written its share
    if rank() == 0:
        (write_npz if is_file(out) else move_files)(work, folder, out)


def write_npz(work, folder, out):
    """Writes the .npz file from the features in the folder `work`."""
    features, path = np.load(os.path.join(work, FEATURES), mmap_mode="r"), os.path.join(work, "all.npz")
    classes, paths = (np.array(list(names), dtype=str) for names in (folder.classes, paths_of(folder)))
    np.savez(path, features=features, labels=folder.labels, classes=classes, paths=paths)
    os.replace(path, out)


def move_files(work, folder, out):
    """Writes the small files, and moves all into the folder `out`."""
    np.save(os.path.join(work, LABELS), folder.labels)
    for name, lines in ((CLASSES, folder.classes), (PATHS, paths_of(folder))):
        with open(os.path.join(work, name), "wb") as file:
            file.writelines(os.fsencode(line) + b"\n" for line in lines)
    os.makedirs(out, exist_ok=True)
    for name in (FEATURES, LABELS, CLASSES, PATHS):
        os.replace(os.path.join(work, name), os.path.join(out, name))


if __name__ == "__main__":
    main()
