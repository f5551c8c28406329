"""Features of images from a frozen network. Every rank encodes its share."""

import math

import torch

from moco.distributed import all_gather, world_size
from moco.precision import autocast
from moco.views.normalize import normalize_images


@torch.no_grad()
def encode(network, loader, device, precision=None, step_done=lambda images: None):
    """Encodes this rank's share of some images, in their order.

    Args:
        network: in eval mode on `device`, from N x 3 x size x size, normalised, to N x d.
        loader: a `central_loader`. device, precision: where and in which number format to compute.
        step_done: called as `step_done(images)` after each step in which every rank has a batch, that is, equally
            often on every rank, with the number of this rank's images in the step.

    Yields:
        (indices, features) for each batch: n (long) and n x d (float32), on `device`. With the loader's `skip_bad`,
        images that can't be decoded are left out.
    """
    common = math.ceil(len(loader.dataset) // world_size() / loader.batch_size)
    first = loader.sampler.start
    for step, (views, labels) in enumerate(loader):
        indices = torch.arange(first, first + len(views))
        first += len(views)
        with autocast(device, precision):
            features = network(normalize_images(views.to(device, non_blocking=True))).float()
        if bool((bad := labels == loader.dataset.BAD).any()):
            indices, features = indices[~bad], features[(~bad).to(device)]
        yield indices.to(device, non_blocking=True), features
        if step < common:
            step_done(len(views))


def encode_all(network, dim, loader, device, precision=None, step_done=lambda images: None):
    """Encodes the images of all shares; the result is the same on every rank.

    Args:
        dim: number of features. The others are those of `encode`.

    Returns:
        (indices, features): n (long) and n x dim (float32), on `device`.
    """
    most = math.ceil(len(loader.dataset) / world_size())
    indices = torch.full((most,), -1, device=device)
    features, at = torch.zeros(most, dim, device=device), 0
    for some, x in encode(network, loader, device, precision, step_done):
        indices[at : at + len(x)], features[at : at + len(x)] = some, x
        at += len(x)
    indices, features = all_gather(indices), all_gather(features)
    return indices[indices >= 0], features[indices >= 0]
