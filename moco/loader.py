"""The views of an image and the batches of a step, from the decoded file to the network's input.

The order of the samples and every view are functions of (seed, epoch, index), never of how many draws came
before: a result does not depend on the number of workers, and a resumed run repeats the uninterrupted one.
"""

import functools
import math
import os
import random
import re
import shutil
import sys
from itertools import accumulate

import numpy as np
import torch
import torchvision.transforms.functional as TF
from PIL import ImageFilter
from torch.utils.data import DataLoader, Dataset, get_worker_info

from moco.distributed import rank, world_size
from moco.image_folder import MOST_PIXELS
from moco.interruption import held, obey_only
from moco.randomness import ORDER, VIEWS, generator
from moco.views.draw import draw_view, uniforms_needed
from moco.views.on_pil import render
from moco.views.on_tensor import Layout

SHARED = "/dev/shm"  # where the workers' batches lie
# As torch says it: of a worker that a signal has ended, or of the file that it could not make.
NO_SHARED_MEMORY = re.compile(r"DataLoader worker.*Bus error|</torch_\d+.*>.*(No space left|Cannot allocate)")


class Drawn(Dataset):
    """An ImageFolder and the Views of its images, drawn anew each epoch.

    Items are addressed by (epoch, index), so that workers that live for many epochs know the epoch.

    Args:
        folder: an ImageFolder. views: tuple of View. seed: of the draws.
        substitutes: Substitutes for the images that can't be decoded, or None, to let the error through.
    """

    def __init__(self, folder, views, seed, substitutes=None):
        self.folder, self.views, self.seed, self.substitutes = folder, views, seed, substitutes
        self.ends = list(accumulate(uniforms_needed(view) for view in views))

    def __len__(self):
        return len(self.folder)

    def draws(self, epoch, index, width, height):
        """The Draws of an image, one a view, for its size in pixels. A substitute has those of the image's address."""
        u = generator(VIEWS, self.seed, epoch, index).random(self.ends[-1]).tolist()
        starts = [0, *self.ends]
        return [
            draw_view(view, width, height, u[start:end])
            for view, start, end in zip(self.views, starts, self.ends, strict=False)
        ]

    def decode(self, load, epoch, index):
        """(what `load(index)` returns, `index`), or those of the substitute; `load` is one of the folder's."""
        if self.substitutes is None:
            return load(index), index
        return self.substitutes.decode(load, epoch, index)


class RandomViews(Drawn):
    """The views, made by Pillow: the reference path.

    An item is (views, label): a list of uint8 tensors, 3 x size x size, in the order of `views`, and an int.
    """

    def __getitem__(self, address):
        epoch, index = address
        image, shown = self.decode(self.folder.load, epoch, index)
        draws = self.draws(epoch, index, *image.size)
        views = [render(draw, view.size, image) for draw, view in zip(draws, self.views, strict=True)]
        return views, int(self.folder.labels[shown])


class RandomCrops(Drawn):
    """The views' crops and what is left to do with them, for `views.on_tensor`: the fast path.

    Items come a batch at a time: (crops, rows, labels) with crops a dict of size to N x R x size x size x 3, uint8, R
    the crops of that size an image, rows N x (all R) x COLUMNS, float32, and labels N, long.
    """

    def __init__(self, folder, views, seed, substitutes=None):
        super().__init__(folder, views, seed, substitutes)
        self.layout = Layout(views)

    def __getitems__(self, addresses):
        n = len(addresses)
        crops = {size: shared_empty(n, len(rows), size, size, 3) for size, rows in self.layout.rows.items()}
        rows, shown = [], []
        for i, (epoch, index) in enumerate(addresses):
            image, substitute = self.decode(self.folder.load_tensor, epoch, index)
            shown.append(substitute)
            draws = self.draws(epoch, index, image.shape[1], image.shape[0])
            self.layout.crop(image, draws, {size: x[i] for size, x in crops.items()})
            rows.append(self.layout.rows_of(draws))
        return crops, torch.tensor(rows), torch.from_numpy(self.folder.labels[shown]).long()


