"""Tiny data sets in the formats that torchvision reads, written as folders of PNGs."""

import os
import pickle
import signal
import struct
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from moco.data.file_list import ImageFolder
from moco.tools import from_torchvision
from moco.tools.from_torchvision import folder_names

RNG = np.random.default_rng(0)
ANIMALS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(autouse=True)
def any_checksum(monkeypatch):
    """Lets torchvision accept small files."""
    for module in (datasets.cifar, datasets.stl10, datasets.svhn):
        monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: os.path.isfile(path))


def cifar10(root):
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        data = RNG.integers(0, 256, (7, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": [(i * 7 + 3 * j) % 10 for j in range(7)]}))
    (folder / "test_batch").write_bytes(pickle.dumps({"data": data[:1].repeat(10, 0), "labels": list(range(10))}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ANIMALS}))


def stl10(root):
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    for split, n in (("train", 11), ("test", 12), ("unlabeled", 13)):
        RNG.integers(0, 256, (n, 3, 96, 96), dtype=np.uint8).tofile(folder / f"{split}_X.bin")
        if split != "unlabeled":
            (np.arange(n) % 10 + 1).astype(np.uint8).tofile(folder / f"{split}_y.bin")
    (folder / "class_names.txt").write_text("\n".join(ANIMALS))


def svhn(root):
    scipy_io = pytest.importorskip("scipy.io")
    root.mkdir()
    for split, n in (("train", 12), ("test", 10), ("extra", 1)):
        pixels, labels = RNG.integers(0, 256, (32, 32, 3, n), dtype=np.uint8), np.arange(n)[:, None] % 10 + 1
        scipy_io.savemat(root / f"{split}_32x32.mat", {"X": pixels, "y": labels})


def fashion_mnist(root, kind="FashionMNIST", prefix="", test="t10k", first=0):
    folder = root / kind / "raw"
    folder.mkdir(parents=True)
    for split, n in (("train", 21), (test, 20)):
        pixels, labels = RNG.integers(0, 256, (n, 28, 28), dtype=np.uint8), np.arange(n) % 10 + first
        for what, header, data in (
            ("images-idx3", struct.pack(">IIII", 2051, n, 28, 28), pixels),
            ("labels-idx1", struct.pack(">II", 2049, n), labels.astype(np.uint8)),
        ):
            (folder / f"{prefix}{split}-{what}-ubyte").write_bytes(header + data.tobytes())


def eurosat(root):
    for name in ("Forest", "River"):
        (folder := root / "eurosat" / "2750" / name).mkdir(parents=True)
        Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / "1.jpg")


def same(folder, theirs, shift=0):
    """Whether a folder has the images and the labels of a data set of torchvision."""
    assert len(folder) == len(theirs)
    for index in range(len(folder)):
        image, label = theirs[int(os.path.splitext(os.path.basename(folder.path(index)))[0])]
        assert folder.labels[index] == label - shift
        assert np.array_equal(folder.load(index), image.convert("RGB"))


SMALL = ["-a", "resnet18", "--crop-size", "32", "--stem", "small", "--recipe", "blur_p=0", "--moco-k", "256"]


