"""The list of image files, against torchvision's ImageFolder."""

import os

import numpy as np
import pytest
from torchvision.datasets import ImageFolder as TorchvisionFolder

from moco.data.file_list import ImageFolder

pytestmark = pytest.mark.usefixtures("cache")


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


def test_a_folder_that_can_not_be_read_is_not_passed_over(data, monkeypatch):
    def walk(top, onerror, followlinks):
        onerror(PermissionError(13, "Permission denied", os.path.join(top, "deep")))

    monkeypatch.setattr(os, "walk", walk)
    with pytest.raises(PermissionError, match="deep"):
        ImageFolder(data)
