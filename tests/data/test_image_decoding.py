"""Decoding: every mode becomes RGB, both ways give equal pixels, and hostile files are refused by name."""

import os
import re
import struct
import zlib

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image

from moco.data import image_reading
from moco.data.file_list import ImageFolder


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


def test_tensors_have_the_pixels_of_pillow(imagenet, tmp_path):
    (tmp_path / "a").mkdir()
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 256, (19, 27, 3), dtype=np.uint8))
    for mode, ending in (("L", "png"), ("P", "png"), ("RGBA", "png"), ("CMYK", "jpg"), ("L", "jpg"), ("RGB", "jpg")):
        rgb.convert(mode).save(tmp_path / "a" / f"{mode}.{ending}")
    rgb.save(tmp_path / "a" / "mislabelled.png", format="JPEG")
    rgb.save(tmp_path / "a" / "subsampled.jpg", subsampling=2, quality=60, progressive=True)
    for root in (tmp_path, imagenet / "val"):
        folder = ImageFolder(root)
        for i in range(len(folder)):
            pixels = folder.load_tensor(i)
            assert pixels.dtype == torch.uint8 and pixels.is_contiguous()
            gap = (pixels.permute(2, 0, 1).float() - TF.pil_to_tensor(folder.load(i)).float()).abs()
            assert gap.mean() < 0.5, folder.path(i)


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


def jpeg(tmp_path, width=None, height=None):
    """A JPEG, whose header may promise another size."""
    Image.new("RGB", (40, 30), (200, 100, 50)).save(tmp_path / "small.jpg")
    data = bytearray((tmp_path / "small.jpg").read_bytes())
    at = data.index(b"\xff\xc0") + 5
    if width:
        data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


HOSTILE = {
    "empty": lambda tmp: b"",
    "a JPEG cut short": lambda tmp: jpeg(tmp)[:-100],
    "a JPEG's first bytes": lambda tmp: b"\xff\xd8\xff",
    "a JPEG that promises 12 gigabytes": lambda tmp: jpeg(tmp, 65500, 65500),
    "a PNG that promises 3 terabytes": lambda tmp: png(10**6, 10**6),
    "a PNG without pixels": lambda tmp: png(0, 5),
    "a PNG cut short": lambda tmp: png(30, 30),
    "PostScript, which Pillow would hand to another program": lambda tmp: (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    ),
    "a web page": lambda tmp: b"<!DOCTYPE html><html></html>",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused_by_name(kind, tmp_path):
    (tmp_path / "data" / "a").mkdir(parents=True)
    path = tmp_path / "data" / "a" / "x.jpg"
    path.write_bytes(HOSTILE[kind](tmp_path))
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
