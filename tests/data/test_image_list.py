"""Image folders against torchvision's, the cache of their listing, and decoding on both paths."""

import os
import re
import shutil
import struct
import time
import zlib

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from torchvision.datasets import ImageFolder as TorchvisionFolder

from moco import image_folder, index_cache
from moco.data.image_list import ImageFolder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def settled(root):
    """Dates every folder back, so that its listing may be cached."""
    for folder, _, _ in os.walk(root, topdown=False):
        os.utime(folder, (time.time() - 100,) * 2)


@pytest.fixture
def data(imagenet, tmp_path):
    shutil.copytree(imagenet / "train", tmp_path / "train")
    (tmp_path / "train" / "disk_dots" / "deep" / "er").mkdir(parents=True)
    shutil.copy(
        imagenet / "train" / "star_dots" / "0000.jpg", tmp_path / "train" / "disk_dots" / "deep" / "er" / "é.jpg"
    )
    settled(tmp_path)
    return tmp_path / "train"


def samples(folder):
    return [(os.path.normpath(folder.path(i)), int(folder.labels[i])) for i in range(len(folder))]


def test_folder_lists_what_torchvision_lists(imagenet, tmp_path):
    nested = tmp_path / "data"
    for path in ("b/2.PNG", "b/deep/er/1.jpeg", "a/é.jpg", "a/b.webp", "a/notes.txt"):
        (nested / path).parent.mkdir(parents=True, exist_ok=True)
        (nested / path).write_bytes(b"")
    for root in (imagenet / "train", nested):
        ours, theirs = ImageFolder(root), TorchvisionFolder(root)
        assert ours.classes == theirs.classes and len(ours) == len(theirs)
        assert [(os.path.normpath(ours.path(i)), ours.labels[i]) for i in range(len(ours))] == theirs.samples


def test_folder_is_a_few_arrays(imagenet):
    folder = ImageFolder(imagenet / "train")
    arrays = [value for value in vars(folder).values() if isinstance(value, np.ndarray)]
    others = [value for value in vars(folder).values() if not isinstance(value, np.ndarray)]
    names = sum(len(os.path.relpath(folder.path(i), folder.root)) for i in range(len(folder)))
    assert sum(a.nbytes for a in arrays) <= names + 12 * (len(folder) + 1)
    assert all(len(value) <= max(len(folder.root), len(folder.classes)) for value in others)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda root: None, "no folder"),
        (lambda root: root.mkdir(), "no class folders"),
        (lambda root: (root / "cat").mkdir(parents=True), "no images in .*cat"),
    ],
)
def test_folders_that_can_not_serve(tmp_path, make, message):
    make(tmp_path / "train")
    with pytest.raises(FileNotFoundError, match=message):
        ImageFolder(tmp_path / "train")


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


def test_a_folder_that_can_not_be_read_is_not_passed_over(data, monkeypatch):
    def walk(top, onerror, followlinks):
        onerror(PermissionError(13, "Permission denied", os.path.join(top, "deep")))

    monkeypatch.setattr(os, "walk", walk)
    with pytest.raises(PermissionError, match="deep"):
        ImageFolder(data)


def listed(monkeypatch):
    """Counts the listings from now on."""
    calls = []
    list_images = image_folder.list_images
    monkeypatch.setattr(image_folder, "list_images", lambda root: calls.append(root) or list_images(root))
    return calls


def test_a_listing_is_cached_outside_the_data(data, cache, monkeypatch):
    calls = listed(monkeypatch)
    before = sorted(os.walk(data))
    first, second = ImageFolder(data), ImageFolder(data)
    assert len(calls) == 1 and sorted(os.walk(data)) == before
    assert [f.suffix for f in (cache / "asym-siam").iterdir()] == [".index"]
    assert first.classes == second.classes and samples(first) == samples(second) == TorchvisionFolder(data).samples


def add_image(data):
    shutil.copy(data / "star_dots" / "0000.jpg", data / "star_dots" / "new.jpg")


def add_nested(data):
    shutil.copy(data / "star_dots" / "0000.jpg", data / "disk_dots" / "deep" / "er" / "new.jpg")


def add_image_and_restore_the_time(data):
    """As `tar x` and `rsync -a` do."""
    before = os.stat(data / "star_dots")
    add_image(data)
    os.utime(data / "star_dots", ns=(before.st_atime_ns, before.st_mtime_ns))


def add_class(data):
    shutil.copytree(data / "star_dots", data / "a_new_class")


def rename(data):
    os.rename(data / "star_dots" / "0003.jpg", data / "star_dots" / "z.jpg")


def remove_nested(data):
    shutil.rmtree(data / "disk_dots" / "deep")


@pytest.mark.parametrize(
    "change", [add_image, add_nested, add_image_and_restore_the_time, add_class, rename, remove_nested]
)
def test_a_stale_listing_is_never_used(data, change, monkeypatch):
    before = samples(ImageFolder(data))
    calls = listed(monkeypatch)
    change(data)
    after = samples(ImageFolder(data))
    assert len(calls) == 1 and after != before and after == TorchvisionFolder(data).samples


@pytest.mark.parametrize(
    "damage", [lambda x: x[: len(x) // 2], lambda x: x[:100] + b"!" + x[101:], lambda x: b"", bytes.swapcase]
)
def test_a_damaged_listing_is_never_used(data, cache, damage, monkeypatch):
    expected = samples(ImageFolder(data))
    (file,) = (cache / "asym-siam").iterdir()
    good = file.read_bytes()
    file.write_bytes(damage(good))
    calls = listed(monkeypatch)
    assert samples(ImageFolder(data)) == expected and len(calls) == 1
    assert file.read_bytes() == good  # made anew


def test_a_link_that_points_elsewhere_is_noticed(data, tmp_path):
    shutil.copytree(data, tmp_path / "other")
    os.unlink(tmp_path / "other" / "star_dots" / "0000.jpg")
    for folder, _, _ in os.walk(data):  # with the same times
        times = os.stat(folder)
        os.utime(tmp_path / "other" / os.path.relpath(folder, data), ns=(times.st_atime_ns, times.st_mtime_ns))
    link = tmp_path / "current"
    link.symlink_to(data)
    before = len(ImageFolder(link))
    link.unlink()
    link.symlink_to(tmp_path / "other")
    assert len(ImageFolder(link)) == before - 1


def test_a_folder_in_flux_is_not_cached(data, cache):
    add_image(data)
    ImageFolder(data)
    assert not (cache / "asym-siam").exists()


def test_a_cache_that_can_not_be_written_costs_only_the_time(data, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert samples(ImageFolder(data)) == TorchvisionFolder(data).samples
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert index_cache.cache_file(data).startswith("/home/someone/.cache/asym-siam/")


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
        monkeypatch.setattr(image_folder, "LARGEST", 3)
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
