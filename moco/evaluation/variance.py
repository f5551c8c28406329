"""Intra-image variance: how much the encodings of one image differ from view to view (arXiv 2204.00613).

For an image it is the trace of the covariance of the encodings of its r views. Each encoding is scaled to norm 1. The
covariance is the unbiased one, divided by r - 1. The trace is 0 if all views have the same encoding, and 1 if each
encoding has a random direction. The variance of a recipe is the mean over images, in hundredths. The authors measured
it in this way (issue 8 of their repository), with r = 32, a pretrained source encoder, and batch normalisation with
the statistics of the batch at hand, as in pretraining.
"""

import copy
import math
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import torch

from moco.asymmetry.asym_aug import asym_aug_plan
from moco.asymmetry.mean_encoding import mean_encoding, mean_encoding_plan
from moco.asymmetry.multicrop import FULL_SCALE, multicrop_plan
from moco.asymmetry.scalemix import scalemix_plan
from moco.batchnorm import SplitBatchNorm, replace_batchnorm, split_batchnorm
from moco.builder import normalize
from moco.counter_based_rng import ORDER, generator
from moco.data.bad_image_substitutes import NextGoodImage
from moco.data.prefetch_to_device import finisher, prefetched
from moco.distributed import all_sum, copy_to_device, rank, world_size
from moco.loader import random_view_loader
from moco.precision import autocast
from moco.views.augmentation_recipes import baseline_plan

# The address of the first view, in place of an epoch. No training comes so far, so its views are other ones.
FIRST = 10**9


@dataclass(frozen=True)
class Recipe:
    """What an encoding is made of.

    Attributes:
        views: tuple of View; if there are several, their raw encodings are averaged before the scaling (MeanEnc).
        synchronised: whether all batch-norm groups of the batch share their statistics in the projector (AsymBN).
    """

    views: tuple
    synchronised: bool = False


class Variance(NamedTuple):
    """The variance of a recipe in hundredths, and the standard error of this mean over images."""

    variance: float
    standard_error: float


def paper_recipes(size=224, mini_size=None, **recipe):
    """The base recipe and those of the paper's designs, a dict from name to Recipe.

    Args:
        size: side of the full-size views in pixels. mini_size: that of the small views; None means 96/224 of `size`.
        recipe: fields of View that change the base recipe, as --recipe does in a pretraining.
    """
    base = baseline_plan(size, **recipe)
    multicrop = multicrop_plan(base, mini_size, recipe.get("scale", FULL_SCALE)).source
    asym_aug = asym_aug_plan(base)
    return {
        "baseline": Recipe(base.source.full),
        "multicrop_small": Recipe(multicrop.mini[:1]),
        "multicrop_full": Recipe(multicrop.full),
        "scalemix": Recipe(scalemix_plan(base).source.full),
        "stronger": Recipe(asym_aug.source.full),
        "weaker": Recipe(asym_aug.target.full),
        "mean_encoding": Recipe(mean_encoding_plan(base).target.full),
        "asym_bn": Recipe(base.target.full, synchronised=True),
    }


def needed_views(recipes):
    """The views of an image that a dict of Recipes needs, a tuple of View. Recipes with equal Views share them."""
    needed = Counter()
    for recipe in recipes.values():
        needed |= Counter(recipe.views)
    return tuple(needed.elements())


def places_of(recipe, views):
    """Where the Views of a Recipe stand in `views`, a list. There, equal Views follow each other."""
    return [views.index(view) + recipe.views[:i].count(view) for i, view in enumerate(recipe.views)]


def whole_batches(images, batch):
    """How many of the images fill whole batches, and the size of a batch, which is at most all images."""
    batch = min(batch, images)
    return images // batch * batch, batch


class WholeBatches:
    """Batch sampler: batches of one view each of different images. Each process takes whole batches.

    The images are chosen by the seed. Which of them form a batch is a function of (seed, number of the view): as in
    pretraining, an image meets others each time, so that batch normalisation contributes its share to the variance.

    Args:
        length: number of images in the data set. images: how many to choose, a multiple of `batch`.
        batch: images in a batch. views: views of each image (r). seed: 0 or more.
    """

    def __init__(self, length, images, batch, views, seed):
        self.images, self.batch, self.views, self.seed = images, batch, views, seed
        self.chosen = self._permutation(0, length)[:images]

    @property
    def total(self):
        """The number of batches of all processes."""
        return self.images // self.batch * self.views

    def __len__(self):
        return len(range(rank(), self.total, world_size()))

    def __iter__(self):
        """Yields a batch as a list of (epoch, index), as the datasets of random views take it."""
        for view, rows in self.rows():
            yield [(FIRST + view, int(index)) for index in self.chosen[rows]]

    def rows(self):
        """Yields (number of the view, the places of its images in `chosen`, an array) for each batch."""
        t = 0
        for view in range(self.views):
            order = self._permutation(1 + view, self.images)
            for start in range(0, self.images, self.batch):
                if t % world_size() == rank():
                    yield view, order[start : start + self.batch]
                t += 1

    def _permutation(self, place, n):
        return generator(ORDER, self.seed, FIRST + place).permutation(n)


