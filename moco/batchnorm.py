"""Batch normalisation in groups of samples, so that one device acts as many.

Eight devices with 32 images each normalise eight batches of 32; one device with all 256 would normalise one of 256,
which is another experiment. A SplitBatchNorm takes its statistics over equal, contiguous parts of the batch instead,
each of them what a device would have seen. In the same way several views pass a network at once, each a batch of its
own.
"""

from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from moco.device import at_least_fp32

PAPERS_BATCH = 32  # images a BN group: 256 on 8 GPUs


class SplitBatchNorm(_BatchNorm):
    """nn.BatchNorm1d or 2d whose training statistics are those of each of `splits` equal parts of the batch.

    The running statistics are the first part's, as rank 0 of `splits` devices would have them; the state dict is
    that of nn.BatchNorm.

    Args:
        num_features, eps, momentum: as nn.BatchNorm's. splits: parts of a batch, in the order of the samples.

    Attributes:
        views: batches that lie behind each other in the input; each is normalised as if it came alone, in this order.
    """

    def __init__(self, num_features, eps=1e-5, momentum=0.1, splits=1):
        super().__init__(num_features, eps, momentum)
        self.splits, self.views = splits, 1

    def _check_input_dim(self, x):
        pass  # any number of dimensions will do

    def forward(self, x):
        """x: N x C x ... to the same shape; raises ValueError where N is not a multiple of views times splits."""
        parts = self.views * self.splits
        compiling = torch.compiler.is_compiling()
        if not self.training or (parts == 1 and not compiling):
            return super().forward(x)
        if len(x) % parts:
            raise ValueError(f"a batch of {len(x)} can't be normalised in {parts} equal parts")
        self.num_batches_tracked += self.views
        return self._at_once(x) if compiling else self._part_by_part(x)

    def _part_by_part(self, x):
        out = []
        for i, part in enumerate(x.chunk(self.views * self.splits)):
            running = (self.running_mean, self.running_var) if i % self.splits == 0 else (None, None)
            out.append(F.batch_norm(part, *running, self.weight, self.bias, True, self.momentum, self.eps))
        return torch.cat(out)

    def _at_once(self, x):
        """The formula over all parts at once: a compiler makes one reduction and one pass of it, eager mode many."""
        parts = at_least_fp32(x).unflatten(0, (self.views * self.splits, -1))  # parts x n x C x ...
        dims = [d for d in range(1, parts.dim()) if d != 2]
        var, mean = torch.var_mean(parts, dims, correction=0, keepdim=True)
        shape = var.shape[2:]  # C x 1 ...
        scale = self.weight.view(shape) * torch.rsqrt(var + self.eps)
        n = parts[0].numel() // self.num_features
        for first in range(0, len(parts), self.splits):
            update_running_statistics(self, mean[first].flatten(), var[first].flatten(), n)
        return ((parts - mean) * scale + self.bias.view(shape)).flatten(0, 1).to(x.dtype)


@torch.no_grad()
def update_running_statistics(bn, mean, var, n):
    """Moves those of `bn` towards a batch's, as nn.BatchNorm does.

    Args:
        mean, var: C each, the variance biased. n: values a channel, of which they are taken.
    """
    bn.running_mean.lerp_(mean.to(bn.running_mean), bn.momentum)
    bn.running_var.lerp_((var * (n / (n - 1))).to(bn.running_var), bn.momentum)


@contextmanager
def views_apart(network, views):
    """Within it `network` takes `views` batches behind each other as one, and each SplitBatchNorm keeps them apart."""
    norms = [module for module in network.modules() if isinstance(module, SplitBatchNorm)]
    for norm in norms:
        norm.views = views
    try:
        yield
    finally:
        for norm in norms:
            norm.views = 1


def replace_batchnorm(module, make):
    """Replaces every batch normalisation of `module`, at any depth, in place.

    Names, values and gradient flags stay.

    Args:
        make: called as `make(num_features, eps, momentum)`; returns one with the same state dict.

    Returns:
        `module`.
    """
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            new = make(child.num_features, child.eps, child.momentum).to(child.weight)
            new.load_state_dict(child.state_dict())
            setattr(module, name, new.requires_grad_(child.weight.requires_grad))
        else:
            replace_batchnorm(child, make)
    return module


def split_batchnorm(module, splits):
    """Has every batch normalisation of `module` act on `splits` equal parts of a batch, in place."""
    return replace_batchnorm(module, lambda *args: SplitBatchNorm(*args, splits=splits))


def check_splits(splits, batch):
    """Refuses a number of BN groups that does not divide a process's batch, or leaves one with fewer than 2 images.

    Raises:
        ValueError: the message names the numbers that would do.
    """
    if batch % splits or batch < 2 * splits:
        fits = ", ".join(str(n) for n in range(1, batch // 2 + 1) if batch % n == 0)
        raise ValueError(
            f"--bn-splits {splits} does not divide a process's batch of {batch} into groups of 2 images at least; "
            f"give one of {fits}"
        )


def in_words(splits, processes, total_batch, earlier=None):
    """The number of images that batch normalisation sees at a time, and what to do where it is not the paper's.

    Args:
        splits: BN groups a process. total_batch: images a step.
        earlier: that number before a resume, or None.

    Returns:
        A line, or two.
    """
    batch, groups = total_batch // (processes * splits), total_batch // PAPERS_BATCH
    plural = "s" * (processes * splits > 1)
    line = f"batch normalisation: {processes * splits} group{plural} of {batch} images"
    if batch != PAPERS_BATCH and groups and total_batch % PAPERS_BATCH == 0 and groups % processes == 0:
        line += f"; the paper's runs had groups of {PAPERS_BATCH}: --bn-splits {groups // processes}"
    if earlier not in (None, batch):
        line += f"\nnote: before the resume it saw {earlier} images at a time"
        if total_batch % (earlier * processes) == 0:
            line += f"; --bn-splits {total_batch // (earlier * processes)} would keep that"
    return line