def shared_empty(*shape):
    """An uninitialised uint8 tensor; in a data worker in shared memory, which saves the copy on the way out."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


class CentralViews(Dataset):
    """Each image's central square, for validation: the shorter side to 256 pixels, the middle 224 x 224 of it.

    An item, addressed by its index, is (view, label): uint8, 3 x size x size, and an int.

    Args:
        folder: an ImageFolder. size: of the view in pixels; the resize is in proportion.

    Raises:
        OSError: for an item that can't be decoded, or is so long that its resized form would fill the memory.
    """

    def __init__(self, folder, size=224):
        self.folder, self.size = folder, size

    def __len__(self):
        return len(self.folder)

    def __getitem__(self, index):
        image, side = self.folder.load(index), round(self.size * 256 / 224)
        if max(image.size) * side**2 > MOST_PIXELS * min(image.size):
            width, height = image.size
            path = self.folder.path(index)
            raise OSError(
                f"the image {path!r} of {width} x {height} pixels is too long to be resized to {side} a side"
            )
        image = TF.resize(image, side)
        return TF.pil_to_tensor(TF.center_crop(image, [self.size, self.size])), int(self.folder.labels[index])


class EpochBatches:
    """Batch sampler of (epoch, index): the global batch of step t is a function of (seed, epoch, t).

    Each process takes its contiguous share of it. Set `epoch`, and `start` to begin within it, before iterating.

    Args:
        length: images. batch: images of all processes a step; the number of processes must divide it.
        drop_last: without the incomplete last batch; else it is filled up from the start of the epoch's order to a
            multiple of the number of processes.
    """

    def __init__(self, length, batch, seed, drop_last=True):
        self.length, self.batch, self.seed, self.drop_last = length, batch, seed, drop_last
        self.epoch, self.start = 0, 0

    def __len__(self):
        return self.length // self.batch if self.drop_last else math.ceil(self.length / self.batch)

    def __iter__(self):
        order = self._order()
        for t in range(self.start, len(self)):
            yield self._share(order, t, rank())

    def addresses(self, t, of_rank):
        """What a rank gets in step t of the epoch: a list of (epoch, index)."""
        return self._share(self._order(), t, of_rank)

    def _order(self):
        return generator(ORDER, self.seed, self.epoch).permutation(self.length)

    def _share(self, order, t, of_rank):
        world = world_size()
        batch = order[t * self.batch : (t + 1) * self.batch]
        batch = np.concatenate((batch, order[: -len(batch) % world]))
        share = len(batch) // world
        return [(self.epoch, int(i)) for i in batch[of_rank * share : (of_rank + 1) * share]]


def training_loader(folder, views, batch, seed, workers, drop_last=True, augment_on="cpu", substitutes=None):
    """DataLoader of an epoch's batches; set `epoch` and `start` of its `batch_sampler` before iterating.

    A batch goes through `finish` on its way to the network.

    Args:
        folder: an ImageFolder. views: tuple of View. batch: images of all processes a step. workers: of this process.
        augment_on: "cpu", everything by Pillow in the workers, or "device", where the workers only crop.
        substitutes: as for `Drawn`.
    """
    batches = EpochBatches(len(folder), batch, seed, drop_last)
    if augment_on == "cpu":
        return _loader(RandomViews(folder, views, seed, substitutes), workers, batch_sampler=batches)
    crops = RandomCrops(folder, views, seed, substitutes)
    return _loader(crops, workers, batch_sampler=batches, collate_fn=as_it_is)


def as_it_is(batch):
    """The collation of what is a batch already."""
    return batch


def validation_loader(folder, size, batch, workers):
    """DataLoader of this process's contiguous share of the images, each image in one share.

    A batch is (view, label): uint8, n x 3 x size x size, and n, long, with n <= batch.
    """
    first, last = (len(folder) * r // world_size() for r in (rank(), rank() + 1))
    return _loader(CentralViews(folder, size), workers, sampler=range(first, last), batch_size=batch)


class _Loader(DataLoader):
    def __iter__(self):
        with held():  # where it forks its workers
            return super().__iter__()


def _loader(dataset, workers, **batches):
    return _Loader(
        dataset,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=functools.partial(start_worker, os.getpid()),
        # Forked workers share the file list's pages; Python 3.14's default would send each a copy.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        **batches,
    )


def start_worker(parent, _number):
    """The first thing that a data worker does: see to it that it ends with its parent, and not before."""
    obey_only(parent)
    if os.getppid() != parent:  # it died meanwhile; later on torch looks
        os._exit(1)


def explained(function):
    """A decorator for what trains: where a data worker's death ends it, the error says what to do about that."""

    @functools.wraps(function)
    def call(*args):
        try:
            return function(*args)
        except Exception as error:
            if cause := cause_of_death(error):
                raise RuntimeError(cause) from error
            raise

    return call


def cause_of_death(error):
    """What to do about a data worker that died, where that is what `error` or one behind it says; else None."""
    while error is not None:
        text = str(error)
        if NO_SHARED_MEMORY.search(text):
            size = f" ({shutil.disk_usage(SHARED).total / 1e9:.1f} GB here)" if os.path.isdir(SHARED) else ""
            return (
                f"a data worker ran out of shared memory: enlarge {SHARED}{size}, in a container by --shm-size or "
                "--ipc=host, or give fewer --workers"
            )
        if "DataLoader worker" in text and "is killed by signal: Killed" in text:
            return "a data worker was killed, by the system if memory is short; give fewer --workers"
        error = error.__cause__ or error.__context__
    return None


class GaussianBlur:
    """PIL transform of MoCo v2: a blur of sigma ~ U(sigma[0], sigma[1]) pixels. For forks; the recipes draw theirs."""

    def __init__(self, sigma=(0.1, 2.0)):
        self.sigma = sigma

    def __call__(self, image):
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(*self.sigma)))


class CropsTransform:
    """Calls several transforms on one image and returns the list of their results. For forks."""

    def __init__(self, *transforms):
        self.transforms = transforms

    def __call__(self, image):
        return [transform(image) for transform in self.transforms]