def test_cifar10(tmp_path, monkeypatch, call):
    cifar10(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    code, out, error = call(from_torchvision.main, "CIFAR10", "data", "new/cifar 10")
    assert (code, error) == (0, "") and os.listdir("new") == ["cifar 10"]
    for split, train in (("train", True), ("val", False)):
        folder = ImageFolder(f"new/cifar 10/{split}")
        assert folder.classes == ANIMALS
        same(folder, datasets.CIFAR10("data", train=train))
    assert out.splitlines() == [
        "wrote 'new/cifar 10': train/ 35 images, val/ 10 images",
        "pretraining:",
        f"python main_moco.py {' '.join(SMALL)} --output-dir 'runs/cifar 10' 'new/cifar 10'",
        "then linear classification:",
        f"python main_lincls.py {' '.join(SMALL[:4])} --pretrained 'runs/cifar 10/checkpoint__0099.pth.tar' "
        "--output-dir 'runs/cifar 10/lincls' 'new/cifar 10'",
    ]


def test_stl10_has_images_without_a_class(tmp_path, call):
    stl10(tmp_path / "data")
    out = tmp_path / "stl"
    out.mkdir()  # an empty folder is as good as none
    code, said, error = call(from_torchvision.main, "STL10", tmp_path / "data", out)
    assert (code, error) == (0, "")
    for split, name in (("train", "train"), ("test", "val")):
        same(ImageFolder(out / name), datasets.STL10(tmp_path / "data", split))
    same(ImageFolder(out / "unlabeled", any_tree=True), datasets.STL10(tmp_path / "data", "unlabeled"))
    lines = said.splitlines()
    assert lines[0] == f"wrote '{out}': train/ 11 images, val/ 12 images, unlabeled/ 13 images"
    assert lines[2] == (
        f"python main_moco.py -a resnet18 --crop-size 96 --moco-k 256 --output-dir runs/stl {out}/unlabeled"
    )
    both = tmp_path / "both"
    words = ["STL10", tmp_path / "data", both, "--option", "split=train+unlabeled", "--option", "folds=None"]
    code, said, _ = call(from_torchvision.main, *words)
    assert code == 0 and len(os.listdir(both / "unlabeled")) == 13 and not (both / "val").exists()
    assert sorted(os.listdir(both / "unlabeled"))[0] == "train_11.png"


def test_svhn_has_numbers_for_names(tmp_path, call):
    svhn(tmp_path / "data")
    code, said, _ = call(from_torchvision.main, "SVHN", tmp_path / "data", tmp_path / "out")
    assert code == 0 and "note: splits that are not written: extra; --option split=NAME writes one as train/" in said
    for split, name in (("train", "train"), ("test", "val")):
        folder = ImageFolder(tmp_path / "out" / name)
        assert folder.classes == [str(digit) for digit in range(10)]
        same(folder, datasets.SVHN(tmp_path / "data", split))


def test_names_that_are_not_sorted_get_numbers(tmp_path, call):
    fashion_mnist(tmp_path)
    assert call(from_torchvision.main, "FashionMNIST", tmp_path, tmp_path / "out")[0] == 0
    folder = ImageFolder(tmp_path / "out" / "train")
    assert folder.classes[:3] == ["0_T-shirt_top", "1_Trouser", "2_Pullover"]
    same(folder, datasets.FashionMNIST(tmp_path))
    with Image.open(folder.path(0)) as image:
        assert image.mode == "L"


def test_a_label_without_images_is_told(tmp_path, call):
    fashion_mnist(tmp_path, "EMNIST", "emnist-letters-", "test", 1)
    words = ["EMNIST", tmp_path, tmp_path / "out"]
    code, said, _ = call(from_torchvision.main, *words, "--option", "split=letters")
    assert code == 0 and "note: no image has the label 0; so the labels above it shift down by one" in said
    same(ImageFolder(tmp_path / "out" / "val"), datasets.EMNIST(tmp_path, "letters", train=False), shift=1)
    code, said, error = call(from_torchvision.main, *words[:2], tmp_path / "2")
    assert code == 2 and error.endswith("error: EMNIST needs the argument 'split'; give --option split=VALUE\n")


def test_a_data_set_without_splits_is_all_for_training(tmp_path, call):
    eurosat(tmp_path)
    code, said, _ = call(from_torchvision.main, "EuroSAT", tmp_path, tmp_path / "out")
    assert code == 0 and os.listdir(tmp_path / "out") == ["train"] and "main_lincls" not in said
    assert "note: there is no validation split; linear classification needs val/" in said
    same_pixels = [Image.open(p) for p in sorted((tmp_path / "eurosat").rglob("*.jpg"))]
    folder = ImageFolder(tmp_path / "out" / "train")
    assert all(np.array_equal(folder.load(i), same_pixels[i]) for i in range(2))


@pytest.mark.parametrize(
    "classes, n, expected",
    [
        (["a", "b"], 2, ["a", "b"]),
        (["b", "a"], 2, ["0_b", "1_a"]),
        (["a", "A"], 2, ["0_a", "1_A"]),
        (["a b", "a/b"], 2, ["0_a_b", "1_a_b"]),
        (["../x", ".y"], 2, ["x", "y"]),
        (["é", "ü"], 2, ["0", "1"]),
        ([("cat", "tabby"), ("dog",)], 2, ["cat", "dog"]),
        (["a", "b"], 3, ["0", "1", "2"]),
        (["x" * 300], 1, ["x" * 64]),
        ((), 11, [f"{i:02d}" for i in range(11)]),
        ((), 0, []),
    ],
)
def test_names_of_folders(classes, n, expected):
    assert folder_names(classes, n) == expected and sorted(expected) == expected


@pytest.mark.parametrize(
    "images, flags",
    [(50_000, ["--moco-k", "4096"]), (3680, ["--moco-k", "1024"]), (999, ["--moco-k", "256"]), (200_000, [])],
)
def test_the_queue_suits_the_number_of_images(images, flags, capsys):
    from_torchvision.report("out", {"train": Counter({0: images})}, ["0"], 300, [])
    words = capsys.readouterr().out.splitlines()[-1].split()
    assert words[words.index("--output-dir") - len(flags) : -3] == flags and ("resnet18" in words) == bool(flags)


def stopped(*_):
    os.kill(os.getpid(), signal.SIGTERM)


def full(*_):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    "fault, code, line", [(stopped, 143, "stopped by SIGTERM"), (full, 2, "No space left on device")]
)
def test_an_interruption_leaves_nothing(fault, code, line, tmp_path, monkeypatch, call):
    cifar10(tmp_path / "data")
    monkeypatch.setattr(from_torchvision.Progress, "add", fault)
    found, out, error = call(from_torchvision.main, "CIFAR10", tmp_path / "data", tmp_path / "out")
    assert (found, out) == (code, "") and line in error and error.count("\n") == 1
    assert os.listdir(tmp_path) == ["data"]


