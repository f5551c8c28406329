"""The collectives of a step, by what they return and by what they send."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from moco import distributed
from moco.builder import MoCo
from moco.distributed import all_sum, copy_to_device, from_rank_0
from tests.ranks import run_ranks

N = 3


class Flat(nn.Module):
    """An encoder of 3 x 8 x 8 images whose gradient is small beside them."""

    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(3, num_classes)

    def forward(self, x):
        return self.fc(x.mean((2, 3)))


def bytes_of_a_step(views):
    """Name of a collective to the bytes that this rank hands it in one forward pass."""
    sent = {}

    def counted(name, function, argument):
        def call(*args, **kwargs):
            x = args[argument]
            rows = len(x) - (args[3][dist.get_rank()] if name == "all_to_all_single" else 0)  # those that leave
            sent[name] = sent.get(name, 0) + rows * x[0].numel() * x.element_size()
            return function(*args, **kwargs)

        return call

    dist.all_to_all_single = counted("all_to_all_single", dist.all_to_all_single, 1)
    distributed._all_gather_single = counted("all_gather_single", distributed._all_gather_single, 1)
    for name in ("broadcast", "all_reduce", "all_gather", "all_gather_object"):
        setattr(dist, name, counted(name, getattr(dist, name), 0))
    model = MoCo(Flat, dim=16, K=64)
    images = [torch.randn(N, 3, 8, 8) for _ in range(views)]
    model(images[:1], [], images, step=0)
    return sent


@pytest.mark.parametrize("world, views", [(2, 1), (4, 2)])
def test_a_step_sends_each_image_once_and_the_keys_once(world, views):
    image, key = 3 * 8 * 8 * 4, 16 * 4
    ranks = run_ranks(bytes_of_a_step, world, views)
    for sent in ranks:
        assert set(sent) == {"all_to_all_single", "all_gather_single"}
        assert sent["all_gather_single"] == views * N * key
        assert sent["all_to_all_single"] <= views * N * image
    order = np.random.default_rng((1, 0, 0)).permutation(views * N * world)
    leaving = sum(order[j] % (N * world) // N != j // (views * N) for j in range(len(order)))
    assert sum(sent["all_to_all_single"] for sent in ranks) == leaving * image


def sums_and_words():
    rank = dist.get_rank()
    x = torch.tensor([1, rank])
    return all_sum(x), x, from_rank_0({"seed": rank + 5}), distributed.all_gather(torch.tensor([[rank, 1]]))


def test_sum_broadcast_and_gather():
    for rank, (total, x, word, gathered) in enumerate(run_ranks(sums_and_words, 2)):
        assert total.tolist() == [2, 1] and x.tolist() == [1, rank]
        assert word == {"seed": 5} and gathered.tolist() == [[0, 1], [1, 1]]


def test_alone_the_collectives_are_the_identity():
    x = torch.arange(6.0).view(2, 3)
    assert torch.equal(all_sum(x), x) and torch.equal(distributed.all_gather(x), x) and from_rank_0(3) == 3


def test_a_copy_to_the_cpu_copies_nothing():
    x = torch.zeros(2)
    assert copy_to_device(x, torch.device("cpu")) is x


@pytest.mark.parametrize("operation", [distributed.all_gather, all_sum])
def test_what_needs_a_gradient_is_not_detached_silently(operation):
    x = torch.ones(2, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match=f"{operation.__name__} returns no gradient, so .* silently not be trained"):
        operation(x)
    with torch.no_grad():
        operation(x)
