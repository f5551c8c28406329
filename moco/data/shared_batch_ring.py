"""Shared buffers that data workers fill with batches again and again, in place of a new shared file for each batch.

The buffers, called slots, are anonymous shared memory that the parent maps once, before it forks the workers. Nothing
of it is in /dev/shm, whose size containers limit (to 64 MB by default), so nothing can be left there either. Between
two processes only a slot's number travels.

No batch is overwritten while anything can still read it, whatever reads it and however slowly:
    - A worker writes only into a slot whose number it has taken out of the pipe of free slots. A number is in the pipe
      at most once, and a read removes it, so a slot has one owner at a time.
    - The worker sends the number on with its batch, so the number is then on its way or in the parent.
    - The parent puts the number back when the last tensor that shares the slot's memory is gone: every view of a
      tensor keeps its storage, the storage keeps the array below, and the array's end puts the number back. Copies,
      such as pinned ones, do not keep it.
    - If there is no free slot, the worker uses memory of its own, and the batch travels as it would without a ring.
So a ring that is too small costs time, never a batch: a list of all batches of an epoch is right, too.
"""

import itertools
import math
import mmap
import os
import weakref

import numpy as np
import torch

MOST = 2048  # slots whose numbers fit into the smallest pipe that Linux makes, one page of 4096 bytes
ALIGNMENT = 64  # bytes
_rings, _keys = weakref.WeakValueDictionary(), itertools.count()


class BatchRing:
    """A number of slots for batches, owned by the process that makes it. Its forks fill them.

    Args:
        empty: called as `empty(n, new)`; returns an empty batch of n images: tensors in tuples, lists and dicts, each
            made by `new(shape, dtype=...)`, which has the arguments of `torch.empty`.
        batch: number of images in the largest batch. slots: number of slots, 1 to MOST.

    Attributes:
        size: bytes of a slot.
    """

    def __init__(self, empty, batch, slots):
        self.empty, self.owner, self.size = empty, os.getpid(), 0

        def count(shape, dtype):
            self.size += _aligned(shape, dtype)
            return torch.empty(shape, dtype=dtype, device="meta")

        empty(batch, count)
        self.memory = mmap.mmap(-1, slots * self.size)
        self.free, self.back = os.pipe()
        os.set_blocking(self.free, False)
        weakref.finalize(self, _close, self.free, self.back).atexit = False  # batches may outlive it at the exit
        for slot in range(slots):
            self._put_back(slot)
        self.key = next(_keys)
        _rings[self.key] = self

    def filled(self, n, fill):
        """Makes a batch in a data worker.

        Args:
            n: number of images. fill: called with the empty batch.

        Returns:
            What the worker sends: a BatchInSlot, or the batch itself if no slot is free.
        """
        try:
            slot = int.from_bytes(os.read(self.free, 2), "little")
        except BlockingIOError:
            batch = self.empty(n, torch.empty)
            fill(batch)
            return batch
        try:
            fill(self.empty(n, _carver(self._array(slot))))
        except BaseException:
            self._put_back(slot)
            raise
        return BatchInSlot(self.key, slot, n)

    def arrived(self, slot, n):
        """The batch of n images in a slot, in the process that owns the ring; the slot is free when it is gone."""
        array = self._array(slot)
        weakref.finalize(array, self._put_back_if_owner, slot).atexit = False
        return self.empty(n, _carver(array))

    def _array(self, slot):
        return np.frombuffer(self.memory, np.uint8, self.size, slot * self.size)

    def _put_back_if_owner(self, slot):
        if os.getpid() == self.owner:  # a fork has copies of the parent's batches, but no say in when they end
            self._put_back(slot)

    def _put_back(self, slot):
        os.write(self.back, slot.to_bytes(2, "little"))


class BatchInSlot:
    """A batch that a data worker has made in a slot. It arrives in the parent as the batch itself."""

    def __init__(self, *place):
        self.place = place  # the ring's key, the slot, the number of images

    def __reduce__(self):
        return _arrived, self.place


def _arrived(key, slot, n):
    return _rings[key].arrived(slot, n)


def _close(*descriptors):
    for descriptor in descriptors:
        os.close(descriptor)


def _carver(array):
    """A function like `torch.empty` whose tensors lie one after the other in an array of bytes."""
    memory, place = torch.from_numpy(array), 0

    def new(shape, dtype):
        nonlocal place
        start, place = place, place + _aligned(shape, dtype)
        return memory[start : start + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)

    return new


def _aligned(shape, dtype):
    return math.ceil(math.prod(shape) * dtype.itemsize / ALIGNMENT) * ALIGNMENT