def test_it_shows_its_progress(tmp_path, impatient, call):
    cifar10(tmp_path / "data")
    _, _, error = call(from_torchvision.main, "CIFAR10", tmp_path / "data", tmp_path / "out")
    assert error.startswith("writing train: 1 of 35 images (3%), 0:00:0") and "writing val: 9 of 10 images" in error


def test_only_download_downloads(tmp_path, monkeypatch, call):
    root, calls = tmp_path / "data", []
    monkeypatch.setattr(datasets.CIFAR10, "download", lambda dataset: (calls.append(1), cifar10(root)))
    words = ["CIFAR10", root, tmp_path / "out"]
    code, _, error = call(from_torchvision.main, *words)
    assert code == 2 and f"no folder '{root}'; give the one that holds the data set, or --download\n" in error
    root.mkdir()
    code, _, error = call(from_torchvision.main, *words)
    assert (
        code == 2
        and not calls
        and error.endswith(
            f"error: torchvision can't read CIFAR10 from '{root}': Dataset not found or corrupted; "
            "give the right ROOT, or --download\n"
        )
    )
    assert call(from_torchvision.main, *words, "--download")[0] == 0 and calls


@pytest.mark.parametrize(
    "words, message",
    [
        (["CIFAR", "x", "y"], "invalid choice: 'CIFAR'; did you mean CIFAR10?"),
        (["FakeData", "x", "y"], "invalid choice: 'FakeData'"),
        (["CIFAR10", "data", "full"], "'full' is not empty; give the name of a new folder"),
        (["CIFAR10", "data", "full/file"], "'full/file' is no folder; give a folder, which may be a new one"),
        (["CIFAR10", "new/data", "new", "--download"], "'new' is or contains the folder 'new/data' that is read"),
        (["CIFAR10", "data", "old"], "old.unfinished' exists; if no other call of this program writes it now"),
        (["CIFAR10", "data", "out", "--option", "size"], "'size' is not NAME=VALUE; for example: size=160px"),
        (["CIFAR10", "data", "out", "--option", "size=3"], "CIFAR10 has no argument 'size'; it has root, train, "),
        (["ImageNet", "data", "out", "--download"], "torchvision can't download ImageNet; put its files into ROOT"),
        (["Food101", "data", "out"], "can't read Food101 from 'data': Dataset not found; give the right ROOT, or --"),
        (["CocoDetection", "data", "out"], "CocoDetection needs the argument 'annFile'; give --option annFile=VALUE"),
    ],
)
def test_what_it_refuses(words, message, tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    for folder in ("data", "full", "old.unfinished"):
        os.mkdir(folder)
    open("full/file", "w").close()
    before = sorted(tmp_path.rglob("*"))
    code, out, error = call(from_torchvision.main, *words)
    assert code == 2 and not out and error.count("\n") == 1 and message in error
    assert sorted(tmp_path.rglob("*")) == before
