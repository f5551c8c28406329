"""The views of an image and the batches of a step, from the decoded file to the network's input.

The order of the samples and every view are functions of (seed, epoch, index), never of how many draws came
before: a result does not depend on the number of workers, and a resumed run repeats the uninterrupted one.
"""

import math
import random
import sys
from itertools import accumulate

import numpy as np
import torch
import torchvision.transforms.functional as TF
from PIL import ImageFilter
from torch.utils.data import DataLoader, Dataset, get_worker_info

from moco.distributed import rank, world_size
from moco.randomness import ORDER, VIEWS, generator
from moco.views.draw import draw_view, uniforms_needed
from moco.views.on_pil import render
from moco.views.on_tensor import Layout


class Drawn(Dataset):
    """An ImageFolder and the Views of its images, drawn anew each epoch.

    Items are addressed by (epoch, index), so that workers that live for many epochs know the epoch.

    Args:
        folder: an ImageFolder. views: tuple of View. seed: of the draws.
    """

    def __init__(self, folder, views, seed):
        self.folder, self.views, self.seed = folder, views, seed
        self.ends = list(accumulate(uniforms_needed(view) for view in views))

    def __len__(self):
        return len(self.folder)

    def draws(self, epoch, index, width, height):
        """The Draws of an image, one a view, for its size in pixels."""
        u = generator(VIEWS, self.seed, epoch, index).random(self.ends[-1]).tolist()
        starts = [0, *self.ends]
        return [
            draw_view(view, width, height, u[start:end])
            for view, start, end in zip(self.views, starts, self.ends, strict=False)
        ]


class RandomViews(Drawn):
    """The views, made by Pillow: the reference path.

    An item is (views, label): a list of uint8 tensors, 3 x size x size, in the order of `views`, and an int.
    """

    def __getitem__(self, address):
        epoch, index = address
        image = self.folder.load(index)
        draws = self.draws(epoch, index, *image.size)
        views = [render(draw, view.size, image) for draw, view in zip(draws, self.views, strict=True)]
        return views, int(self.folder.labels[index])


class RandomCrops(Drawn):
    """The views' crops and what is left to do with them, for `views.on_tensor`: the fast path.

    Items come a batch at a time: (crops, rows, labels) with crops a dict of size to N x R x size x size x 3, uint8, R
    the crops of that size an image, rows N x (all R) x COLUMNS, float32, and labels N, long.
    """

    def __init__(self, folder, views, seed):
        super().__init__(folder, views, seed)
        self.layout = Layout(views)

    def __getitems__(self, addresses):
        n = len(addresses)
        crops = {size: shared_empty(n, len(rows), size, size, 3) for size, rows in self.layout.rows.items()}
        rows = []
        for i, (epoch, index) in enumerate(addresses):
            image = self.folder.load_tensor(index)
            draws = self.draws(epoch, index, image.shape[1], image.shape[0])
            self.layout.crop(image, draws, {size: x[i] for size, x in crops.items()})
            rows.append(self.layout.rows_of(draws))
        labels = self.folder.labels[[index for _, index in addresses]]
        return crops, torch.tensor(rows), torch.from_numpy(labels).long()


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
    """

    def __init__(self, folder, size=224):
        self.folder, self.size = folder, size

    def __len__(self):
        return len(self.folder)

    def __getitem__(self, index):
        image = TF.resize(self.folder.load(index), round(self.size * 256 / 224))
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


def training_loader(folder, views, batch, seed, workers, drop_last=True, augment_on="cpu"):
    """DataLoader of an epoch's batches; set `epoch` and `start` of its `batch_sampler` before iterating.

    A batch goes through `finish` on its way to the network.

    Args:
        folder: an ImageFolder. views: tuple of View. batch: images of all processes a step. workers: of this process.
        augment_on: "cpu", everything by Pillow in the workers, or "device", where the workers only crop.
    """
    batches = EpochBatches(len(folder), batch, seed, drop_last)
    if augment_on == "cpu":
        return _loader(RandomViews(folder, views, seed), workers, batch_sampler=batches)
    return _loader(RandomCrops(folder, views, seed), workers, batch_sampler=batches, collate_fn=as_it_is)


def as_it_is(batch):
    """The collation of what is a batch already."""
    return batch


def validation_loader(folder, size, batch, workers):
    """DataLoader of this process's contiguous share of the images, each image in one share.

    A batch is (view, label): uint8, n x 3 x size x size, and n, long, with n <= batch.
    """
    first, last = (len(folder) * r // world_size() for r in (rank(), rank() + 1))
    return _loader(CentralViews(folder, size), workers, sampler=range(first, last), batch_size=batch)


def _loader(dataset, workers, **batches):
    return DataLoader(
        dataset,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        # Forked workers share the file list's pages; Python 3.14's default would send each a copy.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        **batches,
    )


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
