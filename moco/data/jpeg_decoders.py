"""The library that decodes JPEGs: torchcodec, or else torchvision, or else Pillow.

torchcodec and torchvision are equally fast, Pillow is slower. torchvision's decoder is deprecated since 0.29.
"""

import io
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple

import numpy as np
import PIL
import torch
from PIL import Image

from moco.pipe_safe_print import first_line

LIBRARIES = {"torchcodec": "torchcodec.decoders", "torchvision": "torchvision.io"}  # and the module of `decode_jpeg`
TURNED = b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"  # EXIF data: orientation 6
# The first bytes of a JPEG with an empty EXIF segment. torchcodec turns an image by its first EXIF segment.
START_WITHOUT_ORIENTATION = b"\xff\xd8\xff\xe1\0\2"


class Decoder(NamedTuple):
    """A library that decodes JPEGs.

    Attributes:
        name: the library and its version. decode: takes the bytes of a JPEG, returns its pixels, H x W x 3, uint8, not
            turned by its EXIF orientation; raises any exception if it can't. None for Pillow.
    """

    name: str
    decode: Callable | None


PILLOW = Decoder(f"Pillow {PIL.__version__}", None)


def load(library):
    """The Decoder of a library, a key of LIBRARIES; raises any exception if it can't be used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = import_module(LIBRARIES[library])
        version = getattr(import_module(library), "__version__", "of an unknown version")
        if not hasattr(module, "decode_jpeg"):
            raise ImportError(f"version {version} has no decode_jpeg")

        def decode(data):
            encoded = bytearray().join((START_WITHOUT_ORIENTATION, memoryview(data)[2:]))
            pixels = module.decode_jpeg(torch.frombuffer(encoded, dtype=torch.uint8), mode="RGB")
            return pixels.permute(1, 2, 0).contiguous()  # copies nothing, since the decoders put channels last

        check(decode)
    return Decoder(f"{library} {version}", decode)


def check(decode):
    """Raises ValueError unless `decode` gives Pillow's pixels; the image has an EXIF orientation and subsampling."""
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (19, 23, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "JPEG", exif=TURNED)
    if not np.array_equal(decode(file.getvalue()).numpy(), Image.open(file)):
        raise ValueError("its pixels differ from Pillow's")


def best():
    """The fastest Decoder that works, and why no faster one does: (Decoder, words)."""
    reasons = []
    for library in LIBRARIES:
        try:
            return load(library), "".join(reasons)
        except ModuleNotFoundError:
            reasons.append(f"; {library} is not installed")
        except Exception as error:
            cause = error.__cause__ or error  # torch hides the linker's message behind one of its own
            reasons.append(f"; {library} can't be used ({type(cause).__name__}: {first_line(cause)})")
    return PILLOW, "".join(reasons)
