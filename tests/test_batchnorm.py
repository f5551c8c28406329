"""BN in groups against a separate nn.BatchNorm a group, and what the door says of its numbers."""

import copy

import pytest
import torch
from torch import nn

from moco.batchnorm import SplitBatchNorm, check_splits, split_batchnorm, views_apart
from tests.test_precision import compiles

SHAPES = [(12, 5), (12, 5, 4, 3)]
PLAIN = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d}


def randomised(bn):
    with torch.no_grad():
        bn.weight.copy_(torch.linspace(0.5, 2, 5))
        bn.bias.copy_(torch.linspace(-1, 1, 5))
    return bn.double()


def batch(shape, step, memory_format=torch.contiguous_format):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64) * 3 + step
    x = x.contiguous(memory_format=memory_format if x.dim() == 4 else torch.contiguous_format)
    return x.requires_grad_()


def steps(bn, shape, count=3, memory_format=torch.contiguous_format):
    """Outputs, gradients of the input, gradients of the parameters and statistics after some steps."""
    out = []
    for step in range(count):
        x = batch(shape, step, memory_format)
        y = bn(x)
        (y**3).sum().backward()
        out.append((y.detach(), x.grad))
    return out, [p.grad for p in bn.parameters()], bn.state_dict()


def separate_steps(shape, splits, count=3):
    """The oracle: a BatchNorm of its own for each part; parameters' gradients are summed over them."""
    bns = [randomised(PLAIN[len(shape)](5)) for _ in range(splits)]
    out = []
    for step in range(count):
        x = batch(shape, step)
        y = torch.cat([bn(part) for bn, part in zip(bns, x.split(shape[0] // splits), strict=True)])
        (y**3).sum().backward()
        out.append((y.detach(), x.grad))
    gradients = [sum(grads) for grads in zip(*([p.grad for p in bn.parameters()] for bn in bns), strict=True)]
    return out, gradients, bns[0].state_dict()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("splits", [1, 2, 6])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_separate_batch_norms(shape, splits, memory_format):
    ours = steps(randomised(SplitBatchNorm(5, splits=splits)), shape, memory_format=memory_format)
    torch.testing.assert_close(ours, separate_steps(shape, splits), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("form", ["_part_by_part", "_at_once"])
@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_views_together_equal_one_after_the_other(shape, splits, form):
    together, apart = (randomised(SplitBatchNorm(5, splits=splits)) for _ in range(2))
    together._part_by_part = getattr(together, form)
    x = torch.cat([batch(shape, view).detach() for view in range(3)])
    with views_apart(nn.Sequential(together), 3):
        y = together(x)
    torch.testing.assert_close(y, torch.cat([apart(view) for view in x.chunk(3)]), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(together.state_dict(), apart.state_dict(), rtol=1e-11, atol=1e-11)
    assert together.views == 1 and together.num_batches_tracked == 3


@pytest.mark.parametrize("shape", SHAPES)
def test_the_compiled_form_equals_separate_batch_norms(shape):
    bn = randomised(SplitBatchNorm(5, splits=3))
    bn._part_by_part = bn._at_once
    torch.testing.assert_close(steps(bn, shape), separate_steps(shape, 3), rtol=1e-11, atol=1e-11)


@pytest.mark.slow
@compiles
def test_compiled_it_takes_that_form():
    bn = randomised(SplitBatchNorm(5, splits=3))
    bn._part_by_part = None  # not callable
    bn.compile(dynamic=False)
    torch.testing.assert_close(steps(bn, SHAPES[1]), separate_steps(SHAPES[1], 3), rtol=1e-11, atol=1e-11)


def test_half_precision_keeps_its_type_and_float32_statistics():
    x = torch.randn(8, 5, 4, 4, dtype=torch.bfloat16) * 3 + 100
    ours, reference = SplitBatchNorm(5, splits=2), SplitBatchNorm(5, splits=2)
    expected = reference(x.float())
    for forward in (ours._part_by_part, ours._at_once):
        y = forward(x)
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), expected, rtol=0.02, atol=0.02)
    assert ours.running_var.dtype == torch.float32


def test_eval_uses_the_running_statistics():
    ours, plain = randomised(SplitBatchNorm(5, splits=4)), randomised(nn.BatchNorm1d(5))
    ours(batch((8, 5), 1))
    plain.load_state_dict(ours.state_dict())
    x = batch((3, 5), 2)
    assert torch.equal(ours.eval()(x), plain.eval()(x))


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="a batch of 9 can't be normalised in 2 equal parts"):
        SplitBatchNorm(5, splits=2)(torch.zeros(9, 5))


def test_replacing_keeps_names_values_and_flags():
    net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Sequential(randomised(nn.BatchNorm2d(5, eps=1e-3, momentum=0.3))))
    net[1].requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    bn = split_batchnorm(net, 4)[1][0]
    assert (bn.splits, bn.eps, bn.momentum, bn.weight.requires_grad) == (4, 1e-3, 0.3, False)
    after = net.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)


def test_the_door():
    for splits, size in ((1, 2), (8, 256), (4, 8)):
        check_splits(splits, size)
    with pytest.raises(ValueError, match=r"--bn-splits 3 does not divide .* batch of 8 .*; give one of 1, 2, 4"):
        check_splits(3, 8)
    with pytest.raises(ValueError, match="give one of 1, 2, 4"):
        check_splits(8, 8)
    for splits in (1, 2):
        with pytest.raises(ValueError, match=r"batch of 1 is too small, .* 2 images .*; give a larger --batch-size"):
            check_splits(splits, 1)


@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}, {"momentum": None}])
def test_layers_that_can_not_be_replaced_are_refused(options):
    with pytest.raises(ValueError, match=r"BatchNorm1d\(5, .* can't be replaced; it must have weight, bias, running "):
        split_batchnorm(nn.Sequential(nn.BatchNorm1d(5, **options)), 2)
    with pytest.raises(ValueError, match="a BatchNorm2d can't be replaced in place; give the module that contains it"):
        split_batchnorm(nn.BatchNorm2d(5), 2)
    with pytest.raises(ValueError, match="in 0 parts is not possible"):
        SplitBatchNorm(5, splits=0)
