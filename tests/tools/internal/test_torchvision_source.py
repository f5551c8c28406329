"""What the items of a data set may be, and which splits are used; with classes that stand in for torchvision's."""

import os
import re

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from moco.tools import from_torchvision
from moco.tools.internal.torchvision_source import Source, names

STL10 = {"train": "train", "val": "test", "unlabeled": "unlabeled"}
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 280, 3), dtype=np.uint8))


def fake(items):
    """A class like those of torchvision whose items are given."""

    class Fake(datasets.VisionDataset):
        def __init__(self, root, split="train"):
            datasets.utils.verify_str_arg(split, "split", ("train", "trainval", "valid", "test"))
            self.split = split

        def __getitem__(self, index):
            return items[index]

        def __len__(self):
            return len(items)

    return Fake


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", "P", "LA", "1", "I;16"])
def test_every_mode_is_seen_as_training_sees_the_original(mode, tmp_path, monkeypatch, call):
    grey = PHOTO.convert("L")
    image = Image.new("I;16", PHOTO.size, 40000) if mode == "I;16" else (grey if mode == "LA" else PHOTO).convert(mode)
    image.info = {"transparency": 0, "icc_profile": b"profile"} if mode == "P" else {"icc_profile": b"profile"}
    monkeypatch.setattr(datasets, "CIFAR10", fake([(image, 0)]))
    code, said, _ = call(from_torchvision.main, "CIFAR10", tmp_path, tmp_path / "out")
    assert code == 0 and "python main_moco.py -a resnet18 --moco-k 256 --output-dir runs/out" in said
    assert "splits that are not written: trainval, test" in said
    with Image.open(tmp_path / "out" / "val" / "0" / "0.png") as written:
        assert written.mode == "RGB" and "icc_profile" not in written.info
        expected = np.full((300, 280, 3), 40000 >> 8) if mode == "I;16" else image.convert("RGB")
        assert np.array_equal(written, expected)


@pytest.mark.parametrize(
    "items, message",
    [
        ([(PHOTO, "cat")], "the items of CIFAR10 are not an image and a class number; give another data set"),
        ([(np.zeros(3), 1)], "the items of CIFAR10 are not an image and a class number"),
        ([PHOTO], "the items of CIFAR10 are not an image and a class number"),
        ([(PHOTO, PHOTO, 1)], "the items of CIFAR10 are not an image and a class number"),
        ([], "torchvision can't read image 0 of CIFAR10: list index out of range"),
    ],
)
def test_other_items_are_refused(items, message, tmp_path, monkeypatch, call):
    monkeypatch.setattr(datasets, "CIFAR10", fake(items))
    code, out, error = call(from_torchvision.main, "CIFAR10", tmp_path, tmp_path / "new" / "out")
    assert code == 2 and not out and error.count("\n") == 1 and message in error
    assert not os.listdir(tmp_path / "new")


def test_a_class_that_a_split_lacks_is_told(tmp_path, monkeypatch, call):
    class Half(fake([])):
        def __getitem__(self, index):
            return PHOTO, index

        def __len__(self):
            return 2 if self.split == "train" else 1

    monkeypatch.setattr(datasets, "CIFAR10", Half)
    code, said, _ = call(from_torchvision.main, "CIFAR10", tmp_path, tmp_path / "out")
    assert code == 0 and "note: val/ has no image of the class '1'; train/ and val/ differ in it" in said


@pytest.mark.parametrize(
    "name, splits, unused",
    [
        ("CIFAR100", {"train": {"train": True}, "val": {"train": False}}, []),
        ("OxfordIIITPet", {"train": {"split": "trainval"}, "val": {"split": "test"}}, []),
        ("Flowers102", {"train": {"split": "train"}, "val": {"split": "val"}}, ["test"]),
        ("FGVCAircraft", {"train": {"split": "train"}, "val": {"split": "val"}}, ["trainval", "test"]),
        ("Country211", {"train": {"split": "train"}, "val": {"split": "valid"}}, ["test"]),
        ("Places365", {"train": {"split": "train-standard"}, "val": {"split": "val"}}, ["train-challenge", "test"]),
        ("STL10", {name: {"split": split} for name, split in STL10.items()}, []),
        ("Caltech256", {"train": {}}, []),
    ],
)
def test_splits(name, splits, unused, tmp_path):
    assert name in names()
    source = Source(name, tmp_path, False, {})
    assert source.splits == splits and source.unused == unused


@pytest.mark.parametrize(
    "error, message",
    [
        (
            ModuleNotFoundError("No module named 'scipy'", name="scipy"),
            "needs the package scipy to read SVHN; install it",
        ),
        (RuntimeError("Do:\npip install x"), "can't read SVHN from 'data': Do:; give the right ROOT"),
        (RuntimeError("Please pip install x"), "can't read SVHN from 'data': Please pip install x"),
        (
            RuntimeError("Not found. You may use download=True ..."),
            "can't read SVHN from 'data': Not found; give the ",
        ),
    ],
)
def test_why_a_data_set_can_not_be_opened(error, message, monkeypatch):
    def fails(*_, root=None, split="train"):
        raise error

    monkeypatch.setattr(datasets, "SVHN", type("SVHN", (fake([]),), {"__init__": fails}))
    with pytest.raises(ValueError, match=f"^torchvision {re.escape(message)}") as raised:
        Source("SVHN", "data", False, {}).open()
    assert ("pip install" in str(raised.value)) == ("pip install" in message) and "--download" not in str(raised.value)
