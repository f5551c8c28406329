"""Batches on their way to the network."""

import weakref

import pytest
import torch

from moco.asymmetry.multicrop import multicrop_plan
from moco.asymmetry.scalemix import scalemix_plan
from moco.data.file_list import ImageFolder
from moco.data.prefetch_to_device import Lookahead, finisher, prefetched
from moco.loader import training_loader
from moco.views.augmentation_recipes import baseline_plan

PLAN = scalemix_plan(multicrop_plan(baseline_plan(24), 12))
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def epoch_of(imagenet, augment_on, workers=0, device="cpu"):
    device = torch.device(device)
    loader = training_loader(ImageFolder(imagenet / "train"), PLAN.views, 16, 0, workers, augment_on=augment_on)
    loader.batch_sampler.epoch = 2
    return list(prefetched(loader, finisher(PLAN.views, augment_on, device), device))


@pytest.mark.parametrize("device", DEVICES)
def test_both_paths_give_the_same_images(imagenet, device):
    cpu, fast = epoch_of(imagenet, "cpu", device=device), epoch_of(imagenet, "device", device=device)
    assert len(cpu) == len(fast) == 6
    for (views, labels), (others, other_labels) in zip(cpu, fast, strict=True):
        assert torch.equal(labels, other_labels) and labels.dtype == torch.long
        assert [v.shape for v in views] == [(16, 3, v.size, v.size) for v in PLAN.views]
        for a, b in zip(views, others, strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype == torch.float32 and a.device == b.device
            assert (a - b).abs().mean() < 0.01


def test_the_fast_path_does_not_depend_on_workers(imagenet):
    alone = epoch_of(imagenet, "device")
    for (views, labels), (others, other_labels) in zip(alone, epoch_of(imagenet, "device", workers=2), strict=True):
        assert torch.equal(labels, other_labels)
        assert all(torch.equal(a, b) for a, b in zip(views, others, strict=True))


@pytest.mark.gpu
def test_a_batch_is_not_overwritten_before_its_step_is_through(imagenet):
    """The step is slow and its views are dropped at once, so that their memory would be free for the next batch."""
    device = torch.device("cuda")
    folder = ImageFolder(imagenet / "train")
    finish = finisher(PLAN.views, "device", device)
    loader = training_loader(folder, PLAN.views, 16, 0, 0, augment_on="device")
    copies = []
    for views, _ in prefetched(loader, finish, device):
        torch.cuda._sleep(200_000_000)  # cycles, about a tenth of a second
        copies.append([view.clone() for view in views])
        del views
    for kept, batch in zip(copies, loader, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(kept, finish(batch)[0], strict=True))


def test_a_look_ahead_raises_an_error_only_when_its_item_is_due():
    def items():
        yield 1
        yield 2
        raise KeyError("the third one")

    ahead = Lookahead(items())
    ahead.fetch()
    ahead.fetch()  # fetches nothing more
    assert next(ahead) == 1 and next(ahead) == 2
    ahead.fetch()  # the error waits
    with pytest.raises(KeyError):
        next(ahead)
    assert list(ahead) == []


def test_a_look_ahead_keeps_no_item():
    ahead = Lookahead([torch.zeros(3) for _ in range(1)] for _ in range(2))
    kept = weakref.ref(next(ahead)[0])
    assert kept() is None
