"""Decoding the bytes of images: to Pillow images or tensors, with protection against broken and hostile images."""

import io
import math

import numpy as np
import torchvision.transforms.functional as TF
from PIL import Image

from moco.data import jpeg_decoders
from moco.data.image_reading import FORMATS, naming
from moco.data.jpeg_header import jpeg_size

DECODER, WHY_NO_FASTER = jpeg_decoders.best()  # here, so that data workers need not import it again
JPEG = b"\xff\xd8\xff"
MOST_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # Pillow decodes no larger image, and this project resizes to no larger one


def decode_to_pil(data, image, decoder=DECODER):
    """Decodes an image to a Pillow image in mode RGB, whatever its mode.

    The pixels are Pillow's. A JPEG is decoded by a faster library where there is one. What that refuses, and every
    other format, is decoded by Pillow.

    Args:
        data: the bytes of the file. image: its path, for the messages. decoder: a Decoder for JPEGs.

    Raises:
        BadImageError: it can't be decoded, or has more than MOST_PIXELS pixels. ImageReadError: memory is lacking.
    """
    with naming(image):
        pixels = decode_jpeg(data, decoder)
        if pixels is not None:
            return Image.fromarray(pixels.numpy())
        return to_rgb(Image.open(io.BytesIO(data), formats=FORMATS))


def decode_to_tensor(data, image, decoder=DECODER):
    """Decodes an image to H x W x 3, uint8, contiguous, with the pixels of `decode_to_pil`.

    Args:
        data, image, decoder: as for `decode_to_pil`.

    Raises:
        BadImageError, ImageReadError: as `decode_to_pil`.
    """
    pixels = decode_jpeg(data, decoder)
    if pixels is not None:
        return pixels
    return TF.pil_to_tensor(decode_to_pil(data, image, jpeg_decoders.PILLOW)).permute(1, 2, 0).contiguous()


def decode_jpeg(data, decoder):
    """Decodes a JPEG by `decoder` to H x W x 3, uint8; returns None if Pillow must decide about the file.

    Pillow decides about each file that the decoder refuses, since its error says best what is wrong.
    """
    if decoder.decode is None or not data.startswith(JPEG):
        return None
    try:
        size = jpeg_size(data)
        if size is None or math.prod(size) > MOST_PIXELS:
            Image.open(io.BytesIO(data), formats=("JPEG",))  # raises an error if Pillow refuses the header
        return decoder.decode(data)
    except Exception:
        return None


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
