"""Image folders, the views of an image, and the batches of a step.

The order of the samples and every view are functions of (seed, epoch, index), never of how many draws came
before: a result does not depend on the number of workers, and a resumed run repeats the uninterrupted one.
"""

import math
import os
import random
import sys

import numpy as np
import torch
import torchvision.transforms.functional as TF
from PIL import Image, ImageFilter
from torch.utils.data import DataLoader, Dataset

from moco.distributed import rank, world_size
from moco.randomness import ORDER, VIEWS, generator
from moco.views.draw import draw_view, uniforms_needed
from moco.views.on_pil import render

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's


class ImageFolder:
    """The images of `root/CLASS/**`, in the order and with the labels of torchvision's ImageFolder.

    Kept in three arrays rather than in Python objects, whose reference counts would copy the list into every
    worker (PyTorch issue 13246).

    Attributes:
        root: the folder. classes: sorted names of the class folders. labels: int32, an index of `classes` an image.

    Raises:
        FileNotFoundError: `root` is missing, or has no class folders, or a class has no image.
    """

    def __init__(self, root):
        self.root = os.fspath(root)
        if not os.path.isdir(self.root):
            raise FileNotFoundError(f"no folder {self.root!r}; it must hold one folder of images a class")
        self.classes = sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir())
        if not self.classes:
            raise FileNotFoundError(f"no class folders in {self.root!r}; it must hold one folder of images a class")
        paths, ends, labels = bytearray(), [0], []
        for label, name in enumerate(self.classes):
            before = len(labels)
            for folder, _, files in sorted(os.walk(os.path.join(self.root, name), followlinks=True)):
                prefix = os.path.relpath(folder, self.root)
                for file in sorted(files):
                    if file.lower().endswith(EXTENSIONS):
                        paths += os.fsencode(os.path.join(prefix, file))
                        ends.append(len(paths))
                        labels.append(label)
            if len(labels) == before:
                raise FileNotFoundError(
                    f"no images in {os.path.join(self.root, name)!r}; remove it or add some ({', '.join(EXTENSIONS)})"
                )
        self._paths = np.frombuffer(bytes(paths), dtype=np.uint8)
        self._ends = np.array(ends, dtype=np.int64)
        self.labels = np.array(labels, dtype=np.int32)

    def __len__(self):
        return len(self.labels)

    def path(self, index):
        """The file of image `index`."""
        start, end = self._ends[index], self._ends[index + 1]
        return os.path.join(self.root, os.fsdecode(self._paths[start:end].tobytes()))

    def load(self, index):
        """Decodes image `index` to RGB, whatever its mode.

        Raises:
            OSError: it can't be decoded; the message names the file.
        """
        path = self.path(index)
        try:
            with open(path, "rb") as file:
                return Image.open(file).convert("RGB")
        except Exception as error:
            raise OSError(f"can't decode the image {path!r}: {error}") from error


class RandomViews(Dataset):
    """Each image's views, drawn as the Views say.

    Items are addressed by (epoch, index), so that workers that live for many epochs know the epoch. An item is
    (views, label): a list of uint8 tensors, 3 x size x size, in the order of `views`, and an int.

    Args:
        folder: an ImageFolder. views: tuple of View. seed: of the draws.
    """

    def __init__(self, folder, views, seed):
        self.folder, self.views, self.seed = folder, views, seed
        self.needed = [uniforms_needed(view) for view in views]

    def __len__(self):
        return len(self.folder)

    def __getitem__(self, address):
        epoch, index = address
        image = self.folder.load(index)
        u = generator(VIEWS, self.seed, epoch, index).random(sum(self.needed)).tolist()
        views, start = [], 0
        for view, n in zip(self.views, self.needed, strict=True):
            draw = draw_view(view, *image.size, u[start : start + n])
            views.append(render(draw, view.size, image))
            start += n
        return views, int(self.folder.labels[index])


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

    Each process takes its contiguous share of it. Set `epoch` before iterating.

    Args:
        length: images. batch: images of all processes a step; the number of processes must divide it.
        drop_last: without the incomplete last batch; else it is filled up from the start of the epoch's order to a
            multiple of the number of processes.
    """

    def __init__(self, length, batch, seed, drop_last=True):
        self.length, self.batch, self.seed, self.drop_last = length, batch, seed, drop_last
        self.epoch = 0

    def __len__(self):
        return self.length // self.batch if self.drop_last else math.ceil(self.length / self.batch)

    def __iter__(self):
        order = generator(ORDER, self.seed, self.epoch).permutation(self.length)
        world = world_size()
        for t in range(len(self)):
            batch = order[t * self.batch : (t + 1) * self.batch]
            batch = np.concatenate((batch, order[: -len(batch) % world]))
            share = len(batch) // world
            yield [(self.epoch, int(i)) for i in batch[rank() * share : (rank() + 1) * share]]


def training_loader(folder, views, batch, seed, workers, drop_last=True):
    """DataLoader of an epoch's batches; set `loader.batch_sampler.epoch` before iterating.

    A batch is (views, labels): a list of uint8 tensors, N x 3 x size x size, one a View, and N, long.

    Args:
        folder: an ImageFolder. views: tuple of View. batch: images of all processes a step. workers: of this process.
    """
    batches = EpochBatches(len(folder), batch, seed, drop_last)
    return _loader(RandomViews(folder, views, seed), workers, batch_sampler=batches)


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
