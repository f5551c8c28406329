"""Shuffled batch normalisation: the all-to-all and its inverse, against gathering everything and indexing."""

import numpy as np
import pytest
import torch
import torch.distributed as dist

from moco.shuffle_bn import BatchShuffle
from tests.ranks import run_ranks

VIEWS, N, SEED = 2, 3, 7


def everyones(world):
    """views x B x 2: the numbers of view and sample."""
    samples = torch.arange(N * world).expand(VIEWS, -1)
    return torch.stack((torch.arange(VIEWS)[:, None].expand_as(samples), samples), dim=2).double()


def shuffled_there_and_back(world):
    rank = dist.get_rank()
    mine = everyones(world)[:, rank * N : (rank + 1) * N].reshape(VIEWS * N, 2)
    out = []
    for step in range(5):
        shuffle = BatchShuffle(VIEWS, N, SEED, step)
        x = shuffle.shuffle(mine)
        out.append((x, shuffle.gather_unshuffled(x)))
    return out


@pytest.mark.parametrize("world", [2, 4])
def test_shuffle_equals_gather_and_index(world):
    ranks = run_ranks(shuffled_there_and_back, world, world)
    everything = everyones(world)
    for step in range(5):
        order = np.random.default_rng((1, SEED, step)).permutation(VIEWS * N * world)
        expected = everything.reshape(-1, 2)[torch.from_numpy(order)]  # position view * B + sample
        for r, steps in enumerate(ranks):
            shuffled, back = steps[step]
            assert torch.equal(shuffled, expected[r * VIEWS * N : (r + 1) * VIEWS * N])
            assert torch.equal(back, everything)


def test_alone_with_bn_groups_the_batch_is_shuffled_as_among_processes():
    x = everyones(2).reshape(-1, 2)
    shuffle = BatchShuffle(VIEWS, 2 * N, SEED, 3, splits=2)
    order = torch.from_numpy(np.random.default_rng((1, SEED, 3)).permutation(len(x)))
    assert torch.equal(shuffle.shuffle(x), x[order])
    assert torch.equal(shuffle.gather_unshuffled(x[order]), everyones(2))


def test_alone_with_one_bn_group_nothing_is_shuffled():
    x = torch.arange(6.0).view(2, 3)
    shuffle = BatchShuffle(2, 1, 0, 0)
    assert torch.equal(shuffle.shuffle(x), x)
    assert torch.equal(shuffle.gather_unshuffled(x), x.view(2, 1, 3))


def test_what_needs_a_gradient_is_not_detached_silently():
    x = torch.ones(2, 3, requires_grad=True)
    for step in (BatchShuffle(2, 1, 0, 0).shuffle, BatchShuffle(2, 1, 0, 0).gather_unshuffled):
        with pytest.raises(RuntimeError, match="returns no gradient"):
            step(x)
