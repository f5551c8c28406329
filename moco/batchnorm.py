"""Batch normalisation in groups of samples, so that one GPU can give the results of several GPUs.

The paper's 8 GPUs hold 32 images each, so batch normalisation sees 32 images at a time. Normalising all 256 images
together on one GPU gives other statistics, and other results. A SplitBatchNorm therefore computes its statistics
separately for equal, contiguous parts of the batch. Each part stands for the batch of one GPU. In the same way, one
forward pass can encode several views while batch normalisation treats each view as a separate batch.
"""

from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from moco.precision import at_least_fp32

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class SplitBatchNorm(_BatchNorm):
    """nn.BatchNorm1d or nn.BatchNorm2d that normalises `splits` equal parts of the batch separately.

    The running statistics are updated only from the first part of each view. They are those of the first of `splits`
    GPUs, whose buffers a checkpoint holds. The state dict has the names and shapes of nn.BatchNorm.

    Args:
        num_features, eps, momentum: as in nn.BatchNorm.
        splits: number of parts, 1 or more; each part is a contiguous range of samples.

    Raises:
        ValueError: `splits` is smaller than 1.

    Attributes:
        views: number of batches that are concatenated in the input. Each is normalised as in a forward pass of its
            own.
    """

    def __init__(self, num_features, eps=1e-5, momentum=0.1, splits=1):
        super().__init__(num_features, eps, momentum)
        if splits < 1:
            raise ValueError(f"batch normalisation in {splits} parts is not possible; give 1 or more")
        self.splits, self.views = splits, 1

    def _check_input_dim(self, x):
        pass  # accepts any number of dimensions

    def forward(self, x):
        """Normalises x, N x C x ..., to the same shape; raises ValueError if N is no multiple of views * splits."""
        parts = self.views * self.splits
        compiling = torch.compiler.is_compiling()
        if not self.training or (parts == 1 and not compiling):
            return super().forward(x)
        check_parts(x, parts)
        self.num_batches_tracked += self.views
        return self._at_once(x) if compiling else self._part_by_part(x)

    def _part_by_part(self, x):
        out = []
        for i, part in enumerate(x.chunk(self.views * self.splits)):
            running = (self.running_mean, self.running_var) if i % self.splits == 0 else (None, None)
            out.append(F.batch_norm(part, *running, self.weight, self.bias, True, self.momentum, self.eps))
        return torch.cat(out)

    def _at_once(self, x):
        """All parts in one formula: torch.compile turns it into one reduction and one pass over the data."""
        parts = at_least_fp32(x).unflatten(0, (self.views * self.splits, -1))  # parts x n x C x ...
        dims = [d for d in range(1, parts.dim()) if d != 2]
        var, mean = torch.var_mean(parts, dims, correction=0, keepdim=True)
        shape = var.shape[2:]  # C x 1 ...
        scale = self.weight.view(shape) * torch.rsqrt(var + self.eps)
        values = parts[0].numel() // self.num_features
        for first in range(0, len(parts), self.splits):
            update_running_statistics(self, mean[first].flatten(), var[first].flatten(), values)
        return ((parts - mean) * scale + self.bias.view(shape)).flatten(0, 1).to(x.dtype)


def check_parts(x, parts):
    """Raises ValueError if the batch `x`, N x ..., can't be divided into so many equal parts."""
    if len(x) % parts:
        raise ValueError(f"a batch of {len(x)} can't be normalised in {parts} equal parts")


@torch.no_grad()
def update_running_statistics(bn, mean, var, n):
    """Updates the running mean and variance of `bn` from one batch, as nn.BatchNorm does.

    Args:
        mean, var: shape (C,); the variance is the biased one. n: number of values per channel, 2 or more.
    """
    bn.running_mean.lerp_(mean.to(bn.running_mean), bn.momentum)
    bn.running_var.lerp_((var * (n / (n - 1))).to(bn.running_var), bn.momentum)


@contextmanager
def views_apart(network, views):
    """Context manager: the input of `network` is `views` concatenated batches, which batch norm treats separately.

    Raises:
        TypeError: `network` has a batch normalisation of torch, which would mix the views and the groups.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        if type(norm) in PLAIN:
            name = next(name for name, module in network.named_modules() if module is norm)
            kind = type(norm).__name__
            raise TypeError(f"the layer {name!r} is a {kind}; call split_batchnorm on the module that contains it")
    norms = [norm for norm in norms if hasattr(norm, "views")]
    for norm in norms:
        norm.views = views
    try:
        yield
    finally:
        for norm in norms:
            norm.views = 1


def replace_batchnorm(module, make):
    """Replaces every batch normalisation inside `module`, at any depth, in place.

    Names, values and gradient flags do not change.

    Args:
        module: a module that may contain batch-norm layers, but must not be one itself.
        make: called as `make(num_features, eps, momentum)`; returns the new layer, which must have the same state
            dict.

    Returns:
        `module`.

    Raises:
        ValueError: `module` is a batch-norm layer itself, or it contains one with options that the new ones lack.
    """
    if isinstance(module, _BatchNorm):
        raise ValueError(f"a {type(module).__name__} can't be replaced in place; give the module that contains it")
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            if any(part is None for part in (child.weight, child.bias, child.running_mean, child.momentum)):
                raise ValueError(f"{child} can't be replaced; it must have weight, bias, running statistics, momentum")
            new = make(child.num_features, child.eps, child.momentum).to(child.weight)
            new.load_state_dict(child.state_dict())
            setattr(module, name, new.requires_grad_(child.weight.requires_grad))
        else:
            replace_batchnorm(child, make)
    return module


def split_batchnorm(module, splits):
    """Replaces every batch normalisation inside `module` by a SplitBatchNorm, in place; returns `module`.

    Raises ValueError as SplitBatchNorm and `replace_batchnorm`.
    """
    return replace_batchnorm(module, lambda *args: SplitBatchNorm(*args, splits=splits))


def check_splits(splits, batch):
    """Checks that `splits` divides a process's batch into equal groups of 2 or more images.

    Args:
        splits: number of groups. batch: images of one process.

    Raises:
        ValueError: it does not; the message names the numbers that do, if there are any.
    """
    if batch < 2:
        raise ValueError(
            f"a process's batch of {batch} is too small, since batch normalisation needs at least 2 images in each "
            "group; give a larger --batch-size"
        )
    if batch % splits or batch < 2 * splits:
        fits = ", ".join(str(n) for n in range(1, batch // 2 + 1) if batch % n == 0)
        raise ValueError(
            f"--bn-splits {splits} does not divide a process's batch of {batch} into groups of at least 2 images; "
            f"give one of {fits}"
        )
