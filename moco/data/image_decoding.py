"""Decoding image files: to Pillow images or tensors, with protection against broken and hostile files."""

import errno
import io
import os
import stat

import numpy as np
import torch
import torchvision.transforms.functional as TF
from PIL import Image, UnidentifiedImageError

from moco.pipe_safe_print import first_line

try:
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # it is deprecated since torchvision 0.29 and will be removed
    decode_jpeg = None

JPEG = b"\xff\xd8\xff"
# The format is recognised by the file's content, not by its extension. Pillow's other readers are not for photographs,
# and its reader for EPS runs Ghostscript.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
LARGEST = 2**30  # bytes of a file
MOST_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # Pillow decodes no larger image, and this project resizes to no larger one

# Errors of the system, not of the file: a failing disk or server, too many open files, no memory.
PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class BadImageError(OSError):
    """An image that can't be decoded; the message names the file and says what is wrong with it."""


class ImageReadError(OSError):
    """An image that can't be read at the moment, for example because a disk fails; the message names the file."""


def decode_to_pil(path):
    """Decodes an image file to a Pillow image in mode RGB, whatever the file's mode.

    Raises:
        BadImageError: the file can't be decoded, or has more than LARGEST bytes or MOST_PIXELS pixels.
        ImageReadError: the file can't be read at the moment.
    """
    try:
        with open_image(path) as file:
            return to_rgb(Image.open(file, formats=FORMATS))
    except Exception as error:
        system = getattr(error, "strerror", None)
        if isinstance(error, MemoryError) or getattr(error, "errno", None) in PASSING:
            raise ImageReadError(
                f"can't read the image {path!r}: {system or 'out of memory'}; the system failed, not the file; when "
                "it works again, --resume auto continues the run"
            ) from error
        unknown = f"it is none of {', '.join(FORMATS)}" if isinstance(error, UnidentifiedImageError) else None
        why = unknown or system or first_line(error)
        raise BadImageError(f"can't decode the image {path!r}: {why}; repair or remove it") from error


def decode_to_tensor(path):
    """Decodes an image file to H x W x 3, uint8, with the pixels of `decode_to_pil`.

    JPEGs are decoded by torchvision, which is faster; everything else by Pillow.

    Raises:
        BadImageError, ImageReadError: as `decode_to_pil`.
    """
    try:
        with open_image(path) as file:
            data = file.read()
        if data.startswith(JPEG) and decode_jpeg is not None:
            Image.open(io.BytesIO(data), formats=("JPEG",))  # checks the header, which may declare too many pixels
            encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            return decode_jpeg(encoded, mode=ImageReadMode.RGB).permute(1, 2, 0).contiguous()
    except Exception:
        pass  # torchvision refuses CMYK and some other files; Pillow decides, and its error says what is wrong
    return TF.pil_to_tensor(decode_to_pil(path)).permute(1, 2, 0).contiguous()


def open_image(path):
    """Opens a file for reading and returns a binary file object.

    Raises:
        OSError: the file can't be opened, is too large, or is not a regular file. (Reading a pipe might block, and
            reading a device file might never end.)
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is not a regular file")
        if status.st_size > LARGEST:
            raise OSError(f"it has {status.st_size} bytes, more than {LARGEST}")
    except OSError:
        os.close(descriptor)
        raise
    return open(descriptor, "rb")


def to_rgb(image):
    """Converts a Pillow image of any mode except F to RGB; 16-bit grey keeps its upper byte, transparency is dropped.

    Raises:
        ValueError: the mode is F, whose values have no fixed range.
    """
    if image.mode == "F":
        raise ValueError("its values are floats of an unknown range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
