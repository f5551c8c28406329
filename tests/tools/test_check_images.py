import errno
import multiprocessing
import os
import re
import signal
import struct
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image

from moco.data.bad_image_substitutes import Substitutes
from moco.data.file_list import ImageFolder
from moco.data.image_decoding import decode_to_pil
from moco.data.image_reading import naming
from moco.tools import check_images

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8))
GREY16 = Image.fromarray(np.arange(4800, dtype=np.uint16).reshape(60, 80))


@pytest.fixture
def tree(tmp_path):
    """Images of many kinds, in folders and loose; 5 are broken."""
    root = tmp_path / "tree"
    for name, image, options in (
        ("loose.jpg", PHOTO, {}),
        ("train/a/grey.png", PHOTO.convert("L"), {}),
        ("train/a/bits.png", PHOTO.convert("1"), {}),
        ("train/a/cmyk.jpg", PHOTO.convert("CMYK"), {}),
        ("train/b/rgba.png", PHOTO.convert("RGBA"), {}),
        ("train/b/colour_key.png", PHOTO, {"transparency": (0, 0, 0)}),
        ("val/b/palette.png", PHOTO.quantize(16), {}),
        ("val/b/16.png", GREY16, {}),
        ("val/deep/er/tiny.bmp", PHOTO.resize((31, 200)), {}),
        ("val/deep/er/float.tiff", Image.fromarray(np.zeros((60, 80), np.float32)), {}),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / name, **options)
    whole = (root / "loose.jpg").read_bytes()
    (root / "train/a/half.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "train/a/text.jpg").write_text("no image")
    (root / "train/line\nbreak.jpg").write_text("")
    os.mkfifo(root / "val/pipe.jpg")
    (root / "val/notes.txt").write_text("")
    (root / "val/.hidden.jpg").write_text("")
    return root


@pytest.mark.parametrize("processes", [1, 3])
def test_everything_is_found_in_order(tree, processes, tmp_path, call):
    out, broken = tmp_path / "bad.txt", ["text.jpg", "half.jpg", "float.tiff", "pipe.jpg", "line\nbreak.jpg"]
    code, said, error = call(check_images.main, tree, "-j", processes, "--out", out)
    assert code == 1 and error == ""
    lines = said.replace(str(tree), "TREE").splitlines()
    assert lines[0] == "images: 14 in 'TREE'; passed over: 1 file with another extension (.txt), 1 hidden"
    folder, none = ImageFolder(tree, any_tree=True), "it is none of JPEG, PNG, PPM, BMP, TIFF, WEBP, GIF"
    messages = {
        "half.jpg": "image file is truncated (N bytes not processed)",
        "text.jpg": none,
        "line\nbreak.jpg": none,
        "float.tiff": "its values are floats of an unknown range; save it with 8 or 16 bits",
        "pipe.jpg": "it is not a regular file",
        "tiny.bmp": "31 x 200 px",
    }
    paths = [path for path in map(folder.path, range(14)) if os.path.basename(path) in messages]
    names = {path: os.path.basename(path) for path in paths}
    expected = [f"{'broken' if names[p] in broken else 'small'}: {p!r}: {messages[names[p]]}" for p in paths]
    found = [re.sub(r"\d+ bytes", "N bytes", line) for line in said.splitlines()[1:7]]
    assert found == expected
    good = [path for path in map(folder.path, range(14)) if names.get(path) not in broken]
    sizes = sorted(map(os.path.getsize, good))
    assert lines[7:] == [
        "formats: PNG 6, JPEG 2, BMP 1",
        "not RGB: 2 grey, 2 with transparency, 1 CMYK, 1 with 16 bits, 1 with a palette; training converts them",
        "sizes: smallest 80 x 60 px, median 80 x 60 px, largest 31 x 200 px",
        f"bytes: smallest {sizes[0]:,}, median {sizes[4]:,}, largest {sizes[-1]:,}, all {sum(sizes):,}",
        "checked: 14; broken: 5; with a side of less than 32 px: 1",
        "remove or repair the broken images, or train with --on-bad-image skip, which tolerates 10 of them, or 0.1% "
        f"of all images if that is more; their paths are in '{out}'",
    ]
    skipping = Substitutes(folder, 0, str(tmp_path / "bad_images.txt"))
    for index in range(14):
        skipping.decode(folder.load, 0, index)
    both = [sorted(path.read_bytes().splitlines()) for path in (out, tmp_path / "bad_images.txt")]
    assert both[0] == both[1] and len(both[0]) == 6  # one name has a line break


def test_nothing_is_wrong(tmp_path, monkeypatch, call):
    for i in range(2):
        PHOTO.save(tmp_path / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    code, out, error = call(check_images.main, ".", "--out", "bad.txt", "--smallest", "60")
    assert (code, error) == (0, "") and (tmp_path / "bad.txt").read_bytes() == b""
    assert out.splitlines()[-1] == "checked: 2; broken: 0; with a side of less than 60 px: 0"
    assert "not RGB" not in out
    code, out, _ = call(check_images.main, ".", "--smallest", "61")
    assert code == 0 and "small: './1.png': 80 x 60 px" in out


def test_nothing_is_intact(tmp_path, call):
    (tmp_path / "1.jpg").write_text("")
    code, out, error = call(check_images.main, tmp_path)
    assert (code, error) == (1, "") and "checked: 1; broken: 1" in out and "sizes" not in out


def test_it_shows_its_progress(tree, impatient, call):
    _, _, error = call(check_images.main, tree)
    assert len(error.splitlines()) == 13 and error.startswith("checking: 1 of 14 images (7%), 0:00:0")


def png_of_zeros(path, side):
    """A square PNG of one bit per pixel, which is quick to write and small."""
    data, rows = b"", bytes(1 + side // 8) * side
    for kind, content in (
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows, 1)),
        (b"IEND", b""),
    ):
        data += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def test_an_archive_beside_a_folder_is_checked_too(tmp_path, call):
    (tmp_path / "train" / "a").mkdir(parents=True)
    PHOTO.save(tmp_path / "train" / "a" / "1.jpg")
    (tmp_path / "1.jpg").write_text("no image")
    with tarfile.open(tmp_path / "val.tar", "w") as archive:
        archive.add(tmp_path / "1.jpg", "a/1.jpg")
    (tmp_path / "1.jpg").unlink()
    code, out, error = call(check_images.main, tmp_path)
    assert (code, error) == (1, "") and f"broken: '{tmp_path}/val.tar!a/1.jpg': it is none of" in out


def test_an_image_that_takes_too_much_memory_is_broken(tmp_path, monkeypatch, call):
    def decode(data, path):
        with naming(path):
            bytearray(2**30 if path.endswith("2.png") else 1)
        return decode_to_pil(data, path)

    monkeypatch.setattr(check_images, "MOST_MEMORY", 2**28)
    monkeypatch.setattr(check_images, "decode_to_pil", decode)
    for name, side in (("1.png", 64), ("2.png", 64), ("3.png", 64), ("4.png", 40000)):
        png_of_zeros(tmp_path / name, side)
    code, out, error = call(check_images.main, tmp_path)
    lines = out.splitlines()
    assert (code, error) == (1, "") and "checked: 4; broken: 2" in out
    assert lines[1].endswith("2.png': decoding it needs more than 0.3 GB of memory")
    assert "4.png': Image size (1600000000 pixels) exceeds limit" in lines[2]


def test_an_image_that_kills_the_decoder_is_broken(tmp_path, monkeypatch, call):
    def decode(data, path):
        if path.endswith("2.png"):
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(check_images, "decode_to_pil", decode)
    for i in range(4):
        PHOTO.save(tmp_path / f"{i}.png")
    code, out, error = call(check_images.main, tmp_path)
    assert (code, error) == (1, "") and "checked: 4; broken: 1" in out
    assert out.splitlines()[1].endswith("2.png': the process that decoded it was ended by SIGKILL")


def test_an_error_of_the_system_ends_it(tmp_path, monkeypatch, call):
    def read(folder, index):
        with naming(folder.path(index)):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(ImageFolder, "read", read)
    PHOTO.save(tmp_path / "1;2.png")
    code, _, error = call(check_images.main, tmp_path, "--out", tmp_path / "bad.txt")
    assert code == 3 and not (tmp_path / "bad.txt").exists()
    assert error == (
        f"python -m moco.tools.check_images: error: can't read the image '{tmp_path}/1;2.png': Input/output error; "
        "the system failed, not the file; check again when it works\n"
    )


def test_a_stop_signal_ends_it(tree, monkeypatch, call):
    monkeypatch.setattr(check_images.Progress, "add", lambda task: os.kill(os.getpid(), signal.SIGTERM))
    code, out, error = call(check_images.main, tree, "--out", tree / "bad.txt")
    assert code == 143 and error == "stopped by SIGTERM\n" and out.count("\n") == 1
    assert not multiprocessing.active_children() and not (tree / "bad.txt").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (["nowhere"], "no folder 'nowhere'; it must hold images"),
        (["."], "no images in '.'; add some (.jpg"),
        ([".", "-j", "0"], "'0' is not an integer >= 1"),
        ([".", "--smallest", "0"], "'0' is not an integer >= 1"),
        ([".", "--out", "bad.png"], "'bad.png' is no file to write; give a name that ends in .txt"),
        ([".", "--out", "no/bad.txt"], "'no/bad.txt' can't be written: 'no' is no folder"),
    ],
)
def test_what_it_refuses(words, message, tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    code, out, error = call(check_images.main, *words)
    assert code == 2 and not out and error.count("\n") == 1 and message in error
