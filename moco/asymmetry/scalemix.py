"""ScaleMix (paper, section 4.2): one source view made of two views of the same image, mixed by a random box."""

import math
from dataclasses import replace

import torch

from moco.views.augment_with_pillow import paste


def scalemix_plan(plan, side="source"):
    """Makes each full-size view of `side` a mix of two draws of its recipe; small views do not change.

    Args:
        plan: a ViewPlan. side: one of SIDES.

    Returns:
        A changed copy.
    """
    return plan.change(side, lambda side: replace(side, full=tuple(replace(v, mix_box=mix_box) for v in side.full)))


def mix_box(height, width, u):
    """Draws the box that is cut from the second view and pasted into the first.

    lambda ~ U(0, 1) is the share of the first view that is kept if the box is not clipped. The box's sides are
    sqrt(1 - lambda) times those of the view, and its centre is uniform over the pixels.

    Args:
        height, width: of the views, in pixels.
        u: three numbers, uniform on [0, 1): for lambda, the centre's row and the centre's column.

    Returns:
        (top, left, bottom, right) in pixels, clipped to the view; the box may be empty.
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


def scalemix(view1, view2):
    """Mixes two views of one image, or two batches of views; all images of a batch then share the box.

    Training does not use this function. It is kept for projects that are derived from this one. The box is drawn from
    torch's global generator.

    Args:
        view1, view2: ... x H x W, of equal shape.

    Returns:
        A new tensor of that shape: `view1`, in which a box comes from `view2`.

    Raises:
        ValueError: the shapes differ.
    """
    if view1.shape != view2.shape:
        raise ValueError(f"scalemix needs two views of equal shape, got {tuple(view1.shape)} and {tuple(view2.shape)}")
    return paste(view1, view2, mix_box(*view1.shape[-2:], torch.rand(3, dtype=torch.float64).tolist()))
