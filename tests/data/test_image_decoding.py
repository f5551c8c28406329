"""Decoding: every mode becomes RGB, both ways give equal pixels, and hostile files are refused by name."""

import os
import re
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from moco.data import image_reading, jpeg_decoders
from moco.data.file_list import ImageFolder
from moco.data.image_decoding import decode_jpeg, decode_to_pil, decode_to_tensor
from moco.data.image_reading import BadImageError
from moco.data.jpeg_decoders import LIBRARIES, PILLOW, Decoder
from tests.data import jpegs

pytestmark = pytest.mark.filterwarnings(
    "ignore:The image decoding and encoding capabilities of TorchVision:DeprecationWarning",
    "ignore:Image appears to be a malformed MPO file:UserWarning",
    "ignore:Corrupt EXIF data:UserWarning",
)


@pytest.fixture(params=[*LIBRARIES, "Pillow"])
def decoder(request):
    """Each Decoder that works here."""
    try:
        return PILLOW if request.param == "Pillow" else jpeg_decoders.load(request.param)
    except Exception as error:
        pytest.skip(f"{request.param} can't be used: {error}")


def test_every_mode_becomes_rgb(tmp_path):
    (tmp_path / "a").mkdir()
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8))
    for mode, ending in (("L", "png"), ("P", "png"), ("RGBA", "png"), ("LA", "png"), ("CMYK", "jpg"), ("1", "png")):
        rgb.convert(mode).save(tmp_path / "a" / f"{mode}.{ending}")
    folder = ImageFolder(tmp_path)
    for i in range(len(folder)):
        image = folder.load(i)
        assert image.mode == "RGB" and image.size == (7, 9)
    assert len(folder) == 6


def test_deep_greys_keep_their_upper_byte_and_floats_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(levels * 256 + 77).save(tmp_path / "a" / "0.png")
    Image.fromarray(levels.astype(np.float32)).save(tmp_path / "a" / "1.tiff")
    folder = ImageFolder(tmp_path)
    assert np.array_equal(np.asarray(folder.load(0)), levels[..., None].repeat(3, axis=2))
    with pytest.raises(OSError, match=r"can't decode .*1\.tiff.*8 or 16 bits"):
        folder.load(1)


def test_both_ways_give_equal_pixels(imagenet, tmp_path):
    (tmp_path / "a").mkdir()
    rgb = jpegs.noise(27, 19)
    for mode, ending in (("L", "png"), ("P", "png"), ("RGBA", "png"), ("CMYK", "jpg"), ("L", "jpg"), ("RGB", "jpg")):
        rgb.convert(mode).save(tmp_path / "a" / f"{mode}.{ending}")
    rgb.save(tmp_path / "a" / "mislabelled.png", format="JPEG")
    for root in (tmp_path, imagenet / "val"):
        folder = ImageFolder(root)
        for i in range(len(folder)):
            pixels = folder.load_tensor(i)
            assert pixels.dtype == torch.uint8 and pixels.is_contiguous()
            with Image.open(folder.path(i)) as image:
                assert np.array_equal(pixels, image.convert("RGB")), folder.path(i)
            assert np.array_equal(pixels, folder.load(i)), folder.path(i)


KINDS = {**jpegs.PLAIN, **jpegs.OTHER, **jpegs.EITHER, **jpegs.REFUSED}


@pytest.mark.parametrize("kind", KINDS)
def test_each_decoder_gives_the_pixels_of_pillow_or_refuses_the_file_as_pillow_does(kind, decoder):
    data = KINDS[kind]
    expected = jpegs.pillow(data)
    assert kind in jpegs.EITHER or (expected is None) == (kind in jpegs.REFUSED)
    if expected is None:
        for decode in (decode_to_pil, decode_to_tensor):
            with pytest.raises(BadImageError, match=r"can't decode the image 'x\.jpg': .*; repair or remove it"):
                decode(data, "x.jpg", decoder)
        return
    pixels, image = decode_to_tensor(data, "x.jpg", decoder), decode_to_pil(data, "x.jpg", decoder)
    assert pixels.dtype == torch.uint8 and pixels.is_contiguous() and np.array_equal(pixels, expected)
    assert image.mode == "RGB" and np.array_equal(image, expected)
    if kind not in jpegs.EITHER:
        assert (decode_jpeg(data, decoder) is None) == (decoder is PILLOW)  # otherwise Pillow has decoded it


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"mode": "L", "restart_marker_blocks": 1}])
def test_truncated_files_stay_refused(options, decoder):
    data = jpegs.jpeg(17, 9, exif=jpegs.exif(6), **options)
    for n in range(0, len(data) - 1, 7):
        assert jpegs.pillow(data[:n]) is None and decode_jpeg(data[:n], decoder) is None, n


def test_a_header_that_promises_too_many_pixels_is_not_decoded():
    decoded = []
    data = jpegs.framed(jpegs.jpeg(), size=(13000, 14000))  # 182 million
    assert decode_jpeg(data, Decoder("a decoder", decoded.append)) is None and not decoded
    with pytest.raises(BadImageError, match="exceeds limit"):
        decode_to_pil(data, "x.jpg")


def test_a_file_that_is_no_image_is_named_on_the_fast_path_too(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.jpg").write_bytes(b"\xff\xd8\xff and then nothing")
    with pytest.raises(OSError, match=r"can't decode .*a/0\.jpg"):
        ImageFolder(tmp_path).load_tensor(0)


def png(width, height):
    """A PNG file whose header promises so many pixels and that has none."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


HOSTILE = {
    "empty": b"",
    "a JPEG cut short": jpegs.jpeg()[:-100],
    "a JPEG's first bytes": b"\xff\xd8\xff",
    "a JPEG that promises 12 gigabytes": jpegs.framed(jpegs.jpeg(), size=(65500, 65500)),
    "a PNG that promises 3 terabytes": png(10**6, 10**6),
    "a PNG without pixels": png(0, 5),
    "a PNG cut short": png(30, 30),
    "PostScript, which Pillow would hand to another program": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    ),
    "a web page": b"<!DOCTYPE html><html></html>",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused_by_name(kind, tmp_path):
    (tmp_path / "data" / "a").mkdir(parents=True)
    path = tmp_path / "data" / "a" / "x.jpg"
    path.write_bytes(HOSTILE[kind])
    folder = ImageFolder(tmp_path / "data")
    for load in (folder.load, folder.load_tensor):
        with pytest.raises(OSError, match=re.escape(f"can't decode the image {str(path)!r}: ")):
            load(0)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "nowhere", "large"])
def test_what_is_no_image_file_neither_blocks_nor_fills_the_memory(kind, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "x.jpg"
    path.write_bytes(b"")
    folder = ImageFolder(tmp_path)
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "large":
        monkeypatch.setattr(image_reading, "LARGEST", 3)
        path.write_bytes(b"1234")
    else:
        path.symlink_to({"device": "/dev/zero", "nowhere": "/nowhere"}[kind])
    for load in (folder.load, folder.load_tensor):
        with pytest.raises(OSError, match=r"can't decode the image .*x\.jpg"):
            load(0)


def test_a_mislabelled_image_is_read_by_its_content(tmp_path):
    (tmp_path / "a").mkdir()
    image = Image.new("RGB", (9, 7), (10, 20, 30))
    image.save(tmp_path / "a" / "x.jpg", "PNG")
    folder = ImageFolder(tmp_path)
    assert folder.load(0).getpixel((3, 3)) == (10, 20, 30) and folder.load_tensor(0).shape == (7, 9, 3)
