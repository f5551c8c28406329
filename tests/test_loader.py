"""Image folders against torchvision's, and batches that depend on their address alone."""

import random
import traceback

import pytest
import torch
from PIL import ImageFilter

from moco import loader
from moco.asymmetry.multicrop import multicrop_plan
from moco.data.file_list import ImageFolder
from moco.loader import CropsTransform, GaussianBlur
from moco.views.augmentation_recipes import baseline_plan

PLAN = multicrop_plan(baseline_plan(24), 12)


def test_an_image_that_can_not_be_decoded_is_named(tmp_path):
    (tmp_path / "train" / "a").mkdir(parents=True)
    for i in range(4):
        (tmp_path / "train" / "a" / f"{i}.jpg").write_bytes(b"no image")
    folder = ImageFolder(tmp_path / "train")
    with pytest.raises(OSError, match=r"can't decode .*a/2\.jpg"):
        folder.load(2)
    for workers in (0, 1):
        with pytest.raises(OSError, match=r"can't decode .*a/\d\.jpg") as error:
            list(loader.training_loader(folder, PLAN.views, 2, 0, workers))
        traceback.clear_frames(error.tb)  # ends the worker; a garbage collection would wait for it for 5 seconds


def epoch_of(imagenet, workers, epoch, seed=0, plan=PLAN):
    batches = loader.training_loader(ImageFolder(imagenet / "train"), plan.views, 16, seed, workers)
    batches.batch_sampler.epoch = epoch
    return list(batches)


def equal(a, b):
    return all(
        torch.equal(x, y) and all(map(torch.equal, views, others))
        for (views, x), (others, y) in zip(a, b, strict=True)
    )


def test_batches_do_not_depend_on_workers_but_on_seed_and_epoch(imagenet):
    first = epoch_of(imagenet, 0, 3)
    assert equal(first, epoch_of(imagenet, 1, 3)) and equal(first, epoch_of(imagenet, 3, 3))
    assert not equal(first, epoch_of(imagenet, 0, 4)) and not equal(first, epoch_of(imagenet, 0, 3, seed=1))
    views, labels = first[0]
    assert [v.shape for v in views] == [(16, 3, v.size, v.size) for v in PLAN.views]
    assert all(v.dtype == torch.uint8 for v in views) and labels.dtype == torch.long


def test_workers_that_persist_follow_the_epoch(imagenet):
    batches = loader.training_loader(ImageFolder(imagenet / "train"), PLAN.views, 16, 0, 2)
    for epoch in (0, 1, 0):
        batches.batch_sampler.epoch = epoch
        assert equal(list(batches), epoch_of(imagenet, 0, epoch))


@pytest.fixture
def ranks(monkeypatch):
    """Sets the world that the loader sees."""

    def set_ranks(rank, world):
        monkeypatch.setattr(loader, "rank", lambda: rank)
        monkeypatch.setattr(loader, "world_size", lambda: world)

    return set_ranks


def test_every_validation_image_is_in_one_share(imagenet, ranks):
    folder = ImageFolder(imagenet / "val")
    for world in (1, 2, 5, 40):
        labels = []
        for rank in range(world):
            ranks(rank, world)
            labels += [int(x) for _, target in loader.central_loader(folder, 16, 7, 0) for x in target]
        assert labels == folder.labels.tolist()


def test_transforms_for_forks(imagenet):
    image = ImageFolder(imagenet / "val").load(0)
    random.seed(4)
    blurred = GaussianBlur([0.1, 2.0])(image)
    random.seed(4)
    assert blurred == image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))
    a, b = CropsTransform(lambda x: x.size, lambda x: x.mode)(image)
    assert (a, b) == (image.size, "RGB")


@pytest.mark.parametrize(
    "workers, size, room, expected",
    [
        (16, 1e6, 1e9, (16, 2)),
        (16, 40e6, 1e9, (16, 1)),  # first fewer batches in advance,
        (16, 100e6, 1e9, (10, 1)),  # then fewer workers,
        (16, 5e9, 1e9, (1, 1)),  # but at least one
    ],
)
def test_batches_that_wait_fit_into_the_memory(workers, size, room, expected):
    assert loader.in_flight(workers, size, room) == expected


@pytest.mark.parametrize("augment_on", ["cpu", "device"])
def test_a_loader_that_must_save_memory_says_so(augment_on, imagenet, capsys):
    folder = ImageFolder(imagenet / "train")
    batches = loader.training_loader(folder, PLAN.views, 16, 0, 2, augment_on=augment_on)
    assert batches.num_workers == 2 and batches.prefetch_factor == 2 and capsys.readouterr().out == ""
    size = sum(x.numel() for x in (next(iter(batches))[0] if augment_on == "cpu" else next(iter(batches))[0].values()))
    assert sum(batches.dataset.bytes_each()) * 16 == size == 16 * 3 * (2 * 24**2 + 6 * 12**2)
    batches = loader.training_loader(folder, PLAN.views, 16, 0, 2, augment_on=augment_on, room=2 * size)
    assert batches.num_workers == 1 and batches.prefetch_factor == 1  # torch rounds up to powers of two
    said = "note: 1 of 2 data workers start for the training, and each prepares 1 of 2 batches in advance, since"
    assert said in capsys.readouterr().out
    assert loader.central_loader(folder, 16, 8, 2, room=8 * 3 * 16**2 * 3).prefetch_factor == 1


@pytest.mark.parametrize("gpu", [True, False])
def test_batches_for_a_gpu_are_pinned(gpu, imagenet, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    folder = ImageFolder(imagenet / "train")
    loaders = [loader.training_loader(folder, PLAN.views, 16, 0, 0, augment_on=where) for where in ("cpu", "device")]
    assert all(made.pin_memory == gpu for made in (*loaders, loader.central_loader(folder, 16, 8, 0)))
