"""The target's synchronised BN against plain BN over the joined batch, and on a GPU against SyncBatchNorm."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from moco.asymmetry.asym_bn import SyncTargetBatchNorm1d, asym_bn_group, check_group, synchronize_projector
from tests.conftest import run_ranks

N, C, STEPS = 3, 5, 4


def inputs(world, step):
    return torch.randn(N * world, C, generator=torch.Generator().manual_seed(step), dtype=torch.float64) * 3 + step


def randomised(bn):
    with torch.no_grad():
        bn.weight.copy_(torch.linspace(0.5, 2, C))
        bn.bias.copy_(torch.linspace(-1, 1, C))
    return bn


def synchronised(world, size):
    group, rank = asym_bn_group(size), dist.get_rank()
    bn = randomised(SyncTargetBatchNorm1d(C, group=group).double())
    outputs = [bn(inputs(world, step)[rank * N : (rank + 1) * N]) for step in range(STEPS)]
    return outputs, bn.state_dict()


@pytest.mark.parametrize("world, size", [(2, 8), (4, 4), (4, 2), (4, 1)])
def test_equals_plain_bn_over_the_group(world, size):
    ranks = run_ranks(synchronised, world, world, size)
    members = min(size, world)
    for first in range(0, world, members):
        bn = randomised(nn.BatchNorm1d(C).double())
        for step in range(STEPS):
            expected = bn(inputs(world, step)[first * N : (first + members) * N])
            for r in range(first, first + members):
                mine = expected[(r - first) * N : (r - first + 1) * N]
                torch.testing.assert_close(ranks[r][0][step], mine, rtol=1e-12, atol=1e-12)
        for r in range(first, first + members):
            assert ranks[r][1].keys() == bn.state_dict().keys()
            for name, tensor in bn.state_dict().items():
                torch.testing.assert_close(ranks[r][1][name], tensor, rtol=1e-12, atol=1e-12)


def test_one_process_is_plain_bn_and_eval_uses_the_running_statistics():
    sync, plain = randomised(SyncTargetBatchNorm1d(C)), randomised(nn.BatchNorm1d(C))
    x = inputs(1, 0).float()
    torch.testing.assert_close(sync(x), plain(x))
    torch.testing.assert_close(sync.eval()(x), plain.eval()(x))
    assert not sync.train()(x).requires_grad


def test_replacing_keeps_names_values_and_gradient_flags():
    projector = nn.Sequential(nn.Linear(4, C), randomised(nn.BatchNorm1d(C)), nn.ReLU()).requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in projector.state_dict().items()}
    synchronize_projector(projector)
    assert type(projector[1]) is SyncTargetBatchNorm1d and not projector[1].weight.requires_grad
    after = projector.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)


def test_a_group_must_divide_the_devices():
    for size, devices in ((8, 4), (8, 8), (8, 16), (3, 12), (1, 5)):
        check_group(size, devices)
    with pytest.raises(ValueError, match=r"--asym-bn-group 8 .* 12 devices; give one of 1, 2, 3, 4, 6, 12"):
        check_group(8, 12)


def both_kinds_on_one_gpu():
    """Two processes share the device, so the group is gloo's."""
    rank, outputs = dist.get_rank(), []
    kinds = [randomised(SyncTargetBatchNorm1d(C)).cuda(), randomised(nn.SyncBatchNorm(C)).cuda()]
    for step in range(STEPS):
        x = inputs(2, step)[rank * N : (rank + 1) * N].float().cuda()
        outputs.append([bn(x).detach().cpu() for bn in kinds])
    return outputs, [{n: t.cpu() for n, t in bn.state_dict().items()} for bn in kinds]


@pytest.mark.gpu
def test_equals_sync_batch_norm():
    for outputs, (ours, theirs) in run_ranks(both_kinds_on_one_gpu, 2):
        for a, b in outputs:
            torch.testing.assert_close(a, b)
        assert ours.keys() == theirs.keys()
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name])
