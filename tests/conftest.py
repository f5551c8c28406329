"""Shared by all tests: hides GPUs, marks, one thread per process, and a tiny fake ImageNet."""

import os
import re
import shutil
import sys
import tempfile
from multiprocessing import forkserver

import pytest


def pytest_configure(config):
    # Before torch is imported: only `pytest -m gpu` sees GPUs, also in the programs that tests start.
    if not re.search(r"(?<!not )\bgpu\b", config.option.markexpr):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # As many threads as cores, beside other processes, would make a program several times slower.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Keeps the image lists of tests out of the user's cache folder, also in the programs that tests start.
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="moco_tests_")
    config.add_cleanup(lambda: shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True))


def pytest_generate_tests():
    # In the first file of tests that starts processes: the server imports while the other files are collected. Its
    # output is captured, since pytest calls this hook while it captures its own.
    if "tests.ranks" in sys.modules:
        forkserver.ensure_running()


def pytest_collection_modifyitems(items):
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU and `pytest -m gpu`"))


@pytest.fixture(autouse=True)
def _single_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory):
    """A tiny fake ImageNet: 96 training and 36 validation images of 12 classes, about 40 px."""
    from moco.tools import fake_imagenet

    folder = tmp_path_factory.mktemp("imagenet")
    fake_imagenet.make(folder, train=8, val=3, size=40)
    return folder


@pytest.fixture(scope="session")
def few_images(imagenet, tmp_path_factory):
    """A part of it, 24 training and 12 validation images, for tests of what happens to a run."""
    folder = tmp_path_factory.mktemp("few_images")
    for path in [*imagenet.glob("train/*/000[01].jpg"), *imagenet.glob("val/*/0000.jpg")]:
        copy = folder / path.relative_to(imagenet)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return folder


@pytest.fixture
def impatient(monkeypatch):
    """Lets a Progress print a line after each item, not only every 10 seconds."""
    monkeypatch.setattr("moco.engine.progress.INTERVAL", 0.0)


@pytest.fixture
def zero_weights(monkeypatch):
    """Lets new networks start from zeros, where all weights are then loaded: drawing them takes most of the time."""
    from torch.nn import init

    for name in ("kaiming_normal_", "kaiming_uniform_"):
        monkeypatch.setattr(init, name, lambda tensor, *_, **__: tensor.detach().zero_())


@pytest.fixture
def call(capsys):
    """Calls a program's `main(argv)`; returns its exit code, standard output and standard error."""

    def call(main, *argv):
        try:
            main([str(word) for word in argv])
            code = 0
        except SystemExit as stop:
            code = stop.code
        return (code, *capsys.readouterr())

    return call
