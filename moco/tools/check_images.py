"""Checks the images of a data set before a long run: decodes each once, and lists those that are broken or too small.

    python -m moco.tools.check_images DIR [-j N] [--out bad.txt]

DIR is any tree of images or an archive; all that lies below it is checked, such as train/ and val.tar. Images that are
grey, CMYK, transparent, with a palette or with 16 bits are only counted, since training converts them to RGB. An image
counts as broken, too, if decoding it crashes, or needs more memory than a process may have: half of the memory divided
by the number of processes, but at least 1 GB and at most 3 GB.

The exit code is 0 if no image is broken, 1 if one is, 2 if an argument is wrong, 3 if the system can't read an image
at the moment, and 143 after a stop signal.
"""

import sys

if not __package__:  # otherwise `import moco` fails
    print("error: this program can't be started by its path; use python -m moco.tools.check_images", file=sys.stderr)
    sys.exit(2)
if __name__ == "__main__":
    from moco.engine.early_signals import exit_on_signals

    exit_on_signals()  # before the imports that take seconds

import io
import os
from collections import Counter
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image

from moco.data.bad_image_substitutes import FEW, SHARE
from moco.data.file_list import ImageFolder
from moco.data.image_decoding import decode_to_pil
from moco.data.image_places import image_places
from moco.data.image_reading import FORMATS, BadImageError, ImageReadError, naming
from moco.engine.command_line import PROCESSES, Parser, number, output_file
from moco.engine.early_signals import signal_name
from moco.engine.launch_plan import cores, memory
from moco.engine.progress import Progress
from moco.engine.stop_signals_raise import stop_signals_raise
from moco.pipe_safe_print import say
from moco.tools.internal.crash_proof_map import Crash, crash_proof_map

BROKEN, SYSTEM_FAILED = 1, 3  # exit codes
LEAST_MEMORY, MOST_MEMORY = 2**30, 3 * 2**30  # bytes that a process may use to decode an image


class Intact(NamedTuple):
    """An image that can be decoded.

    Attributes:
        format: such as JPEG. mode: RGB, or in which way it is not RGB. width, height: pixels. size: bytes of its file.
    """

    format: str
    mode: str
    width: int
    height: int
    size: int


def main(argv=None):
    parser = Parser(__doc__, __spec__.name, example="/path/to/imagenet")
    add = parser.add_argument
    add("dir", metavar="DIR", help="folder of images, in folders or not, or an archive")
    add("-j", "--workers", metavar="N", type=PROCESSES, default=cores(), help="number of processes that decode")
    help = "list images whose shorter side is less than this"
    add("--smallest", metavar="PX", type=number(int, 1), default=32, help=help)
    help = "file for the paths of the broken images, one per line, as --on-bad-image skip lists them"
    add("--out", metavar="FILE.txt", type=output_file(".txt"), help=help)
    args = parser.parse_args(argv)
    try:
        folders, broken = [ImageFolder(args.dir, any_tree=True)], []
        for place in image_places(args.dir):  # an archive beside a folder of images is not in the list of DIR
            if place.endswith(".tar") and os.path.basename(place).removesuffix(".tar") not in folders[0].classes:
                folders.append(ImageFolder(place, any_tree=True))
        with stop_signals_raise():
            for folder in folders:
                say(f"images: {len(folder):,} in {folder.root!r}{folder.passed_over.clause()}")
                broken += check(folder, args.workers, args.smallest)
        if args.out:
            with open(args.out, "wb") as file:
                file.writelines(os.fsencode(os.path.abspath(path)) + b"\n" for path in broken)
    except ImageReadError as error:
        # Instead of the end of the message, which speaks of a run.
        say(f"{parser.prog}: error: {str(error).rpartition(';')[0]}; check again when it works", True)
        sys.exit(SYSTEM_FAILED)
    except OSError as error:
        parser.error(error)
    if broken:
        way_out = "remove or repair the broken images, or train with --on-bad-image skip, which tolerates "
        listed = f"; their paths are in {args.out!r}" if args.out else ""
        say(f"{way_out}{FEW} of them, or {SHARE:.1%} of all images if that is more{listed}")
        sys.exit(BROKEN)


