"""Image folders, the views of an image, and the batches of a step.

The order of the samples and every view are functions of (seed, epoch, index), never of how many draws came
before: a result does not depend on the number of workers, and a resumed run repeats the uninterrupted one.
"""

import os
import random

import numpy as np
import torch
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
        classes: sorted names of the class folders.

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
                for file in sorted(files):
                    if file.lower().endswith(EXTENSIONS):
                        paths += os.fsencode(os.path.relpath(os.path.join(folder, file), self.root))
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


class PretrainingViews(Dataset):
    """The views of an image as a ViewPlan says.

    Items are addressed by (epoch, index), so that workers that live for many epochs know the epoch. An item is a
    list of uint8 tensors, 3 x size x size, in the order source, mini, target.
    """

    def __init__(self, folder, plan, seed):
        self.folder, self.seed = folder, seed
        self.views = plan.source + plan.mini + plan.target
        self.needed = [uniforms_needed(view) for view in self.views]

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
        return views


class EpochBatches:
    """Batch sampler of (epoch, index): the global batch of step t is a function of (seed, epoch, t).

    Each process takes its contiguous share of it. The incomplete last batch is dropped.

    Args:
        length: images. batch: images of all processes a step; the number of processes must divide it.
    """

    def __init__(self, length, batch, seed):
        self.length, self.batch, self.seed = length, batch, seed
        self.epoch = 0

    def __len__(self):
        return self.length // self.batch

    def __iter__(self):
        order = generator(ORDER, self.seed, self.epoch).permutation(self.length)
        share = self.batch // world_size()
        for t in range(len(self)):
            start = t * self.batch + rank() * share
            yield [(self.epoch, int(i)) for i in order[start : start + share]]


def pretraining_loader(folder, plan, batch, seed, workers):
    """DataLoader of an epoch's batches; set `loader.batch_sampler.epoch` before iterating.

    A batch is a list of uint8 tensors, N x 3 x size x size, one a view, in the order source, mini, target.
    """
    return DataLoader(
        PretrainingViews(folder, plan, seed),
        batch_sampler=EpochBatches(len(folder), batch, seed),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
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
