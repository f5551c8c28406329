"""Wraps the model in DistributedDataParallel: sends no buffers, and keeps the order of summation constant."""

import hashlib
import inspect

import torch
from torch.nn.parallel import DistributedDataParallel

from moco.distributed import RanksDiffer, from_all, world_size
from moco.engine import watchdog

# Newer releases of torch renamed this argument and warn about the older name.
_ddp_arguments = inspect.signature(DistributedDataParallel).parameters
NO_BUFFERS = {"forward_sync_buffers" if "forward_sync_buffers" in _ddp_arguments else "broadcast_buffers": False}


def data_parallel(model, device, loss_of):
    """Wraps `model` so that its gradients are averaged over all processes; with one process, returns it unchanged.

    Buffers are not sent during training; rank 0's buffers are the ones that are saved. In every step the same set of
    parameters must get gradients.

    Args:
        model: equal on every rank. device: the model's device.
        loss_of: called as `loss_of(net)` twice, on every rank; returns a scalar that depends on the same parameters as
            the real loss.

    Raises:
        RanksDiffer: the ranks do not start from equal parameters and buffers.
    """
    if world_size() == 1:
        return model
    watchdog.at_start("comparing the models")
    check_equal(model.state_dict())
    ids = [device.index] if device.type == "cuda" else None
    net = DistributedDataParallel(model, device_ids=ids, static_graph=True, gradient_as_bucket_view=True, **NO_BUFFERS)
    fix_bucket_layout(net, loss_of)
    return net


def check_equal(tensors):
    """Compares a dict from name to tensor over all ranks, bit by bit.

    Raises:
        RanksDiffer: on every rank, if a tensor differs anywhere; the message names it.
    """
    digests = {
        name: hashlib.blake2b(t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()).hexdigest()
        for name, t in tensors.items()
    }
    for r, theirs in enumerate(everywhere := from_all(digests)):
        for name, digest in everywhere[0].items():
            if theirs.get(name) != digest:
                raise RanksDiffer(
                    f"{name} differs between rank 0 and rank {r}; all ranks must start from equal values"
                )


def fix_bucket_layout(net, loss_of):
    """Runs two forward and backward passes, so that the gradient buckets of `net` get their final layout.

    DDP rearranges its buckets after its first backward pass; with a static graph, it does so after the second pass.
    With 3 or more processes the layout decides the order of summation. Without these passes, the first steps after a
    resume would sum in another order than those of the uninterrupted run, and the last bits would differ.

    Args:
        net: a DistributedDataParallel. Afterwards its parameters and buffers are as before, and it has no gradients.
        loss_of: as for `data_parallel`.
    """
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for stage in ("first warm-up pass, with --compile also compiling", "second warm-up pass"):
        watchdog.at_start(stage)
        loss_of(net).backward()  # DDP orders its buckets in the order in which these gradients arrive
        net.zero_grad(set_to_none=True)
    net.load_state_dict(before)
