"""torch.distributed with NCCL, as one rank of many: it checks what NCCL asks of a tensor, and sends nothing."""

import contextlib
from collections import Counter
from unittest import mock

import torch.distributed as dist

import moco.distributed
from tests.fake_gpu import RuleBroken


class FakeNCCL:
    """One rank of a process group. Use it within a FakeGPU.

    Args:
        world: number of ranks. rank: this one.

    Attributes:
        calls: a Counter of the collectives, by name and by the shapes of their tensors.
        groups: for each group that was made, its number of ranks and the time-out that was asked for.
    """

    def __init__(self, world, rank):
        self.world, self.rank, self.calls, self.groups = world, rank, Counter(), []

    def _check(self, name, *tensors):
        for x in tensors:
            if x.device.type != "cuda":
                raise RuleBroken(f"{name}: NCCL sends no tensor of the {x.device.type.upper()}")
            if not x.is_contiguous():
                raise RuleBroken(f"{name}: a tensor of {tuple(x.shape)} is not contiguous")
        if len({x.dtype for x in tensors}) > 1:
            raise RuleBroken(f"{name}: the tensors are of several types")
        self.calls[(name, *(tuple(x.shape) for x in tensors))] += 1

    def _sizes(self, name, fits):
        if not fits:
            raise RuleBroken(f"{name}: the sizes do not fit")

    def all_to_all_single(self, out, x, received, sent, group=None):
        self._check("all_to_all_single", out, x)
        self._sizes("all_to_all_single", sum(received) == len(out) and sum(sent) == len(x))
        self._sizes("all_to_all_single", len(received) == len(sent) == self.world)

    def all_gather_single(self, out, x, group=None):
        self._check("all_gather_single", out, x)
        ranks = self.world if group is None else group
        self._sizes("all_gather_single", out.shape == (ranks * len(x), *x.shape[1:]))

    def all_reduce(self, x, *_, async_op=False, **__):
        if async_op:
            raise RuleBroken("all_reduce: nobody waits for the result")
        self._check("all_reduce", x)

    def new_group(self, ranks, timeout=None, **_):
        """Makes a group, which is its number of ranks."""
        self.groups.append((len(ranks), timeout))
        return len(ranks)

    @contextlib.contextmanager
    def installed(self):
        """A context in which torch.distributed is this rank's."""
        stand_ins = {
            "is_initialized": lambda: True,
            "get_rank": lambda *_: self.rank,
            "get_world_size": lambda group=None: self.world if group is None else group,
            "get_backend": lambda *_: "nccl",
            "all_to_all_single": self.all_to_all_single,
            "all_reduce": self.all_reduce,
            "new_group": self.new_group,
        }
        with contextlib.ExitStack() as stack:
            for name, function in stand_ins.items():
                stack.enter_context(mock.patch.object(dist, name, function))
            stack.enter_context(mock.patch.object(moco.distributed, "_all_gather_single", self.all_gather_single))
            yield self
