"""From uint8 images to what the network takes, on whatever device they are."""

import functools

import torch

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalize_images(x):
    """N x 3 x H x W, uint8 or whole floats in [0, 255], to float32 of zero mean and unit deviation over ImageNet.

    The same operations in the same order as torchvision's ToTensor and Normalize, hence the same values.
    """
    mean, std = _constants(x.device)
    return x.div(255).sub_(mean).div_(std)


@functools.cache
def _constants(device):
    # Made once a device: to copy them there makes the host wait.
    return tuple(torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD))
