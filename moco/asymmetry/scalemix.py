"""ScaleMix (paper, section 4.2): one source view made of two, by a random box."""

import math
from dataclasses import replace

import torch


def scalemix_plan(plan):
    """Marks the source's full-size views as mixed; the small views of MultiCrop stay as they are."""
    return replace(plan, source=tuple(replace(view, mixed=True) for view in plan.source))


def mix_box(height, width, u):
    """Draws the box that is taken from the second view.

    lambda ~ U(0, 1) is the share kept of the first view, up to the clipping: the box has the side ratio
    sqrt(1 - lambda) and its centre is uniform over the pixels.

    Args:
        height, width: of the views, in pixels.
        u: three numbers, uniform on [0, 1): lambda, the centre's row, its column.

    Returns:
        (top, left, bottom, right), clipped to the view; it may be empty.
    """
    lam, y, x = u
    side = math.sqrt(1 - lam)
    row, column = int(y * height), int(x * width)
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    return (
        max(row - half_height, 0),
        max(column - half_width, 0),
        min(row + half_height, height),
        min(column + half_width, width),
    )


def paste(view1, view2, box):
    """`view1` (... x H x W) with the box (top, left, bottom, right) of `view2`, as a new tensor."""
    top, left, bottom, right = box
    mixed = view1.clone()
    mixed[..., top:bottom, left:right] = view2[..., top:bottom, left:right]
    return mixed


def scalemix(view1, view2):
    """Mixes two views of one image, or two batches with one box, drawn from torch's global generator.

    Args:
        view1, view2: ... x H x W, of one shape.

    Returns:
        A new tensor of that shape.

    Raises:
        ValueError: the shapes differ.
    """
    if view1.shape != view2.shape:
        raise ValueError(f"scalemix needs two views of one shape, got {tuple(view1.shape)} and {tuple(view2.shape)}")
    return paste(view1, view2, mix_box(*view1.shape[-2:], torch.rand(3, dtype=torch.float64).tolist()))
