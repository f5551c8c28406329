"""The order of the training images: which images each process gets in each step."""

import math

import numpy as np

from moco.counter_based_rng import ORDER, generator
from moco.distributed import rank, world_size


class EpochBatchSampler:
    """Batch sampler whose global batch of step t is a function of (seed, epoch, t).

    Each process takes a contiguous share of the global batch. It yields this share as a list of (epoch, index) pairs.
    Before each epoch, set `epoch`. To begin within an epoch, set `start` to the 0-based first step; `len` does not
    change.

    Args:
        length: number of images in the data set.
        batch: images per step over all processes; the number of processes must divide it.
        seed: the run's seed.
        drop_last: whether to leave out the incomplete last batch. Otherwise it is filled up to a multiple of the
            number of processes, with images from the start of the epoch's order.
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
        """The images that the rank `of_rank` gets in step t of the epoch, as a list of (epoch, index)."""
        return self._share(self._order(), t, of_rank)

    def _order(self):
        return generator(ORDER, self.seed, self.epoch).permutation(self.length)

    def _share(self, order, t, of_rank):
        world = world_size()
        batch = order[t * self.batch : (t + 1) * self.batch]
        batch = np.concatenate((batch, order[: -len(batch) % world]))
        share = len(batch) // world
        return [(self.epoch, int(i)) for i in batch[of_rank * share : (of_rank + 1) * share]]
