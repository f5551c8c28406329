"""The reader of JPEG headers: it finds Pillow's sizes, and leaves to Pillow whatever Pillow might refuse."""

import io
import random
import warnings

import pytest
from PIL import Image

from moco.data.jpeg_header import jpeg_size
from moco.faults.fuzz import mutated
from tests.data import jpegs


def size_by_pillow(data):
    """The size of a JPEG that Pillow opens, or None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some are about EXIF data
        try:
            return Image.open(io.BytesIO(data), formats=["JPEG"]).size
        except Exception:
            return None


@pytest.mark.parametrize("kind", jpegs.PLAIN)
def test_the_size_of_a_plain_header(kind):
    data = jpegs.PLAIN[kind]
    assert jpeg_size(data) == size_by_pillow(data) is not None


@pytest.mark.parametrize("kind", [*jpegs.OTHER, *jpegs.EITHER, *jpegs.REFUSED])
def test_other_headers_are_left_to_pillow(kind):
    data = {**jpegs.OTHER, **jpegs.EITHER, **jpegs.REFUSED}[kind]
    assert jpeg_size(data) is None or kind == "more pixels than Pillow decodes"


def test_a_header_that_is_cut_short_is_left_to_pillow():
    data = jpegs.jpeg(progressive=True, icc_profile=b"x" * 20)
    end = data.index(b"\xff\xda") + 2 + data[data.index(b"\xff\xda") + 3]  # of the first scan's header
    assert all(jpeg_size(data[:n]) is None for n in range(end))
    assert all(jpeg_size(data[:n]) == (52, 40) for n in range(end, len(data)))


def test_pillow_accepts_each_header_that_is_read():
    rng, read = random.Random(0), 0
    headers = [data[:1500] for data in (*jpegs.PLAIN.values(), *jpegs.OTHER.values())]
    for _ in range(3000):
        data = mutated(rng.choice(headers), headers, rng)
        if (size := jpeg_size(data)) is not None and size[0] * size[1] < Image.MAX_IMAGE_PIXELS:
            assert size == size_by_pillow(data), data
            read += 1
    assert read > 300
