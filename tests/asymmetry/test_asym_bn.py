"""AsymBN's synchronised BN against plain BN over the joined batch, and on a GPU against torch's SyncBatchNorm."""

import copy
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn

import moco.distributed
from moco.asymmetry.asym_bn import SyncBatchNorm1d, check_group, synchronize_projector
from moco.batchnorm import views_apart
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
    sync, plain = randomised(SyncBatchNorm1d(C)).requires_grad_(False), randomised(nn.BatchNorm1d(C))
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


def source_on_a_rank(world, size, splits, views):
    """What one rank computes for its rows of each view."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    projector = synchronize_projector(nn.Sequential(randomised(nn.BatchNorm1d(C)).double()), size, splits)
    parts = [inputs(world * splits, step).chunk(world)[rank] for step in range(views)]
    return differentiated_rows(projector[0], parts, rank, world), projector[0].state_dict()


def differentiated_rows(bn, parts, rank, world):
    """Gradients of the sum over all ranks of each rank's loss, which weighs every number of the global batch."""
    x = torch.cat(parts).requires_grad_()
    with views_apart(nn.Sequential(bn), len(parts)):
        y = bn(x)
    weights = [loss_weights(view, world * len(part)).chunk(world)[rank] for view, part in enumerate(parts)]
    (y * torch.cat(weights)).sum().backward()
    return y.detach(), x.grad, bn.weight.grad, bn.bias.grad


def loss_weights(view, rows):
    return torch.linspace(-1, 2 + view, rows * C, dtype=torch.float64).view(rows, C).sin()


@pytest.mark.parametrize("world, splits, size", [(1, 1, 8), (1, 4, 2), (2, 1, 8), (4, 1, 2), (2, 2, 4)])
@pytest.mark.parametrize("views", [1, 3])
def test_on_the_source_its_gradients_are_those_of_plain_bn_over_the_group(world, splits, size, views):
    arguments = world, size, splits, views
    ranks = run_ranks(source_on_a_rank, world, *arguments) if world > 1 else [source_on_a_rank(*arguments)]
    members = min(size, world * splits)
    bns = [randomised(nn.BatchNorm1d(C).double()) for _ in range(world * splits // members)]
    expected = []  # of each view: outputs and gradients of the global batch
    for view in range(views):
        x = inputs(world * splits, view).requires_grad_()
        y = torch.cat([bn(part) for bn, part in zip(bns, x.split(N * members), strict=True)])
        (y * loss_weights(view, len(x))).sum().backward()
        expected.append((y.detach(), x.grad))
    for i, name in enumerate(("output", "gradient")):
        got = [torch.cat(rows) for rows in zip(*(rank[0][i].chunk(views) for rank in ranks), strict=True)]
        for view in range(views):
            torch.testing.assert_close(got[view], expected[view][i], rtol=1e-12, atol=1e-12, msg=f"{name} {view}")
    for i, parameter in ((2, "weight"), (3, "bias")):
        ours, theirs = sum(rank[0][i] for rank in ranks), sum(getattr(bn, parameter).grad for bn in bns)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for name, tensor in bns[0].state_dict().items():
        torch.testing.assert_close(ranks[0][1][name], tensor, rtol=1e-12, atol=1e-12)


def copied_in_a_group():
    """The groups of the layer and of its copy, and whether their parameters are apart."""
    bn = synchronize_projector(nn.Sequential(nn.BatchNorm1d(C)), size=2)[0]
    other = copy.deepcopy(bn)
    return other.group is bn.group is not None, other.weight.data_ptr() != bn.weight.data_ptr()


def test_a_copy_belongs_to_the_same_group():
    """The evaluations while training copy the encoder."""
    for same, apart in run_ranks(copied_in_a_group, 4):
        assert same and apart


def test_parts_must_be_equal():
    bn = SyncBatchNorm1d(C)
    with (
        views_apart(nn.Sequential(bn), 2),
        pytest.raises(ValueError, match="a batch of 5 can't be normalised in 2 equal"),
    ):
        bn(torch.randn(5, C))


def both_kinds_on_one_gpu():
    """Outputs, gradients and buffers of both; two processes share the device, so the group is gloo's."""
    rank, results = dist.get_rank(), []
    kinds = [randomised(SyncBatchNorm1d(C)).cuda(), randomised(nn.SyncBatchNorm(C)).cuda()]
    for step in range(STEPS):
        for bn in kinds:
            x = inputs(2, step)[rank * N : (rank + 1) * N].float().cuda().requires_grad_()
            bn.zero_grad()
            y = bn(x)
            (y * loss_weights(step, N).float().cuda()).sum().backward()
            results.append([z.detach().cpu() for z in (y, x.grad, bn.weight.grad, bn.bias.grad)])
    return results, [{n: t.cpu() for n, t in bn.state_dict().items()} for bn in kinds]


def test_its_groups_have_the_time_out_of_the_run(monkeypatch):
    monkeypatch.setattr(moco.distributed, "_timeout", timedelta(seconds=77))
    _, nccl = check_rank(("asym_bn:target",), world=8, rank=3, group=2)
    assert nccl.groups == [(2, timedelta(seconds=77))] * 4


@pytest.mark.gpu
def test_equals_sync_batch_norm():
    for results, (ours, theirs) in run_ranks(both_kinds_on_one_gpu, 2):
        torch.testing.assert_close(results[0::2], results[1::2])
        torch.testing.assert_close(ours, theirs)
