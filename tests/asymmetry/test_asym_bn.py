"""The target's synchronised BN against plain BN over the joined batch, and on a GPU against SyncBatchNorm."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn

import moco.distributed
from moco.asymmetry.asym_bn import SyncTargetBatchNorm1d, check_group, synchronize_projector
from tests.gpu_checks import check_rank
from tests.ranks import run_ranks

N, C, STEPS = 3, 5, 4


def inputs(world, step):
    return torch.randn(N * world, C, generator=torch.Generator().manual_seed(step), dtype=torch.float64) * 3 + step


def randomised(bn):
    with torch.no_grad():
        bn.weight.copy_(torch.linspace(0.5, 2, C))
        bn.bias.copy_(torch.linspace(-1, 1, C))
    return bn


def synchronised(world, size, splits=1):
    rank = dist.get_rank() if dist.is_initialized() else 0
    projector = nn.Sequential(randomised(nn.BatchNorm1d(C)).double()).requires_grad_(False)
    synchronize_projector(projector, size, splits)
    n = N * splits
    outputs = [projector(inputs(world * splits, step)[rank * n : (rank + 1) * n]) for step in range(STEPS)]
    return outputs, projector[0].state_dict()


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


@pytest.mark.parametrize(
    "world, splits, size", [(1, 4, 8), (1, 4, 2), (1, 4, 1), (2, 2, 8), (2, 2, 2), (2, 4, 2), (4, 2, 4)]
)
def test_a_group_counts_bn_groups_across_processes_or_within_one(world, splits, size):
    ranks = run_ranks(synchronised, world, world, size, splits) if world > 1 else [synchronised(1, size, splits)]
    n = N * min(size, world * splits)  # samples that one group sees
    bns = [randomised(nn.BatchNorm1d(C).double()) for _ in range(world * splits * N // n)]
    for step in range(STEPS):
        parts = inputs(world * splits, step).split(n)
        expected = torch.cat([bn(part) for bn, part in zip(bns, parts, strict=True)])
        got = torch.cat([outputs[step] for outputs, _ in ranks])
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    for name, tensor in bns[0].state_dict().items():
        torch.testing.assert_close(ranks[0][1][name], tensor, rtol=1e-12, atol=1e-12)


def test_of_one_process_is_plain_bn_and_eval_uses_the_running_statistics():
    sync, plain = randomised(SyncTargetBatchNorm1d(C)).requires_grad_(False), randomised(nn.BatchNorm1d(C))
    x = inputs(1, 0).float()
    torch.testing.assert_close(sync(x), plain(x))
    torch.testing.assert_close(sync.eval()(x), plain.eval()(x))
    assert not sync.train()(x).requires_grad


def test_replacing_keeps_names_values_and_gradient_flags():
    projector = nn.Sequential(nn.Linear(4, C), randomised(nn.BatchNorm1d(C)), nn.ReLU()).requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in projector.state_dict().items()}
    synchronize_projector(projector, size=2, splits=4)
    assert projector[1].splits == 2 and not projector[1].weight.requires_grad
    after = projector.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)


def test_a_group_must_divide_the_devices():
    for size, devices in ((8, 4), (8, 8), (8, 16), (3, 12), (1, 5)):
        check_group(size, devices)
    with pytest.raises(ValueError, match=r"--asym-bn-group 8 must divide 12, .*; give one of 1, 2, 3, 4, 6, 12"):
        check_group(8, 12)
    for size, processes, splits in ((2, 2, 4), (8, 2, 4), (16, 2, 4), (4, 4, 4), (8, 4, 4)):
        check_group(size, processes, splits)
    with pytest.raises(ValueError, match=r"6 must divide 12, .* a divisor of --bn-splits 4; give one of 1, 2, 4, 12"):
        check_group(6, 3, 4)


def test_a_projector_in_which_asym_bn_would_change_nothing_is_refused():
    with pytest.raises(ValueError, match="the projector has no batch normalisation, so AsymBN would change nothing"):
        synchronize_projector(nn.Sequential(nn.Linear(3, 3)))
    with pytest.raises(ValueError, match="a BatchNorm1d can't be replaced in place"):
        synchronize_projector(nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match="--asym-bn-group 0 must divide 4"):
        synchronize_projector(nn.Sequential(nn.BatchNorm1d(3)), 0, splits=4)


def test_on_the_source_it_stops_instead_of_detaching_the_backbone():
    source = nn.Sequential(nn.Linear(4, C), SyncTargetBatchNorm1d(C))
    x = torch.randn(6, 4)
    with pytest.raises(
        RuntimeError, match=r"AsymBN's SyncTargetBatchNorm1d returns no gradient, so .* not be trained"
    ):
        source(x)
    with torch.no_grad():
        assert not source(x).requires_grad  # as the target runs
    source[0].requires_grad_(False)
    with pytest.raises(RuntimeError, match="returns no gradient"):  # its own parameters would not be trained
        source(x)
    assert source.requires_grad_(True).eval()(x).requires_grad
    assert not source.requires_grad_(False).train()(x).requires_grad


def both_kinds_on_one_gpu():
    """Two processes share the device, so the group is gloo's."""
    rank, outputs = dist.get_rank(), []
    kinds = [randomised(SyncTargetBatchNorm1d(C)).cuda(), randomised(nn.SyncBatchNorm(C)).cuda()]
    kinds[0].requires_grad_(False)
    for step in range(STEPS):
        x = inputs(2, step)[rank * N : (rank + 1) * N].float().cuda()
        outputs.append([bn(x).detach().cpu() for bn in kinds])
    return outputs, [{n: t.cpu() for n, t in bn.state_dict().items()} for bn in kinds]


def test_its_groups_have_the_time_out_of_the_run(monkeypatch):
    monkeypatch.setattr(moco.distributed, "_timeout", timedelta(seconds=77))
    _, nccl = check_rank(("AsymBN",), world=8, rank=3, group=2)
    assert nccl.groups == [(2, timedelta(seconds=77))] * 4


@pytest.mark.gpu
def test_equals_sync_batch_norm():
    for outputs, (ours, theirs) in run_ranks(both_kinds_on_one_gpu, 2):
        for a, b in outputs:
            torch.testing.assert_close(a, b)
        assert ours.keys() == theirs.keys()
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name])
