"""Image folders against torchvision's, and batches that depend on their address alone."""

import os
import random
import signal

import pytest
import torch
from PIL import Image, ImageFilter
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from moco import loader
from moco.asymmetry.multicrop import multicrop_plan
from moco.data.image_list import ImageFolder
from moco.loader import CentralViews, CropsTransform, EpochBatches, GaussianBlur, cause_of_death, explained
from moco.views.recipes import baseline_plan

PLAN = multicrop_plan(baseline_plan(24), 12)


def test_an_image_that_can_not_be_decoded_is_named(tmp_path):
    (tmp_path / "train" / "a").mkdir(parents=True)
    for i in range(4):
        (tmp_path / "train" / "a" / f"{i}.jpg").write_bytes(b"no image")
    folder = ImageFolder(tmp_path / "train")
    with pytest.raises(OSError, match=r"can't decode .*a/2\.jpg"):
        folder.load(2)
    for workers in (0, 1):
        with pytest.raises(OSError, match=r"can't decode .*a/\d\.jpg"):
            list(loader.training_loader(folder, PLAN.views, 2, 0, workers))


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


@pytest.mark.parametrize("drop_last", [True, False])
def test_ranks_take_contiguous_shares_of_one_global_batch(ranks, drop_last):
    ranks(0, 1)
    alone = list(EpochBatches(103, 12, seed=5, drop_last=drop_last))
    assert len(alone) == (8 if drop_last else 9)
    seen = [index for batch in alone for _, index in batch]
    assert sorted(seen) == list(range(103)) if not drop_last else len(set(seen)) == 96
    for world in (2, 4):
        shares = []
        for rank in range(world):
            ranks(rank, world)
            shares.append(list(EpochBatches(103, 12, seed=5, drop_last=drop_last)))
        for t, batch in enumerate(alone):
            joined = [address for share in shares for address in share[t]]
            assert len({len(share[t]) for share in shares}) == 1
            filled = alone[0][: len(joined) - len(batch)]  # only the last batch is filled up, from the first's start
            assert joined == batch + filled and len(filled) < world
            assert not filled or t == 8


def test_every_validation_image_is_in_one_share(imagenet, ranks):
    folder = ImageFolder(imagenet / "val")
    for world in (1, 2, 5, 40):
        labels = []
        for rank in range(world):
            ranks(rank, world)
            labels += [int(x) for _, target in loader.validation_loader(folder, 16, 7, 0) for x in target]
        assert labels == folder.labels.tolist()


@pytest.mark.parametrize("size", [224, 32])
def test_central_view_is_that_of_torchvision(imagenet, size):
    folder = ImageFolder(imagenet / "val")
    view, label = CentralViews(folder, size)[5]
    image = Image.open(folder.path(5)).convert("RGB")
    resized = v2.Resize({224: 256, 32: 37}[size])(image)
    assert torch.equal(view, v2.functional.pil_to_tensor(v2.CenterCrop(size)(resized)))
    assert view.shape == (3, size, size) and label == folder.labels[5]


def test_an_image_too_long_to_be_resized_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("L", (30000, 2)).save(tmp_path / "a" / "long.png")
    Image.new("L", (300, 2)).save(tmp_path / "a" / "short.png")
    folder = ImageFolder(tmp_path)
    with pytest.raises(OSError, match=r"long.png' of 30000 x 2 pixels is too long to be resized to 256"):
        CentralViews(folder, 224)[0]
    assert CentralViews(folder, 224)[1][0].shape == (3, 224, 224)


class Dying(Dataset):
    """Images whose second one ends the data worker."""

    def __init__(self, number):
        self.number = number

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 1:
            os.kill(os.getpid(), self.number)
        return index


@pytest.mark.parametrize(
    "number, said",
    [
        (signal.SIGKILL, "a data worker was killed, by the system if memory is short; give fewer --workers"),
        (signal.SIGBUS, r"a data worker ran out of shared memory: enlarge /dev/shm .*--shm-size"),
    ],
)
def test_the_cause_of_a_data_workers_death_is_said(number, said):
    @explained
    def train():
        list(DataLoader(Dying(number), num_workers=1))

    with pytest.raises(RuntimeError, match=said):
        train()


def test_a_file_in_shared_memory_that_can_not_be_made_is_explained():
    error = RuntimeError("unable to write to file </torch_77_123_0>: No space left on device (28)")
    assert "enlarge /dev/shm" in cause_of_death(error)


def test_other_errors_stay_what_they_are():
    @explained
    def train(error):
        raise error

    others = [
        "Caught OSError in DataLoader worker process 0: can't decode '/data/torch_1/x.jpg': No space left on device",
        "out of resource: shared memory, Required: 131072, Hardware limit: 101376",
        "can't write '/scratch/torch_2/c': No space left on device",
    ]
    for error in (KeyError("x"), *map(RuntimeError, others)):
        with pytest.raises(type(error)) as seen:
            train(error)
        assert seen.value is error


def test_transforms_for_forks(imagenet):
    image = ImageFolder(imagenet / "val").load(0)
    random.seed(4)
    blurred = GaussianBlur([0.1, 2.0])(image)
    random.seed(4)
    assert blurred == image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))
    a, b = CropsTransform(lambda x: x.size, lambda x: x.mode)(image)
    assert (a, b) == (image.size, "RGB")
