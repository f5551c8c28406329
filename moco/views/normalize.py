"""Normalisation by ImageNet's mean and standard deviation, on any device."""

import functools

import torch

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalize_images(x):
    """Normalises N x 3 x H x W (uint8, or floats with integer values in [0, 255]) to float32.

    It subtracts ImageNet's mean and divides by its standard deviation.

    The operations and their order are those of torchvision's ToTensor and Normalize, so the values are equal.
    """
    mean, std = _constants(x.device)
    return x.div(255).sub_(mean).div_(std)


def normalize_in_place(x):
    """`normalize_images` in place, for float32 only; returns `x`."""
    mean, std = _constants(x.device)
    return x.div_(255).sub_(mean).div_(std)


def to_pixels(x):
    """The inverse of `normalize_images`: uint8, in the shape and on the device of `x`."""
    mean, std = _constants(x.device)
    return ((x * std + mean) * 255).round().clamp(0, 255).byte()


@functools.cache
def _constants(device):
    # Cached per device, since copying them to a GPU makes the host wait.
    return tuple(torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD))
