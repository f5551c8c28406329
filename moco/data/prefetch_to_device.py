"""Turns a loader's batch into the network's input. A GPU copies and augments the next batch while a step runs."""

import functools

import torch

from moco.distributed import copy_to_device
from moco.views.augment_on_device import Layout
from moco.views.normalize import normalize_images


def finisher(views, augment_on, device):
    """Makes the function that turns a batch of `loader.training_loader` into the network's input.

    Args:
        views: tuple of View.
        augment_on: "cpu" or "device", the same as for the loader.
        device: the device of the result.

    Returns:
        A function from a batch to (images, labels): a list with one N x 3 x size x size per View, float32 and
        normalised, and N labels (long), all on `device`.
    """
    layout = Layout(views)

    def from_views(batch):
        images, labels = batch
        return [normalize_images(copy_to_device(x, device)) for x in images], copy_to_device(labels, device)

    def from_crops(batch):
        crops, rows, labels = batch
        crops = {size: copy_to_device(x, device) for size, x in crops.items()}
        return layout.finish(crops, rows), copy_to_device(labels, device)

    return from_views if augment_on == "cpu" else from_crops


def prefetched(batches, finish, device):
    """Yields `finish(batch)` for each batch.

    On a GPU, `finish` runs on a stream of its own. A training step only queues its kernels; the host then asks for the
    next batch, which is copied and augmented while the GPU still works on the step. The current stream waits for the
    batch before this generator yields it.

    Args:
        batches: an iterable of batches. finish: the result of `finisher`. device: where the steps run.
    """
    if device.type != "cuda":
        yield from map(finish, batches)
        return
    side, main = _side_stream(device), torch.cuda.current_stream(device)

    def finished(batch):
        with torch.cuda.stream(side):
            views, labels = finish(batch)
        main.wait_stream(side)
        for x in (*views, labels):
            x.record_stream(main)  # so that the side stream does not reuse this memory before the step has ended
        return views, labels

    yield from map(finished, batches)  # this keeps no reference to a batch that the caller has dropped


@functools.cache
def _side_stream(device):
    # One for the whole process: torch's allocator keeps freed memory for the stream that allocated it, so a new stream
    # in each epoch would make the reserved memory grow from epoch to epoch.
    return torch.cuda.Stream(device)


class Lookahead:
    """An iterator over `items` that can fetch its next item in advance.

    An error of `items` is raised when the item is due, so that nothing that happens before is lost.
    """

    def __init__(self, items):
        self.items, self.fetched = iter(items), []

    def fetch(self):
        """Fetches the next item now, unless it is fetched already."""
        if not self.fetched:
            try:
                self.fetched.append((next(self.items), None))
            except Exception as error:  # StopIteration, too
                self.fetched.append((None, error))

    def __iter__(self):
        return self

    def __next__(self):
        self.fetch()
        item, error = self.fetched.pop()
        if error is not None:
            raise error
        return item