def view_loader(folder, recipes, batches, workers, augment_on, skip_bad=False, room=math.inf):
    """Makes the DataLoader of the views.

    Args:
        folder: an ImageFolder. recipes: dict of Recipes. batches: a WholeBatches.
        workers, augment_on, room: as for `loader.training_loader`.
        skip_bad: whether the next image replaces one that can't be decoded, which otherwise raises a BadImageError.
    """
    substitutes = NextGoodImage(folder) if skip_bad else None
    options = {"augment_on": augment_on, "substitutes": substitutes, "room": room}
    purpose = {"purpose": "variance", "persistent": False}
    return random_view_loader(
        folder, needed_views(recipes), batches, batches.batch, batches.seed, workers, **options, **purpose
    )


@torch.no_grad()
def variances(network, dim, recipes, loader, augment_on, splits, device, precision=None, step_done=lambda n: None):
    """The intra-image variance of each recipe. Every rank must call it; nothing of the network changes.

    Args:
        network: from N x 3 x size x size to N x dim; its `fc` is the projector. It lies on `device`.
        recipes: dict from name to Recipe. loader: their `view_loader`. augment_on: as for the loader.
        splits: number of batch-norm groups in a batch, which must be a multiple of it.
        device, precision: where and in which number format to encode.
        step_done: called as `step_done(images)`, equally often on every rank: after each step in which all ranks have
            a batch of so many images.

    Returns:
        dict from name to Variance, the same on every rank. The number of processes changes only its rounding.
    """
    batches, views = loader.batch_sampler, needed_views(recipes)
    backbone, projectors = as_in_training(network, splits)
    places = [(projectors[recipe.synchronised], places_of(recipe, views)) for recipe in recipes.values()]
    arrived = prefetched(loader, finisher(views, augment_on, device), device)
    sums = torch.zeros(len(recipes), batches.images, dim, dtype=torch.float64, device=device)
    squares = torch.zeros(len(recipes), batches.images, dtype=torch.float64, device=device)
    for step, ((_, rows), (images, _)) in enumerate(zip(batches.rows(), arrived, strict=True)):
        with autocast(device, precision):
            features = [backbone(x) for x in images]
            raw = [torch.stack([projector(features[i]) for i in place]) for projector, place in places]
        z = torch.stack([normalize(mean_encoding(x.double())) for x in raw])  # recipes x batch x dim
        rows = copy_to_device(torch.from_numpy(rows), device)
        sums.index_add_(1, rows, z)
        squares.index_add_(1, rows, z.square().sum(dim=2))
        if step < batches.total // world_size():
            step_done(batches.batch)
    found = in_hundredths(all_sum(sums), all_sum(squares), batches.views)
    return {name: Variance(*figures) for name, figures in zip(recipes, found, strict=True)}


def in_hundredths(sums, squares, r):
    """(variance, standard error) of each recipe, from sums over the r encodings of each image.

    Args:
        sums: of the encodings, recipes x images x dim. squares: of their squared norms, recipes x images.
    """
    traces = (squares - sums.square().sum(dim=2) / r) / (r - 1)  # recipes x images
    traces = traces.clamp_min(0)  # rounding can make them negative
    errors = traces.std(dim=1) / math.sqrt(traces.shape[1])
    return (100 * torch.stack((traces.mean(dim=1), errors), dim=1)).tolist()


def as_in_training(network, splits):
    """A copy of an encoder that normalises with the statistics of the batch at hand, in `splits` groups.

    Returns:
        (backbone, projectors): the network without its `fc`; and a dict of two copies of its `fc`, under the key True
        the one whose statistics cover the whole batch.
    """
    backbone = split_batchnorm(copy.deepcopy(network), splits).requires_grad_(False).train()
    projector, backbone.fc = backbone.fc, torch.nn.Identity()
    return backbone, {False: projector, True: replace_batchnorm(copy.deepcopy(projector), SplitBatchNorm)}
