"""Fixtures for the list of image files: a folder with nested images, and an empty cache."""

import os
import shutil
import time

import pytest


@pytest.fixture
def cache(tmp_path_factory, monkeypatch):
    """An empty cache folder."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def data(imagenet, tmp_path, cache):
    """The training images of the fake ImageNet and one in a nested folder, all folders dated back."""
    root = tmp_path / "train"
    shutil.copytree(imagenet / "train", root)
    (root / "disk_dots" / "deep" / "er").mkdir(parents=True)
    shutil.copy(root / "star_dots" / "0000.jpg", root / "disk_dots" / "deep" / "er" / "é.jpg")
    for folder, _, _ in os.walk(tmp_path, topdown=False):
        os.utime(folder, (time.time() - 100,) * 2)
    return root
