"""Features of images from a frozen network. Every rank encodes its share."""

import math

import torch

from moco.distributed import all_gather, copy_to_device, from_all, world_size
from moco.precision import autocast
from moco.views.normalize import normalize_images


@torch.no_grad()
def encode(network, loader, device, precision=None, step_done=lambda images: None):
    """Encodes this rank's share of some images, in their order.

    Args:
        network: in eval mode on `device`, from N x 3 x size x size, normalised, to N x d.
        loader: a `central_loader`. device, precision: where and in which number format to compute.
        step_done: called as `step_done(images)`, equally often on every rank: after each step in which all ranks have
            a batch. `images` is this rank's number of images in it.

    Yields:
        (indices, features) for each batch: n (long, on the CPU) and n x d (float32, on `device`). With the loader's
        `skip_bad`, images that can't be decoded are left out.
    """
    common = math.ceil(len(loader.dataset) // world_size() / loader.batch_size)
    first = loader.sampler.start
    for step, (views, labels) in enumerate(loader):
        indices = torch.arange(first, first + len(views))
        first += len(views)
        with autocast(device, precision):
            features = network(normalize_images(copy_to_device(views, device))).float()
        if len(good := (labels != loader.dataset.BAD).nonzero()[:, 0]) < len(labels):
            indices, features = indices[good], features[copy_to_device(good, device)]
        yield indices, features
        if step < common:
            step_done(len(views))


def encode_all(network, dim, loader, device, precision=None, step_done=lambda images: None):
    """Encodes the images of all shares; the result is the same on every rank.

    Args:
        dim: number of features. The others are those of `encode`.

    Returns:
        (indices, features): n (long, on the CPU) and n x dim (float32, on `device`).
    """
    most = math.ceil(len(loader.dataset) / world_size())  # images of the largest share
    features, indices = torch.zeros(most, dim, device=device), []
    for some, x in encode(network, loader, device, precision, step_done):
        features[len(indices) : len(indices) + len(x)] = x
        indices += some.tolist()
    shares = from_all(indices)
    rows = [rank * most + i for rank, share in enumerate(shares) for i in range(len(share))]
    features = all_gather(features)[copy_to_device(torch.tensor(rows), device)]
    return torch.tensor([i for share in shares for i in share]), features
