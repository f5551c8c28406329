"""DistributedDataParallel as this project uses it: what is sent, what is compared, and the order of summation."""

import torch
import torch.distributed as dist
from torch import nn

from moco.engine.ddp_wrapper import check_equal, data_parallel
from tests.ranks import run_ranks


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


def test_alone_the_model_is_not_wrapped():
    model = nn.Linear(2, 2)
    assert data_parallel(model, torch.device("cpu"), None) is model
