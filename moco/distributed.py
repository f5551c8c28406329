"""Processes that act as one: ranks, and the collectives of a training step.

Every function works without a process group too: one process is then the whole world and a collective is the
identity. What crosses the wires in a step is the target images once, each to the one rank that encodes it, the
keys once, and the gradients (which DistributedDataParallel sends).
"""

import hashlib
import inspect

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from moco.device import send
from moco.randomness import SHUFFLE, generator

# Newer releases of torch have these under other names and warn of the older ones.
_all_gather_single = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_ddp_arguments = inspect.signature(DistributedDataParallel).parameters
NO_BUFFERS = {"forward_sync_buffers" if "forward_sync_buffers" in _ddp_arguments else "broadcast_buffers": False}


def is_initialized():
    """Whether this process belongs to a process group."""
    return dist.is_available() and dist.is_initialized()


def rank():
    """This process's number among all, 0 without a process group."""
    return dist.get_rank() if is_initialized() else 0


def world_size():
    """The number of processes, 1 without a process group."""
    return dist.get_world_size() if is_initialized() else 1


def collective_device():
    """The device whose tensors the process group can send."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def from_rank_0(value):
    """Global rank 0's `value`, a small picklable object, on every rank."""
    if not is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, device=collective_device())
    return values[0]


def data_parallel(model, device, loss_of):
    """Wraps `model` so that its gradients are averaged over all processes; alone in the world it stays as it is.

    Buffers are not sent in a step: rank 0's are the ones that are saved. Every step must use the same parameters.

    Args:
        device: of the model. loss_of: called as `loss_of(net)` twice, on every rank; a scalar that depends on the same
            parameters as the real loss.

    Raises:
        RuntimeError: the ranks do not start from the same parameters and buffers.
    """
    if world_size() == 1:
        return model
    check_equal(model.state_dict())
    ids = [device.index] if device.type == "cuda" else None
    net = DistributedDataParallel(model, device_ids=ids, static_graph=True, gradient_as_bucket_view=True, **NO_BUFFERS)
    fix_bucket_layout(net, loss_of)
    return net


def from_all(value):
    """Every rank's `value`, a small picklable object, as a list by rank."""
    if not is_initialized():
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def check_equal(tensors):
    """Compares a dict of tensors over all ranks, to the bit.

    Raises:
        RuntimeError: on every rank, if one differs anywhere; names it.
    """
    digests = {
        name: hashlib.blake2b(t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()).hexdigest()
        for name, t in tensors.items()
    }
    for r, theirs in enumerate(everywhere := from_all(digests)):
        for name, digest in everywhere[0].items():
            if theirs.get(name) != digest:
                raise RuntimeError(f"{name} differs between rank 0 and rank {r}; all ranks must start alike")


def fix_bucket_layout(net, loss_of):
    """Runs two steps to no effect, so that DistributedDataParallel settles its buckets before the first real one.

    DDP lays its gradient buckets out anew after its first backward pass, of a static graph after its second. From 3
    processes on the layout decides the order of summation, so a run resumed with first passes of its own would differ
    in the last bits.

    Args:
        net: a DistributedDataParallel; its parameters and buffers are restored, its gradients cleared.
        loss_of: as in `data_parallel`.
    """
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for _ in range(2):
        loss_of(net).backward()  # the next forward pass takes the order in which these gradients came
        net.zero_grad(set_to_none=True)
    net.load_state_dict(before)


def all_gather(x, group=None):
    """Concatenates `x` (n x ..., equal shape on every rank) of all ranks of `group` in the order of their ranks.

    Returns (ranks * n) x ..., without gradient.
    """
    if not is_initialized():
        return x.detach()
    out = x.new_empty((dist.get_world_size(group) * x.shape[0], *x.shape[1:]))
    _all_gather_single(out, x.detach().contiguous(), group=group)
    return out


def all_sum(x):
    """The sum of `x` over all ranks, on every rank."""
    if is_initialized():
        x = x.clone()
        dist.all_reduce(x)
    return x


class BatchShuffle:
    """MoCo's shuffled batch normalisation (He et al., arXiv 1911.05722, section 3.3).

    The target batch of all devices is permuted before it is encoded, so that a BN batch never holds the keys of
    just one query batch. The permutation is a function of (seed, step) that every rank evaluates alike: no index
    is sent. It acts on the position `view * B + sample`, B the global batch and `sample` the place in it, whatever the
    number of ranks and of BN groups on each.

    Args:
        views: target views an image.
        batch: images on this rank; `views * batch` rows are shuffled here.
        seed, step: non-negative integers, the address of the permutation.
        splits: BN groups on each rank.
    """

    def __init__(self, views, batch, seed, step, splits=1):
        self.world, self.rank = world_size(), rank()
        self.views, self.batch = views, batch
        self.order = None
        if self.world * splits > 1:  # with one BN group the order changes nothing
            order = generator(SHUFFLE, seed, step).permutation(views * batch * self.world)
            self.order = torch.from_numpy(order)  # the shuffled batch's j-th row is row order[j]

    def shuffle(self, x):
        """Sends each row to the rank that encodes it.

        Args:
            x: (views * batch) x ..., this rank's rows, all of the first view first.

        Returns:
            This rank's rows of the shuffled batch, in the shape of `x`.
        """
        if self.order is None:
            return x
        if self.world == 1:
            return x[send(self.order, x.device)]
        n = self.views * self.batch
        view, sample = self.order // (self.batch * self.world), self.order % (self.batch * self.world)
        owner, row = sample // self.batch, view * self.batch + sample % self.batch
        # A rank sends its rows in the order of their shuffled positions, hence grouped by the receiving rank, ...
        mine = (owner == self.rank).nonzero().squeeze(1)
        sent = torch.bincount(mine // n, minlength=self.world)
        # ... and finds what it receives grouped by owner, each group in the order of the positions.
        owners = owner[self.rank * n : (self.rank + 1) * n]
        received = torch.bincount(owners, minlength=self.world)
        arrivals = torch.empty_like(x, memory_format=torch.contiguous_format)
        departures = x[send(row[mine], x.device)].contiguous()
        dist.all_to_all_single(arrivals, departures, received.tolist(), sent.tolist())
        positions = torch.argsort(owners, stable=True)
        return arrivals[send(torch.argsort(positions), x.device)]

    def gather_unshuffled(self, k):
        """Gathers the encodings of all ranks and undoes the permutation.

        Args:
            k: (views * batch) x C, this rank's rows of the shuffled batch, encoded.

        Returns:
            views x B x C in the order of the global batch, the same on every rank, without gradient.
        """
        k = all_gather(k)
        if self.order is not None:
            k = k[send(torch.argsort(self.order), k.device)]
        return k.view(self.views, self.batch * self.world, -1)
