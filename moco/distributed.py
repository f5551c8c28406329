"""Moving tensors between processes and devices: ranks, collectives, and copies to a device.

Without a process group the rank is 0, the world size is 1, and collectives act as they do for a single rank.
"""

from datetime import timedelta

import torch
import torch.distributed as dist

# Newer releases of torch renamed this function and warn about the older name.
_all_gather_single = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_timeout = None  # of collectives; None means torch's default


class RanksDiffer(RuntimeError):
    """The ranks have different values of what must be equal; the message names it. Every rank raises it."""


def is_initialized():
    """Whether this process belongs to a process group."""
    return dist.is_available() and dist.is_initialized()


def init_process_group(backend, store, rank, world, timeout, device):
    """Makes this process a rank of a process group.

    Args:
        backend: "nccl" or "gloo". store: a torch.distributed store of its own. rank: of this process, 0-based.
        world: number of processes. timeout: seconds that a collective may take, in groups of `new_group`, too.
        device: of this process.
    """
    global _timeout
    _timeout = timedelta(seconds=timeout)
    only = {"device_id": device} if backend == "nccl" else {}
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=_timeout, **only)


def new_group(ranks):
    """A process group of some ranks with the time-out of `init_process_group`. Every rank must call this function."""
    return dist.new_group(ranks, timeout=_timeout)


def rank():
    """This process's global rank; 0 without a process group."""
    return dist.get_rank() if is_initialized() else 0


def world_size():
    """The number of processes on all nodes; 1 without a process group."""
    return dist.get_world_size() if is_initialized() else 1


def collective_device():
    """The device on which the backend of the process group expects tensors: the current GPU for NCCL, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def from_rank_0(value):
    """Sends rank 0's `value`, a small picklable object, to every rank and returns it."""
    if not is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, device=collective_device())
    return values[0]


def copy_from_rank_0(tensors):
    """Copies rank 0's values into these tensors on every rank. Their shapes must be equal on all ranks."""
    if is_initialized():
        for x in tensors:
            dist.broadcast(x, src=0)


def from_all(value):
    """Gathers every rank's `value`, a small picklable object, into a list in the order of the ranks."""
    if not is_initialized():
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def needs_no_gradient(name, *tensors):
    """Checks that nothing would be trained through `name`, an operation that returns no gradient.

    Raises:
        RuntimeError: gradients are on, and one of the tensors requires one.
    """
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        raise RuntimeError(
            f"{name} returns no gradient, so what comes before it would silently not be trained; use it only under "
            "torch.no_grad(), as for the target, or replace it on the source by an operation with a gradient"
        )


def all_gather(x, group=None):
    """Concatenates `x` (n x ..., of equal shape on every rank) of all ranks of `group` along its first dimension.

    Returns:
        (ranks * n) x ..., without gradient.

    Raises:
        RuntimeError: `x` needs a gradient.
    """
    needs_no_gradient("all_gather", x)
    if not is_initialized():
        return x.detach()
    out = x.new_empty((dist.get_world_size(group) * x.shape[0], *x.shape[1:]))
    _all_gather_single(out, x.detach().contiguous(), group=group)
    return out


def all_sum(x, group=None):
    """The sum over all ranks of `group` of `x`, which does not change; raises RuntimeError if `x` needs a gradient."""
    needs_no_gradient("all_sum", x)
    if is_initialized():
        x = x.clone()
        dist.all_reduce(x, group=group)
    return x


def copy_to_device(x, device):
    """Copies a CPU tensor to a GPU without making the host wait; for a CPU as `device`, returns the tensor itself."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x
