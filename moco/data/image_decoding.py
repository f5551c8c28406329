"""Decoding the bytes of images: to Pillow images or tensors, with protection against broken and hostile images."""

import io

import numpy as np
import torch
import torchvision.transforms.functional as TF
from PIL import Image

from moco.data.image_reading import FORMATS, naming

try:
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # it is deprecated since torchvision 0.29 and will be removed
    decode_jpeg = None

JPEG = b"\xff\xd8\xff"
MOST_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # Pillow decodes no larger image, and this project resizes to no larger one


def decode_to_pil(data, image):
    """Decodes an image to a Pillow image in mode RGB, whatever its mode.

    Args:
        data: the bytes of the file. image: its path, for the messages.

    Raises:
        BadImageError: it can't be decoded, or has more than MOST_PIXELS pixels. ImageReadError: memory is lacking.
    """
    with naming(image):
        return to_rgb(Image.open(io.BytesIO(data), formats=FORMATS))


def decode_to_tensor(data, image):
    """Decodes an image to H x W x 3, uint8, with the pixels of `decode_to_pil`.

    JPEGs are decoded by torchvision, which is faster; everything else by Pillow.

    Args:
        data, image: as for `decode_to_pil`.

    Raises:
        BadImageError, ImageReadError: as `decode_to_pil`.
    """
    try:
        if data.startswith(JPEG) and decode_jpeg is not None:
            Image.open(io.BytesIO(data), formats=("JPEG",))  # checks the header, which may declare too many pixels
            encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            return decode_jpeg(encoded, mode=ImageReadMode.RGB).permute(1, 2, 0).contiguous()
    except Exception:
        pass  # torchvision refuses CMYK and some other files; Pillow decides, and its error says what is wrong
    return TF.pil_to_tensor(decode_to_pil(data, image)).permute(1, 2, 0).contiguous()


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
