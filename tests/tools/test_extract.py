"""extract: each row is the feature of its image, and a result is replaced only by a complete one."""

import errno
import os
import re
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from torchvision import models

from moco.builder import add_projector
from moco.tools import extract
from tests.tiny_net import ARCH, WIDTH
from tests.tools.conftest import CLOSE
from tests.tools.frequent_progress import often


def load(out):
    """The arrays of a result, of either form."""
    if out.is_file():
        with np.load(out) as file:
            return dict(file)
    lines = {name: (out / f"{name}.txt").read_bytes().split(b"\n")[:-1] for name in ("classes", "paths")}
    arrays = {name: np.load(out / f"{name}.npy") for name in ("features", "labels")}
    return arrays | {name: np.array([os.fsdecode(x) for x in lines], dtype=str) for name, lines in lines.items()}


def made(imagenet, root, *names):
    """Copies different images to these paths below `root`, and makes a folder of each name that ends in a slash."""
    images = iter(sorted(imagenet.glob("val/*/*.jpg")))
    for name in names:
        path = os.path.join(root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if not name.endswith("/"):
            shutil.copy(next(images), path)
    return root


FLAT, NESTED = ["2.jpg", "1.jpg", "10.jpg"], ["b/x/3.jpg", "b/2.jpg", "a/1.jpg", "b/x/y/0.jpg"]
ORDER = ["1.jpg", "10.jpg", "2.jpg"], ["a/1.jpg", "b/2.jpg", "b/x/3.jpg", "b/x/y/0.jpg"]


@pytest.mark.parametrize("out", ["f.npz", "folder/"])
@pytest.mark.parametrize(
    "names, paths, labels, classes",
    [
        (FLAT, ORDER[0], [-1] * 3, []),
        (NESTED, ORDER[1], [0, 1, 1, 1], ["a", "b"]),
        ([*NESTED, *FLAT, "a0/", "z/y/"], [*ORDER[0], *ORDER[1]], [-1, -1, -1, 0, 1, 1, 1], ["a", "b"]),
    ],
)
def test_each_row_is_the_feature_of_its_image(
    out, names, paths, labels, classes, checkpoints, imagenet, tmp_path, feature_of, encoder, call
):
    root = made(imagenet, tmp_path / "images", *names)
    flags = ["--out", f"{tmp_path}/{out}", "-j", 0, "-b", 2]
    code, text, error = call(extract.main, checkpoints["own"], root, *flags)
    assert (code, error) == (0, "")
    of, tensors = f" of {len(classes)} classes" if classes else "", len(encoder.state_dict())
    assert text.splitlines() == [
        f"images: {len(paths)}{of} in '{root}'",
        f"encoder: {ARCH} with {tensors} tensors of '{checkpoints['own']}', {WIDTH} features, images of 32 px",
        f"wrote {tmp_path}/{out}: {len(paths)} x {WIDTH} features, float32",
    ]
    found = load(tmp_path / out)
    assert found["paths"].tolist() == [f"{root}/{path}" for path in paths]
    assert found["labels"].tolist() == labels and found["classes"].tolist() == classes
    assert found["classes"].dtype.kind == "U" and found["features"].dtype == np.float32
    expected = np.stack([feature_of(path) for path in found["paths"]])
    np.testing.assert_allclose(found["features"], expected, **CLOSE)
    assert np.abs(expected[0] - expected[1]).max() > 1e-2
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_half_and_projected(checkpoints, imagenet, tmp_path, feature_of, call):
    root, out = made(imagenet, tmp_path / "images", *FLAT), tmp_path / "f.npz"
    flags = ["--out", out, "-j", 0, "--half", "--projected"]
    code, text, error = call(extract.main, checkpoints["own"], root, *flags)
    assert code == 0 and text.endswith(f"wrote {out}: 3 x 8 features, float16\n"), error
    network = add_projector(models.get_model(ARCH, num_classes=8)).eval()
    state = torch.load(checkpoints["own"], weights_only=True)["state_dict"]
    network.load_state_dict({n[17:]: tensor for n, tensor in state.items() if n.startswith("module.encoder_q.")})
    found = load(out)
    assert found["features"].dtype == np.float16
    expected = np.stack([feature_of(path, network=network) for path in found["paths"]])
    np.testing.assert_allclose(found["features"], expected, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("out, workers, steps", [("f.npz", 1, [8, 16, 24, 32]), ("folder", 0, [])])
def test_two_processes_write_the_same(out, workers, steps, checkpoints, imagenet, tmp_path, call, run_tool):
    """Also if one of them has no image."""
    folder = imagenet / "val" if steps else made(imagenet, tmp_path / "one", "a/1.jpg")
    words = [checkpoints["own"], folder, "-j", workers, "-b", 8]
    assert call(extract.main, *words, "--out", tmp_path / "alone.npz")[0] == 0
    code, _, error = run_tool("extract", *words, "--nproc", 2, "--out", tmp_path / out, prepare=often)
    assert code == 0 and list(map(int, re.findall(r"features: (\d+) of 36 images", error))) == steps
    alone, shared = load(tmp_path / "alone.npz"), load(tmp_path / out)
    for name in ("labels", "classes", "paths"):
        assert alone[name].tolist() == shared[name].tolist()
    np.testing.assert_allclose(shared["features"], alone["features"], **CLOSE)


ODD = ["with space/a b.jpg", "a/ü€.jpg", os.fsdecode(b"a/\xff\xfe.jpg"), "a/z\nz.jpg"]


def test_odd_names(checkpoints, imagenet, tmp_path, feature_of, call, refused):
    root, words = made(imagenet, tmp_path / "images", *ODD), [checkpoints["own"], tmp_path / "images", "-j", 0]
    assert call(extract.main, *words, "--out", tmp_path / "f.npz")[0] == 0
    found = load(tmp_path / "f.npz")
    assert set(found["paths"].tolist()) == {f"{root}/{name}" for name in ODD}
    for path, row in zip(found["paths"].tolist(), found["features"], strict=True):
        np.testing.assert_allclose(row, feature_of(path), **CLOSE)
    message = f"the path {f'{root}/{ODD[3]}'!r} has a line break, which paths.txt can't hold; give --out FILE.npz"
    refused("extract", [*words, "--out", tmp_path / "folder"], message)
    os.remove(root / ODD[3])
    assert call(extract.main, *words, "--out", tmp_path / "folder")[0] == 0
    assert load(tmp_path / "folder")["paths"].tolist() == [f"{root}/{name}" for name in (*sorted(ODD[1:3]), ODD[0])]


def test_train_and_val_as_classes_are_noted(imagenet, tmp_path, call):
    words = ["none", imagenet, "-a", "shufflenet_v2_x0_5", "--crop-size", 32, "-j", 0]
    code, text, _ = call(extract.main, *words, "--out", tmp_path / "f.npz")
    assert code == 0 and "132 x 1,024 features" in text
    assert f"note: the labels are the folders of '{imagenet}', such as train and val, not" in text


def earlier(folder):
    """Earlier results in a folder: their paths, and their bytes."""
    (folder / "folder").mkdir()
    (folder / "f.npz").write_bytes(b"earlier")
    for name in (extract.FEATURES, extract.LABELS, extract.CLASSES, extract.PATHS, "mine.txt"):
        (folder / "folder" / name).write_bytes(b"earlier")
    return content(folder)


def content(folder):
    """The bytes of all files below a folder, hidden ones included."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("out", ["f.npz", "folder"])
def test_an_earlier_result_is_replaced_by_a_complete_one(out, checkpoints, imagenet, tmp_path, call, monkeypatch):
    before, encode = earlier(tmp_path), extract.encode

    def encode_and_look(*args, **how):
        for batch in encode(*args, **how):
            now = content(tmp_path)
            assert {path: now[path] for path in before} == before and len(now) == len(before) + 1
            yield batch

    monkeypatch.setattr(extract, "encode", encode_and_look)
    words = [checkpoints["own"], imagenet / "val", "-j", 0, "-b", 9, "--out", tmp_path / out]
    assert call(extract.main, *words)[0] == 0
    assert len(load(tmp_path / out)["features"]) == 36 and content(tmp_path).keys() == before.keys()
    assert (tmp_path / "folder" / "mine.txt").read_bytes() == b"earlier"


def ctrl_c(number=signal.SIGINT, all=True):
    """Replaces `encode`: after the first batch a signal comes, to all processes of the program or to the first."""
    encode, leader = extract.encode, os.getpgrp()

    def signalled(*args, **how):
        yield next(iter(encode(*args, **how)))
        if extract.rank() == 0:
            (os.killpg if all else os.kill)(leader, number)
        time.sleep(20)

    extract.encode = signalled


def terminated():
    ctrl_c(signal.SIGTERM, all=False)


def interrupted_writing():
    """A signal comes while the arrays are written."""

    def savez(path, **_):
        with open(path, "wb") as file:
            file.write(b"half")
            os.kill(os.getpid(), signal.SIGTERM)

    extract.np.savez = savez


@pytest.mark.parametrize("nproc", [1, 2])
@pytest.mark.parametrize(
    "prepare, out, name",
    [(ctrl_c, "f.npz", "SIGINT"), (terminated, "folder", "SIGTERM"), (interrupted_writing, "f.npz", "SIGTERM")],
)
def test_a_stop_leaves_nothing_half_written(prepare, out, name, nproc, checkpoints, imagenet, tmp_path, run_tool):
    before = earlier(tmp_path)
    words = [checkpoints["own"], imagenet / "val", "-j", nproc - 1, "-b", 8, "--nproc", nproc]
    code, text, error = run_tool("extract", *words, "--out", tmp_path / out, prepare=prepare)
    assert (code, error) == (143, f"stopped by {name}\n") and "wrote" not in text
    assert content(tmp_path) == before and not list(tmp_path.glob(".*"))


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("out, what", [("f.npz", "encode"), ("f.npz", "np.savez"), ("folder", "np.save")])
def test_a_full_disk(out, what, checkpoints, imagenet, tmp_path, call, monkeypatch):
    before = earlier(tmp_path)
    monkeypatch.setattr(f"moco.tools.extract.{what}", full)
    words = [checkpoints["own"], imagenet / "val", "-j", 0, "--out", tmp_path / out]
    code, text, error = call(extract.main, *words)
    assert code == 1 and "wrote" not in text
    why = "there is no space on the disk or in /dev/shm (No space left on device)"
    assert error == f"error: {why}; make room, then start again\n"
    assert content(tmp_path) == before and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("nproc", [1, 2])
def test_a_broken_image_ends_it(nproc, checkpoints, imagenet, tmp_path, run_tool):
    made(imagenet, tmp_path / "images", *FLAT)
    bad, out = tmp_path / "images" / "2.jpg", tmp_path / "f.npz"
    bad.write_bytes(b"no image")
    words = [checkpoints["own"], bad.parent, "-j", nproc - 1, "--nproc", nproc, "--out", out]
    code, _, error = run_tool("extract", *words)
    assert code == 1 and error.count("\n") == 1 and f"error: can't decode the image '{bad}'" in error
    assert os.listdir(tmp_path) == ["images"]


@pytest.mark.parametrize(
    "out, message",
    [
        ("no/f.npz", "'TMP/no/f.npz' can't be written: 'TMP/no' is no folder; make it first"),
        ("f.npy", "'TMP/f.npy' is neither an .npz file nor a folder; give FILE.npz, or FOLDER/ with its slash"),
        ("file/", "'TMP/file/' is no folder; give a folder, which may be a new one"),
        ("file/new/", "'TMP/file/new/' can't be made: Not a directory; give another"),
        ("taken.npz", "'TMP/taken.npz' is no file to write; give a name that ends in .npz"),
    ],
)
def test_places_that_it_refuses(out, message, checkpoints, imagenet, tmp_path, refused):
    (tmp_path / "file").write_text("")
    (tmp_path / "taken.npz").mkdir()
    message = message.replace("TMP", str(tmp_path))
    refused("extract", [checkpoints["own"], imagenet, "--out", f"{tmp_path}/{out}"], message)


def test_a_place_that_can_not_be_written(checkpoints, imagenet, tmp_path, refused, monkeypatch):
    words = [checkpoints["own"], imagenet, "--out"]
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    for out in (tmp_path / "f.npz", tmp_path / "new"):
        refused(
            "extract", [*words, out], f"'{out}' can't be written, since '{tmp_path}' is not writable; give another"
        )
    monkeypatch.undo()

    def mkdir(path, *_):
        raise OSError(errno.EROFS, "Read-only file system", path)

    monkeypatch.setattr(os, "mkdir", mkdir)
    refused("extract", [*words, tmp_path / "f.npz"], f"Read-only file system: '{tmp_path}/.features-")


def test_a_folder_whose_name_has_a_dot(checkpoints, imagenet, tmp_path, call):
    root = made(imagenet, tmp_path / "images", *FLAT)
    for out in ("v1.5/", "v1.5"):  # a new folder, and then the one that exists
        code, _, error = call(extract.main, checkpoints["own"], root, "--out", f"{tmp_path}/{out}", "-j", 0)
        assert code == 0 and len(load(tmp_path / out)["paths"]) == 3, error


@pytest.mark.parametrize(
    "out, flags, size",
    [("f.npz", [], 8), ("folder", [], 4), ("folder", ["--half"], 2), ("f.npz", ["--half"], 4)],
)
def test_too_little_space(out, flags, size, checkpoints, imagenet, tmp_path, refused, monkeypatch, call):
    words, needed = [checkpoints["own"], imagenet, "-j", 0, "--out", tmp_path / out, *flags], 132 * WIDTH * size
    free = [needed - 1]
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(0, 0, free[0]))
    message = f"the features need {needed / 1e6:.1f} MB, but the disk of '{tmp_path}' has {free[0] / 1e6:.1f} MB "
    message += "free; give --half or another --out" + ", or a folder as --out, which needs half" * (out == "f.npz")
    refused("extract", words, message)
    free[0] = needed
    assert call(extract.main, *words)[0] == 0


def test_a_checkpoint_without_projector(checkpoints, imagenet, tmp_path, refused):
    path = checkpoints["torchvision"]
    words = [path, imagenet, "--out", tmp_path / "f.npz", "--projected"]
    refused("extract", words, f"the checkpoint '{path}' has no projector; give a checkpoint of main_moco.py")


def test_folders_that_it_refuses(checkpoints, tmp_path, refused):
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("empty", f"no images in '{tmp_path}/empty'; add some (.jpg, "),
        ("nowhere", f"no folder '{tmp_path}/nowhere'; it must hold images"),
    ):
        refused("extract", [checkpoints["own"], tmp_path / name, "--out", tmp_path / "f.npz"], message)
