"""Batches in shared buffers: equal to those of a plain loader, never overwritten early, and bounded in memory."""

import array
import fcntl
import gc
import os
import pickle
import shutil
import termios
import time
from itertools import islice

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from moco import loader
from moco.asymmetry.scalemix import scalemix_plan
from moco.data.bad_image_substitutes import Substitutes
from moco.data.file_list import ImageFolder
from moco.data.image_reading import BadImageError
from moco.data.prefetch_to_device import Lookahead, finisher, prefetched
from moco.data.shared_batch_ring import BatchInSlot, BatchRing
from moco.views.augmentation_recipes import View, baseline_plan

PATHS = ("cpu", "device")
VIEWS = (*scalemix_plan(baseline_plan(16)).views, View(8))


def loader_of(imagenet, augment_on, workers, batch=8, **more):
    folder = ImageFolder(imagenet / "train")
    return loader.training_loader(folder, VIEWS, batch, 0, workers, augment_on=augment_on, **more)


def equal(a, b):
    a, b = tree_leaves(a), tree_leaves(b)
    return len(a) == len(b) and all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True))


def free_slots(ring):
    """How many numbers of slots are in the ring's pipe."""
    waiting = array.array("i", [0])
    fcntl.ioctl(ring.free, termios.FIONREAD, waiting)
    return waiting[0] // 2


# How a training may read its batches. Each gives copies, made as late as that reader can still see a batch.


def at_once(batches):
    return [tree_map(torch.clone, batch) for batch in batches]


def slowly(batches):
    kept = []
    for batch in batches:
        time.sleep(0.02)  # so that the workers are as far ahead as they can be
        kept.append(tree_map(torch.clone, batch))
    return kept


def one_later(batches):
    kept, ahead = [], Lookahead(batches)
    for batch in ahead:
        ahead.fetch()
        time.sleep(0.01)
        kept.append(tree_map(torch.clone, batch))
    return kept


READERS = (at_once, slowly, one_later, list)  # `list` holds the batches of the whole epoch


@pytest.fixture
def pinning(monkeypatch):
    """Call it to let torch's thread copy each batch, as for a GPU, into memory that is not really pinned.

    It returns a list that grows by the shape of each copy.
    """

    def start():
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        for name, value in (("is_available", True), ("current_device_index", 0), ("current_accelerator", None)):
            monkeypatch.setattr(torch.accelerator, name, lambda value=value: value)
        monkeypatch.setattr(torch.accelerator, "set_device_index", lambda _: None)
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x, *_: copies.append(x.shape) or x.clone())
        return copies

    copies = []
    return start


EPOCHS = [*((reader, 0) for reader in READERS), (slowly, 7)]  # how an epoch is read, and its first step


@pytest.fixture(scope="module")
def plain_epochs(imagenet):
    """For each path, the batches of EPOCHS from a loader without data workers."""
    epochs = {}
    for augment_on in PATHS:
        plain = loader_of(imagenet, augment_on, 0, 10, drop_last=False)
        assert plain.dataset.ring is None
        for epoch, (_, start) in enumerate(EPOCHS):
            plain.batch_sampler.epoch, plain.batch_sampler.start = epoch, start
            epochs.setdefault(augment_on, []).append(list(plain))
    return epochs


@pytest.mark.parametrize("workers, pinned", [(1, False), (2, False), (4, False), (2, True)])
@pytest.mark.parametrize("augment_on", PATHS)
def test_batches_equal_those_of_a_plain_loader(workers, pinned, augment_on, plain_epochs, imagenet, pinning):
    copies = pinning() if pinned else []
    batches = loader_of(imagenet, augment_on, workers, 10, drop_last=False)
    slots = free_slots(batches.dataset.ring)
    assert batches.pin_memory == pinned and slots == (workers if pinned else 2 * workers) + 2
    for epoch, (reader, start) in enumerate(EPOCHS):
        batches.batch_sampler.epoch, batches.batch_sampler.start = epoch, start
        expected = plain_epochs[augment_on][epoch]
        assert len(expected[-1][-1]) == 96 % 10 and len(expected) == 10 - start
        assert equal(reader(batches), expected)
    assert free_slots(batches.dataset.ring) == slots, "a slot was lost"
    assert len(copies) == pinned * 43 * len(tree_leaves(expected[0]))


def test_what_the_network_gets_outlives_its_batch(imagenet):
    """On a CPU the labels of a step are the slot's own memory, and the epoch asks for the next batch meanwhile."""
    kept, labels, cpu = [], [], torch.device("cpu")
    for workers in (0, 1):
        batches = loader_of(imagenet, "device", workers)
        steps = Lookahead(prefetched(batches, finisher(VIEWS, "device", cpu), cpu))
        for views, own in steps:
            steps.fetch()
            labels.append(own)
            kept.append([view.clone() for view in views])
    half = len(kept) // 2
    assert equal(kept[:half], kept[half:]) and equal(labels[:half], labels[half:])


def test_an_epoch_that_is_broken_off_loses_no_slot(imagenet):
    batches, plain = (loader_of(imagenet, "device", workers) for workers in (2, 0))
    slots = free_slots(batches.dataset.ring)
    for steps in (1, 3, 5):
        held = list(islice(batches, steps))[-1]
        copy = tree_map(torch.clone, held)
    assert equal(list(batches), list(plain)) and equal(held, copy)
    del held
    assert free_slots(batches.dataset.ring) == slots


