"""AsymBN (paper, section 4.4): the target's projector computes its batch statistics over several batch-norm groups.

In the paper a group is the batch of one GPU. Here a process may have several groups (`splits`, see `batchnorm.py`).
The source's projector normalises each group separately. The design can also be on the source, or on both sides.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from moco.batchnorm import SplitBatchNorm, check_parts, replace_batchnorm, update_running_statistics
from moco.distributed import all_gather, all_sum, new_group, rank, world_size
from moco.precision import at_least_fp32


def check_group(size, processes, splits=1):
    """Checks that `size` divides the number of all batch-norm groups, and is a multiple or a divisor of `splits`.

    Args:
        size: batch-norm groups that share their statistics; a size above the number of all groups means all.
        processes: number of processes. splits: batch-norm groups per process.

    Raises:
        ValueError: the size does not fit; the message names the sizes that do.
    """
    groups = processes * splits
    sizes = [n for n in range(1, groups + 1) if groups % n == 0 and (n % splits == 0 or splits % n == 0)]
    if size < groups and size not in sizes:
        rule = f", and be a multiple or a divisor of --bn-splits {splits}" if splits > 1 else ""
        raise ValueError(
            f"--asym-bn-group {size} must divide {groups}, the number of batch-norm groups{rule}; give one of "
            f"{', '.join(map(str, sizes))}"
        )


def synchronize_projector(projector, size=None, splits=1):
    """Replaces each batch-norm layer of `projector`, in place, by one whose statistics cover `size` batch-norm groups.

    These are consecutive groups. Every rank must call this function. Parameters, running statistics
    and state-dict names do not change.

    Args:
        projector: a module. size: as for `check_group`; None means all groups. splits: batch-norm groups per process.

    Returns:
        `projector`.

    Raises:
        ValueError: as `check_group`; or `projector` has no batch-norm layers inside.
    """
    groups = world_size() * splits
    size = groups if size is None else min(size, groups)
    check_group(size, world_size(), splits)
    if not any(isinstance(module, _BatchNorm) for module in projector.modules()):
        raise ValueError("the projector has no batch normalisation, so AsymBN would change nothing; leave it out")
    if size <= splits:
        return replace_batchnorm(projector, lambda *args: SplitBatchNorm(*args, splits=splits // size))
    group = process_group(size // splits)
    return replace_batchnorm(projector, lambda *args: SyncBatchNorm1d(*args, group=group))


def process_group(size):
    """The process group of `size` consecutive ranks that this rank belongs to; None if it would hold all ranks.

    `size` must divide the number of ranks. Every rank must call this function.
    """
    world = world_size()
    if size == world:
        return None
    return [new_group(range(first, first + size)) for first in range(0, world, size)][rank() // size]


class SyncBatchNorm1d(nn.BatchNorm1d):
    """nn.BatchNorm1d whose training statistics are taken over all ranks of `group`.

    It computes what torch.nn.SyncBatchNorm computes, running statistics included, but on any device. Every rank must
    hold the same number of samples. In eval mode it is nn.BatchNorm1d.

    Args:
        group: the process group to synchronise over; None means all processes.
        args, kwargs: as for nn.BatchNorm1d.

    Attributes:
        views: number of batches that are concatenated in the input; as in SplitBatchNorm.
    """

    def __init__(self, *args, group=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.group, self.views = group, 1

    def __deepcopy__(self, memo):
        """A copy that belongs to the same process group; torch can't copy groups."""
        memo[id(self)] = copied = self.__new__(type(self))
        memo[id(self.group)] = self.group
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    @torch.compiler.disable  # a collective would break the compiled graph
    def forward(self, x):
        """Normalises x, N x C, to the same shape; raises ValueError if N is no multiple of `views`."""
        if not self.training:
            return super().forward(x)
        check_parts(x, self.views)
        parts = x.unflatten(0, (self.views, -1))  # views x n x C
        mean, var, n = self.statistics(parts)
        self.num_batches_tracked += self.views
        for i in range(self.views):
            update_running_statistics(self, mean[i], var[i], n)
        return _Normalised.apply(parts, self.weight, self.bias, mean, var, n, self.eps, self.group).flatten(0, 1)

    @torch.no_grad()
    def statistics(self, parts):
        """Means and variances (biased), views x C each, and the number of samples, of this group's views."""
        var, mean = torch.var_mean(at_least_fp32(parts), dim=1, correction=0)
        means, variances = all_gather(torch.stack((mean, var))[None], self.group).unbind(1)  # ranks x views x C each
        mean = means.mean(dim=0)
        return mean, variances.mean(dim=0) + (means - mean).square().mean(dim=0), len(means) * parts.shape[1]


class _Normalised(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias, where mean and var are functions of x on all ranks of `group`."""

    @staticmethod
    def forward(ctx, x, weight, bias, mean, var, n, eps, group):
        ctx.save_for_backward(x, weight, mean, var)
        ctx.n, ctx.eps, ctx.group = n, eps, group
        views = zip(x, mean, var, strict=True)
        return torch.stack([F.batch_norm(v, m, s, weight, bias, training=False, eps=eps) for v, m, s in views])

    @staticmethod
    def backward(ctx, gradient):
        """The gradients of x, and of weight and bias from this rank's samples (arXiv 1502.03167, section 3)."""
        x, weight, mean, var = ctx.saved_tensors
        scale, gradient = torch.rsqrt(var + ctx.eps)[:, None], at_least_fp32(gradient)
        x_hat = (x - mean[:, None]) * scale
        sums = torch.stack((gradient.sum(dim=1), (gradient * x_hat).sum(dim=1)))  # 2 x views x C
        of_bias, of_weight = sums.sum(dim=1)
        first, second = all_sum(sums, ctx.group)[:, :, None] / ctx.n
        of_x = weight * scale * (gradient - first - x_hat * second)
        return of_x.to(x.dtype), of_weight, of_bias, None, None, None, None, None