def check(folder, processes, smallest):
    """Checks all images of an ImageFolder, and prints what it finds.

    Args:
        smallest: the shorter side in pixels that an image must have at least.

    Returns:
        The paths of the broken images.

    Raises:
        ImageReadError: the system, not an image, is at fault.
    """
    n, task = len(folder), Progress("checking", len(folder), "images")
    sizes, formats, modes, broken, small = np.empty((n, 3), np.int64), Counter(), Counter(), [], 0
    allowed = min(max(memory() // 2 // processes, LEAST_MEMORY), MOST_MEMORY)
    for i, result in enumerate(crash_proof_map(partial(inspect, folder, allowed), n, processes, allowed)):
        task.add()
        if isinstance(result, ImageReadError):
            raise result
        if not isinstance(result, Intact):
            say(f"broken: {folder.path(i)!r}: {crash(result) if isinstance(result, Crash) else result}")
            broken.append(folder.path(i))
            continue
        sizes[i - len(broken)] = result[2:]
        formats[result.format] += 1
        modes[result.mode] += 1
        if min(result.width, result.height) < smallest:
            say(f"small: {folder.path(i)!r}: {result.width} x {result.height} px")
            small += 1
    if len(broken) < n:
        report(sizes[: n - len(broken)], formats, modes)
    say(f"checked: {n:,}; broken: {len(broken):,}; with a side of less than {smallest} px: {small:,}")
    return broken


def inspect(folder, allowed, index):
    """Reads and decodes one image, in a process whose memory is limited to `allowed` more bytes.

    Returns:
        An Intact; a text that says why the image is broken; or an ImageReadError.
    """
    path = folder.path(index)
    try:
        data = folder.read(index)
        decode_to_pil(data, path)
        with naming(path):
            header = Image.open(io.BytesIO(data), formats=FORMATS)
            return Intact(header.format, mode_of(header), *header.size, len(data))
    except BadImageError as error:
        return str(error).removeprefix(f"can't decode the image {path!r}: ").removesuffix("; repair or remove it")
    except ImageReadError as error:
        if isinstance(error.__cause__, MemoryError):  # the limit of this process is at fault, not the system
            return f"decoding it needs more than {allowed / 1e9:.1f} GB of memory"
        return error


def mode_of(image):
    """RGB, or in which way a Pillow image is not RGB, in words."""
    if image.mode.endswith(("A", "a")) or "transparency" in image.info:
        return "with transparency"
    words = {"1": "grey", "L": "grey", "P": "with a palette", "I": "with 16 bits"}
    return words.get(image.mode.partition(";")[0], image.mode)


def crash(result):
    """Why an image is broken whose process died, for a Crash."""
    if result.exit_code >= 0:
        return f"the process that decoded it ended with code {result.exit_code}"
    return f"the process that decoded it was ended by {signal_name(-result.exit_code)}"


def report(sizes, formats, modes):
    """Prints the statistics of the images that are not broken.

    Args:
        sizes: n x 3: width, height, bytes. formats, modes: Counters.
    """
    say("formats: " + ", ".join(f"{name} {count:,}" for name, count in formats.most_common()))
    converted = [f"{count:,} {name}" for name, count in modes.most_common() if name != "RGB"]
    if converted:
        say(f"not RGB: {', '.join(converted)}; training converts them")
    by_area, by_bytes = sizes[np.argsort(sizes[:, 0] * sizes[:, 1], kind="stable")], np.sort(sizes[:, 2])
    places = {"smallest": 0, "median": len(sizes) // 2, "largest": -1}
    say("sizes: " + ", ".join(f"{name} {by_area[i, 0]:,} x {by_area[i, 1]:,} px" for name, i in places.items()))
    say("bytes: " + ", ".join(f"{name} {by_bytes[i]:,}" for name, i in places.items()) + f", all {by_bytes.sum():,}")


if __name__ == "__main__":
    main()
