"""Batch normalisation in groups of samples, so that one device acts as many.

Eight devices with 32 images each normalise eight batches of 32; one device with all 256 would normalise one of 256,
which is another experiment. A SplitBatchNorm takes its statistics over equal, contiguous parts of the batch instead,
each of them what a device would have seen.
"""

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
    """

    def __init__(self, num_features, eps=1e-5, momentum=0.1, splits=1):
        super().__init__(num_features, eps, momentum)
        self.splits = splits

    def _check_input_dim(self, x):
        pass  # any number of dimensions will do

    def forward(self, x):
        """x: N x C x ... to the same shape; raises ValueError where `splits` does not divide N."""
        if not self.training:
            return super().forward(x)
        if len(x) % self.splits:
            raise ValueError(f"a batch of {len(x)} can't be normalised in {self.splits} equal parts")
        self.num_batches_tracked += 1
        return self._at_once(x) if torch.compiler.is_compiling() else self._part_by_part(x)

    def _part_by_part(self, x):
        statistics = [(self.running_mean, self.running_var)] + [(None, None)] * (self.splits - 1)
        parts = [
            F.batch_norm(part, *running, self.weight, self.bias, True, self.momentum, self.eps)
            for part, running in zip(x.chunk(self.splits), statistics, strict=True)
        ]
        return torch.cat(parts)

    def _at_once(self, x):
        """The formula over all parts at once: a compiler makes one reduction and one pass of it, eager mode many."""
        parts = at_least_fp32(x).unflatten(0, (self.splits, -1))  # splits x n x C x ...
        dims = [d for d in range(1, parts.dim()) if d != 2]
        var, mean = torch.var_mean(parts, dims, correction=0, keepdim=True)
        shape = var.shape[2:]  # C x 1 ...
        scale = self.weight.view(shape) * torch.rsqrt(var + self.eps)
        with torch.no_grad():
            n = parts[0].numel() // self.num_features
            self.running_mean.lerp_(mean[0].flatten().to(self.running_mean), self.momentum)
            self.running_var.lerp_((var[0].flatten() * (n / (n - 1))).to(self.running_var), self.momentum)
        return ((parts - mean) * scale + self.bias.view(shape)).flatten(0, 1).to(x.dtype)


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
    """Has every batch normalisation of `module` act on `splits` equal parts, in place; 1 changes nothing."""
    if splits == 1:
        return module
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
    return line
