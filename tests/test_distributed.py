"""The collectives of a step, by what they return and by what they send."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from moco import distributed
from moco.builder import MoCo
from moco.distributed import BatchShuffle, all_sum, check_equal, data_parallel, from_rank_0
from tests.conftest import run_ranks

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
    model = Flat(2)
    assert data_parallel(model, torch.device("cpu"), None) is model
    shuffle = BatchShuffle(2, 1, 0, 0)
    assert torch.equal(shuffle.shuffle(x), x)
    assert torch.equal(shuffle.gather_unshuffled(x), x.view(2, 1, 3))


def test_alone_with_bn_groups_the_batch_is_shuffled_as_among_processes():
    x = everyones(2).reshape(-1, 2)
    shuffle = BatchShuffle(VIEWS, 2 * N, SEED, 3, splits=2)
    order = torch.from_numpy(np.random.default_rng((1, SEED, 3)).permutation(len(x)))
    assert torch.equal(shuffle.shuffle(x), x[order])
    assert torch.equal(shuffle.gather_unshuffled(x[order]), everyones(2))


def unequal_ranks():
    try:
        check_equal({"a": torch.zeros(3), "queue": torch.full((2,), float(dist.get_rank() == 1))})
    except RuntimeError as error:
        return str(error)


def own_statistics():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    net = data_parallel(model, torch.device("cpu"), lambda net: net(torch.ones(2, 2)).sum())
    for step in range(2):
        x = torch.randn(4, 2, generator=torch.Generator().manual_seed(10 * step + dist.get_rank()))
        net(x).sum().backward()
    return model[1].running_mean


def test_a_step_leaves_each_ranks_buffers_alone():
    first, second = run_ranks(own_statistics, 2)
    assert not torch.equal(first, second)


def test_ranks_that_differ_are_named():
    for message in run_ranks(unequal_ranks, 2):
        assert "queue differs between rank 0 and rank 1" in message


class Wide(nn.Module):
    """Parameters of several buckets, used in another order than they stand in."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(400, 400) for _ in range(4))
        self.register_buffer("steps", torch.zeros(1))

    def forward(self, x):
        self.steps += 1
        for i in (2, 0, 3, 1):
            x = self.layers[i](x).tanh()
        return x


def gradients_of_three_steps():
    torch.manual_seed(0)
    model = Wide()
    net = data_parallel(model, torch.device("cpu"), lambda net: net(torch.ones(1, 400)).sum())
    assert model.steps.item() == 0 and all(p.grad is None for p in model.parameters())
    x = torch.randn(3, 400, generator=torch.Generator().manual_seed(dist.get_rank()))
    out = []
    for _ in range(3):
        net.zero_grad()
        net(x).square().sum().backward()
        out.append([p.grad.clone() for p in model.parameters()])
    return out


def test_the_first_step_sums_as_the_later_ones_do():
    """The same input gives the same gradients to the bit, although DDP moves its buckets after a first pass."""
    first, second, third = run_ranks(gradients_of_three_steps, 4)[0]
    assert all(torch.equal(a, b) and torch.equal(b, c) for a, b, c in zip(first, second, third, strict=True))
