"""From a loader's batch to the network's input: on a GPU the next one is copied and augmented while the step runs."""

import torch

from moco.device import send
from moco.views.normalize import normalize_images
from moco.views.on_tensor import Layout


def finisher(views, augment_on, device):
    """What is left to do with a batch of `loader.training_loader`, as a function.

    Args:
        views: tuple of View. augment_on: "cpu" or "device", as the loader's. device: where the result shall be.

    Returns:
        A function from a batch to (views, labels): a list of N x 3 x size x size, float32, normalised, one a View, and
        N, long, on `device`.
    """
    layout = Layout(views)

    def from_views(batch):
        images, labels = batch
        return [normalize_images(send(x, device)) for x in images], send(labels, device)

    def from_crops(batch):
        crops, rows, labels = batch
        return layout.finish({size: send(x, device) for size, x in crops.items()}, rows), send(labels, device)

    return from_views if augment_on == "cpu" else from_crops


def prefetched(batches, finish, device):
    """Yields `finish(batch)` for each batch.

    On a GPU `finish` runs on a stream of its own. A training step only queues its kernels, so that the next batch is
    asked for, copied and augmented while the GPU still works on the step.
    """
    if device.type != "cuda":
        yield from map(finish, batches)
        return
    side, main = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    for batch in batches:
        with torch.cuda.stream(side):
            views, labels = finish(batch)
        main.wait_stream(side)
        for x in (*views, labels):
            x.record_stream(main)  # its memory is the side stream's: not to be used again before the step is through
        yield views, labels
