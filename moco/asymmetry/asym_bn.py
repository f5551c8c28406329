"""AsymBN (paper, section 4.4): the target's projector normalises over all devices of a node, the source's over one."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from moco.distributed import all_gather, rank, world_size


def check_group(size, devices):
    """Refuses a group size that does not divide the number of devices; one above it means all of them.

    Raises:
        ValueError: the message names the sizes that would do.
    """
    if size < devices and devices % size:
        sizes = ", ".join(str(n) for n in range(1, devices + 1) if devices % n == 0)
        raise ValueError(f"--asym-bn-group {size} does not divide the {devices} devices; give one of {sizes}")


def asym_bn_group(size):
    """The process group of `size` neighbouring ranks, or of all if there are fewer, that AsymBN synchronises over.

    Every rank must call it. Returns this rank's; None stands for all.
    """
    world = world_size()
    check_group(size, world)
    if size >= world:
        return None
    return [dist.new_group(range(first, first + size)) for first in range(0, world, size)][rank() // size]


class SyncTargetBatchNorm1d(nn.BatchNorm1d):
    """nn.BatchNorm1d whose training statistics are those of all ranks of `group`.

    The same numbers as torch.nn.SyncBatchNorm, running statistics included, but on any device. The target takes
    no gradient, so one small gather of means and variances is all there is to synchronise; every rank must hold
    the same number of samples.

    Args:
        group: the process group to synchronise over; None means all processes.
    """

    def __init__(self, *args, group=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.group = group

    @torch.no_grad()
    def forward(self, x):
        """x: N x C to N x C, without gradient."""
        if not self.training:
            return super().forward(x)
        stats = x if x.dtype == torch.float64 else x.float()
        var, mean = torch.var_mean(stats, dim=0, correction=0)
        means, variances = all_gather(torch.stack((mean, var))[None], self.group).unbind(1)  # ranks x C each
        mean = means.mean(dim=0)
        var = variances.mean(dim=0) + (means - mean).square().mean(dim=0)
        n = len(means) * len(x)
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
        self.running_var.lerp_((var * (n / (n - 1))).to(self.running_var), self.momentum)
        return F.batch_norm(x, mean, var, self.weight, self.bias, training=False, eps=self.eps)


def synchronize_projector(projector, group=None):
    """Replaces each BatchNorm1d of `projector` (nn.Sequential) by one synchronised over `group`, in place.

    Parameters, statistics and state-dict names stay.
    """
    for name, bn in projector.named_children():
        if isinstance(bn, nn.BatchNorm1d):
            sync = SyncTargetBatchNorm1d(bn.num_features, bn.eps, bn.momentum, group=group)
            sync.load_state_dict(bn.state_dict())
            sync.requires_grad_(bn.weight.requires_grad)
            setattr(projector, name, sync)
    return projector