@pytest.mark.parametrize("augment_on", PATHS)
def test_substitutes_are_those_of_a_plain_loader(augment_on, imagenet, tmp_path):
    shutil.copytree(imagenet / "train", tmp_path / "train")
    folder = ImageFolder(tmp_path / "train")
    open(folder.path(20), "w").close()
    plain, spread = (
        loader_of(tmp_path, augment_on, workers, substitutes=Substitutes(folder, 0, str(tmp_path / "list")))
        for workers in (0, 2)
    )
    assert equal(slowly(spread), list(plain))


def test_a_batch_with_a_bad_image_gives_its_slot_back(imagenet, tmp_path):
    shutil.copytree(imagenet / "train", tmp_path / "train")
    open(ImageFolder(tmp_path / "train").path(20), "w").close()
    stopping = loader_of(tmp_path, "cpu", 1)
    slots = free_slots(stopping.dataset.ring)
    with pytest.raises(BadImageError):
        list(stopping)
    seen = at_once(stopping._iterator)  # torch's loader can be asked for the batches after the one that failed
    assert 1 <= len(seen) < 12 and free_slots(stopping.dataset.ring) == slots
    stopping._iterator._shutdown_workers()  # a garbage collection would wait for the worker for 5 seconds


def images(n, new):
    return [new((n, 5), dtype=torch.uint8), {"numbers": new((n,), dtype=torch.long)}]


def ring_and_batches(slots, batches, n=3):
    """A ring whose batches this process makes itself, as a data worker would; each is filled with its number."""
    ring = BatchRing(images, 4, slots)
    return ring, [ring.filled(n, lambda batch, i=i: [x.fill_(i) for x in tree_leaves(batch)]) for i in range(batches)]


def received(made):
    return pickle.loads(pickle.dumps(made))


def test_a_slot_is_free_when_its_last_tensor_is_gone():
    ring, made = ring_and_batches(2, 3)
    assert ring.size == 2 * 64 and free_slots(ring) == 0
    assert [type(batch) for batch in made] == [BatchInSlot, BatchInSlot, list], "the third batch found no free slot"
    batches = [received(batch) for batch in made[:2]]
    assert [x.tolist() for x in tree_leaves(batches[1])] == [[[1] * 5] * 3, [1] * 3]
    copy, part = tree_map(torch.clone, batches[0]), batches[0][0].permute(1, 0)[2:].unflatten(1, (3, 1))
    batches[0].clear()
    assert free_slots(ring) == 0, "a view of a view still reads it"
    del part
    assert free_slots(ring) == 1 and copy[0].sum() == 0
    ring.filled(4, lambda batch: batch[0].fill_(9))
    assert free_slots(ring) == 0 and batches[1][0].eq(1).all(), "the other slot was overwritten"


def test_a_batch_that_fails_gives_its_slot_back():
    ring, _ = ring_and_batches(1, 0)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            ring.filled(2, lambda batch: 1 / 0)
    assert free_slots(ring) == 1


def test_a_fork_does_not_free_the_slots_of_its_parent():
    ring, made = ring_and_batches(1, 1)
    batch = received(made[0])
    if not (child := os.fork()):
        batch.clear()
        os._exit(free_slots(ring))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 and free_slots(ring) == 0
    del batch
    assert free_slots(ring) == 1


def test_a_ring_ends_with_its_last_batch():
    ring, made = ring_and_batches(2, 1)
    ends, batch = (ring.free, ring.back), received(made[0])
    del ring
    os.fstat(ends[0])
    del batch
    for end in ends:
        with pytest.raises(OSError):
            os.fstat(end)


def mappings(process="self"):
    with open(f"/proc/{process}/maps") as file:
        return file.readlines()


def test_memory_does_not_grow_over_epochs_and_needs_no_shared_files(imagenet):
    batches = loader_of(imagenet, "device", 2)
    sizes = []
    gc.collect()  # what earlier tests have left
    for _ in range(5):
        for batch in batches:
            del batch
        workers = [worker.pid for worker in batches._iterator._workers]
        maps = [line for process in ("self", *workers) for line in mappings(process)]
        assert not any("/dev/shm/torch_" in line for line in maps), "batches are in shared files"
        shared = sum("/dev/zero" in line for line in maps)  # the name of anonymous shared memory
        sizes.append((shared, *(len(os.listdir(f"/proc/{process}/fd")) for process in ("self", *workers))))
    assert all(last <= first for first, last in zip(sizes[1], sizes[-1], strict=True)), f"growth: {sizes}"
    assert sizes[-1][0] >= 3
    assert free_slots(batches.dataset.ring) == 2 * 2 + 2


@pytest.mark.parametrize(
    "workers, pinned, room, slots",
    [
        (0, False, 1e9, None),
        (2, False, 1e9, 6),  # 2 x 2 in advance, the one in use, the next one
        (2, True, 1e9, 4),  # the copies that wait are not in the ring
        (2, False, 4.5, 4),  # the ring fills no more than the room,
        (2, True, 5.5, 1),  # nor do the ring and 2 x 2 pinned copies,
        (2, True, 4, None),  # and then there may be none
    ],
)
def test_the_ring_is_bounded_by_bytes(workers, pinned, room, slots, imagenet, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pinned)
    size = loader.pinned_bytes(loader_of(imagenet, "device", 0).dataset, 8)
    ring = loader_of(imagenet, "device", workers, room=room * size).dataset.ring
    assert (ring and free_slots(ring)) == slots
    assert ring is None or len(ring.memory) == slots * ring.size
