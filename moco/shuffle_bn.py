"""Shuffled batch normalisation: the target's images are permuted over all processes before they are encoded.

From MoCo (He et al., arXiv 1911.05722, section 3.3). Without the shuffle, a query and its key would be normalised
together with the same other images. The batch statistics would then tell which key belongs to which query.
"""

import torch
import torch.distributed as dist

from moco.counter_based_rng import SHUFFLE, generator
from moco.distributed import all_gather, copy_to_device, needs_no_gradient, rank, world_size


class BatchShuffle:
    """The permutation of one step's target images, and its inverse for the encodings.

    The permutation is a function of (seed, step, which). Every rank computes it, so no index is sent. It permutes the
    indices `view * B + i`, where B is the size of the global batch and i an index in it. Therefore the batch-norm
    groups depend only on their total number, not on how they are distributed over ranks.

    Args:
        views: target views per image.
        batch: images on this rank; this rank shuffles `views * batch` rows.
        seed, step: non-negative integers that determine the permutation.
        splits: batch-norm groups on each rank.
        which: of several shuffles of a step, 0 for the first; each has a permutation of its own.
    """

    def __init__(self, views, batch, seed, step, splits=1, which=0):
        self.world, self.rank = world_size(), rank()
        self.views, self.batch = views, batch
        self.order = None
        if self.world * splits > 1:  # with a single batch-norm group the order changes nothing
            address = (seed, step, which) if which else (seed, step)
            order = generator(SHUFFLE, *address).permutation(views * batch * self.world)
            self.order = torch.from_numpy(order)  # row j of the shuffled batch is row order[j] of the global batch

    def shuffle(self, x):
        """Sends each row to the rank that encodes it, in one all-to-all. Every rank must call it.

        Args:
            x: (views * batch) x ..., this rank's rows, the first view's rows first.

        Returns:
            This rank's rows of the shuffled batch, in the shape of `x`.

        Raises:
            RuntimeError: `x` needs a gradient, which would not pass the all-to-all.
        """
        needs_no_gradient("the shuffle over all processes", x)
        if self.order is None:
            return x
        if self.world == 1:
            return x[copy_to_device(self.order, x.device)]
        n = self.views * self.batch
        view, sample = self.order // (self.batch * self.world), self.order % (self.batch * self.world)
        owner, row = sample // self.batch, view * self.batch + sample % self.batch
        # This rank sends its rows in the order of their shuffled positions, so they are grouped by receiver.
        mine = (owner == self.rank).nonzero().squeeze(1)
        sent = torch.bincount(mine // n, minlength=self.world)
        # The rows that it receives are grouped by sender, each group in the order of the shuffled positions.
        owners = owner[self.rank * n : (self.rank + 1) * n]
        received = torch.bincount(owners, minlength=self.world)
        arrivals = torch.empty_like(x, memory_format=torch.contiguous_format)
        departures = x[copy_to_device(row[mine], x.device)].contiguous()
        dist.all_to_all_single(arrivals, departures, received.tolist(), sent.tolist())
        positions = torch.argsort(owners, stable=True)
        return arrivals[copy_to_device(torch.argsort(positions), x.device)]

    def gather_unshuffled(self, k):
        """Gathers the encodings of all ranks and undoes the permutation. Every rank must call it.

        Args:
            k: (views * batch) x C, the encodings of this rank's rows of the shuffled batch.

        Returns:
            views x B x C in the order of the global batch, the same on every rank, without gradient.

        Raises:
            RuntimeError: `k` needs a gradient.
        """
        k = all_gather(k)
        if self.order is not None:
            k = k[copy_to_device(torch.argsort(self.order), k.device)]
        return k.view(self.views, self.batch * self.world, -1)
