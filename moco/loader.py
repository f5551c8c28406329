"""The two data loaders: batches of random training views, and batches of central crops in the order of the images.

The order of the samples and every view are functions of (seed, epoch, index). So a batch does not depend on the number
of data workers, and a resumed run gets the batches that the uninterrupted run would have got. `GaussianBlur` and
`CropsTransform` are MoCo's; they are kept for projects that are derived from this one.
"""

import functools
import math
import os
import random
import sys

import torch
from PIL import ImageFilter
from torch.utils.data import DataLoader

from moco.data.sampler import EpochBatchSampler
from moco.data.shared_batch_ring import MOST, BatchRing
from moco.data.view_datasets import CentralViews, RandomCrops, RandomViews
from moco.data.worker_processes import start_worker, stop_signals_held
from moco.distributed import rank, world_size
from moco.pipe_safe_print import say

IN_ADVANCE = 2  # batches that a data worker prepares in advance


def training_loader(
    folder, views, batch, seed, workers, drop_last=True, augment_on="cpu", substitutes=None, room=math.inf
):
    """Makes the DataLoader of the training batches.

    Before each epoch, set `epoch` and `start` of its `batch_sampler`. The function that
    `data.prefetch_to_device.finisher` returns turns each batch into the network's input.

    Args:
        folder: an ImageFolder. views: tuple of View.
        batch: images per step over all processes, which their number must divide.
        seed: the run's seed. workers: data workers of this process.
        drop_last: as in EpochBatchSampler.
        augment_on: "cpu": Pillow does everything in the data workers; "device": the workers only decode and crop.
        substitutes: a Substitutes for images that can't be decoded, or None.
        room: bytes that batches may fill while they wait for the device; as `make_loader`.

    Returns:
        A DataLoader. Its batches are those of RandomViews ("cpu") or RandomCrops ("device") in data/view_datasets.py.

    Raises:
        BadImageError, TooManyBadImages, ImageReadError: during the iteration, if images can't be decoded or read.
    """
    batches, own = EpochBatchSampler(len(folder), batch, seed, drop_last), batch // world_size()
    return random_view_loader(folder, views, batches, own, seed, workers, augment_on, substitutes, room)


def random_view_loader(
    folder, views, batches, most, seed, workers, augment_on, substitutes=None, room=math.inf, **purpose
):
    """Makes a DataLoader of random views.

    Args:
        batches: a batch sampler, which yields lists of (epoch, index). most: images in its largest batch.
        purpose: `purpose` and `persistent`, as `make_loader`.
        The other arguments, the result and the errors are those of `training_loader`.
    """
    dataset = (RandomViews if augment_on == "cpu" else RandomCrops)(folder, views, seed, substitutes)
    size = pinned_bytes(dataset, most)
    loader = make_loader(dataset, workers, size, room, **purpose, batch_sampler=batches, collate_fn=already_a_batch)
    if slots := slots_of(loader, size, room):
        dataset.ring = BatchRing(dataset.empty, most, slots)
    return loader


def already_a_batch(batch):
    """The collate function for a dataset that returns whole batches: returns its argument."""
    return batch


def central_loader(folder, size, batch, workers, room=math.inf, purpose="validation", skip_bad=False, persistent=True):
    """Makes the DataLoader of the central crops of this process's share of some images, in their order.

    The share is contiguous, and each image is in exactly one share. A batch is (view, label): n x 3 x size x size
    (uint8) and n (long), with n <= batch.

    Args:
        folder: an ImageFolder. size: side of the central crop in pixels.
        batch: images per step of this process. workers: data workers of this process.
        room, purpose, persistent: as `make_loader`. skip_bad: as CentralViews.

    Raises:
        BadImageError, ImageReadError: during the iteration, if an image can't be decoded or read.
    """
    first, last = (len(folder) * r // world_size() for r in (rank(), rank() + 1))
    dataset, batches = CentralViews(folder, size, skip_bad), {"sampler": range(first, last), "batch_size": batch}
    return make_loader(dataset, workers, pinned_bytes(dataset, batch), room, purpose, persistent, **batches)


class SignalSafeLoader(DataLoader):
    """A DataLoader that holds back stop signals while it forks its workers."""

    def __iter__(self):
        with stop_signals_held():
            return super().__iter__()


def make_loader(dataset, workers, size=0, room=math.inf, purpose="training", persistent=True, **batches):
    """A DataLoader whose workers ignore stop signals, and exit with this process.

    Args:
        dataset: any Dataset. workers: number of data workers, at most.
        size: bytes of a batch. room: bytes that batches may fill while they wait for the device.
        purpose: of the images, for the message about a lack of memory.
        persistent: whether the workers stay between two epochs. batches: further arguments of DataLoader.
    """
    wanted, (workers, ahead) = workers, in_flight(workers, size, room)
    if workers and rank() == 0 and (workers, ahead) != (wanted, IN_ADVANCE):
        say(
            f"note: {workers} of {wanted} data workers start for the {purpose}, and each prepares {ahead} of "
            f"{IN_ADVANCE} batches in advance, since batches of {size / 1e9:.2g} GB would fill more than "
            f"{room / 1e9:.2g} GB of the memory"
        )
    return SignalSafeLoader(
        dataset,
        num_workers=workers,
        prefetch_factor=ahead if workers else None,
        persistent_workers=persistent and workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=functools.partial(start_worker, os.getpid()),
        # Forked workers share the memory of the file list. Python 3.14's default would send a copy to each worker.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        **batches,
    )


def pinned_bytes(dataset, batch):
    """Bytes of a batch of so many images in pinned memory. torch rounds those of a tensor up to a power of two."""
    return sum(2 ** math.ceil(math.log2(batch * each)) for each in dataset.bytes_each())


def in_flight(workers, size, room):
    """How many data workers may run, and how many batches each may prepare in advance: (workers, batches).

    Args:
        workers: as wanted. size: of a batch in bytes. room: bytes that all batches may fill.
    """
    for ahead in range(IN_ADVANCE, 0, -1):
        if workers * ahead * size <= room:
            return workers, ahead
    return max(1, int(room // size)), 1


def slots_of(loader, size, room):
    """How many slots of a BatchRing the data workers of a loader need; 0 if they are not forked.

    With pinned memory, a slot is free as soon as its batch is copied. Without, every batch in advance needs one, and
    so do the batch that the training reads and the next one, which arrives before the training drops the former.

    Args:
        loader: from make_loader, before its workers start. size: of a batch in bytes. room: bytes that all slots and
            pinned copies may fill.
    """
    if loader.multiprocessing_context is None:  # other systems do not fork: the ring would not reach the workers
        return 0
    waiting = loader.num_workers * loader.prefetch_factor
    wanted, room = (loader.num_workers, room - waiting * size) if loader.pin_memory else (waiting, room)
    return max(0, int(min(wanted + 2, room / size, MOST)))


class GaussianBlur:
    """MoCo v2's PIL transform, a blur of sigma ~ U(sigma[0], sigma[1]) pixels. Training does not use it."""

    def __init__(self, sigma=(0.1, 2.0)):
        self.sigma = sigma

    def __call__(self, image):
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(*self.sigma)))


class CropsTransform:
    """Calls several transforms on one image and returns a list of the results. Training does not use it."""

    def __init__(self, *transforms):
        self.transforms = transforms

    def __call__(self, image):
        return [transform(image) for transform in self.transforms]
