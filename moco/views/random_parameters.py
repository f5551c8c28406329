"""The random parameters of a view (crop box, jitter factors, blur sigma, ...), drawn before anything is applied.

`draw_view` turns uniform random numbers into the parameters of one view, with the distributions of torchvision's
transforms. Both back ends apply the same parameters, so their pixels can be compared.
"""

import math
from itertools import permutations
from typing import NamedTuple

from moco.views import randaugment

CROP_ATTEMPTS = 10
JITTER = ("brightness", "contrast", "saturation", "hue")
ORDERS = tuple(permutations(range(4)))
RECIPE_UNIFORMS = 2 * CROP_ATTEMPTS + 2 + 10 + randaugment.LAYERS * randaugment.UNIFORMS
MIX_UNIFORMS = 3


class Crop(NamedTuple):
    """A box in pixels of the image."""

    top: int
    left: int
    height: int
    width: int


class Draw(NamedTuple):
    """The random parameters of one view, in the order of their application.

    Attributes:
        crop: the Crop that is resized to the view's size.
        jitter: pairs (name in JITTER, factor) in the order of application; empty for no jitter. The hue's factor is a
            share of a full turn of the colour circle.
        gray: whether the view becomes grayscale.
        sigma: standard deviation of the blur in pixels; 0 for no blur.
        flip: whether the view is flipped horizontally.
        operations: the RandAugment operations.
        box, other: None, except for a mixed view. Then `other` is the Draw of the second view, and `box` (top, left,
            bottom, right) is the part of the second view that is pasted into the first.
    """

    crop: Crop
    jitter: tuple = ()
    gray: bool = False
    sigma: float = 0.0
    flip: bool = False
    operations: tuple = ()
    box: tuple | None = None
    other: "Draw | None" = None


def uniforms_needed(view):
    """The number of uniform random numbers that `draw_view` needs for a View."""
    return 2 * RECIPE_UNIFORMS + MIX_UNIFORMS if view.mixed else RECIPE_UNIFORMS


def draw_view(view, width, height, u):
    """Draws the parameters of one view.

    Args:
        view: a View.
        width, height: of the image, in pixels.
        u: a sequence of `uniforms_needed(view)` floats, uniform on [0, 1).

    Returns:
        A Draw.
    """
    draw = draw_recipe(view, width, height, u[:RECIPE_UNIFORMS])
    if not view.mixed:
        return draw
    other = draw_recipe(view, width, height, u[RECIPE_UNIFORMS : 2 * RECIPE_UNIFORMS])
    return draw._replace(box=view.mix_box(view.size, view.size, u[2 * RECIPE_UNIFORMS :]), other=other)


def draw_recipe(view, width, height, u):
    """Draws the parameters of a View's recipe from RECIPE_UNIFORMS numbers, without the box of a mixed view."""
    n = 2 * CROP_ATTEMPTS + 2
    crop = draw_crop(width, height, view.scale, view.ratio, u[:n])
    jitter_on, order, *strengths, gray, blur_on, sigma, flip = u[n : n + 10]
    operations = ()
    if view.randaugment:
        tail = u[n + 10 :]
        size = randaugment.UNIFORMS
        layers = (randaugment.draw_operation(tail[i * size : (i + 1) * size]) for i in range(randaugment.LAYERS))
        operations = tuple(op for op in layers if op is not None)
    return Draw(
        crop,
        draw_jitter(view.jitter, order, strengths) if jitter_on < view.jitter_p else (),
        gray < view.gray_p,
        between(*view.sigma, sigma) if blur_on < view.blur_p else 0.0,
        flip < view.flip_p,
        operations,
    )


def between(low, high, u):
    """Maps a number from [0, 1) to [low, high)."""
    return low + (high - low) * u


def draw_crop(width, height, scale, ratio, u):
    """Draws the box of torchvision's RandomResizedCrop.

    Up to 10 sizes are tried. If none fits into the image, the box is the largest centred one within `ratio`.

    Args:
        width, height: of the image, in pixels.
        scale: range of the box's share of the image's area. ratio: range of its width over its height.
        u: 22 uniform numbers: two per try (area, ratio), then two for the position of the box.

    Returns:
        A Crop.
    """
    flattest, steepest = map(math.log, ratio)
    for i in range(0, 2 * CROP_ATTEMPTS, 2):
        area = width * height * between(*scale, u[i])
        aspect = math.exp(between(flattest, steepest, u[i + 1]))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            y, x = u[2 * CROP_ATTEMPTS :]
            return Crop(int(y * (height - h + 1)), int(x * (width - w + 1)), h, w)
    w = min(width, max(1, round(height * ratio[1])))  # at least one pixel, whatever the image and the ratio
    h = min(height, max(1, round(width / ratio[0])))
    return Crop((height - h) // 2, (width - w) // 2, h, w)


def draw_jitter(strengths, order, u):
    """Draws the factors of torchvision's ColorJitter and their order of application.

    Args:
        strengths: of brightness, contrast, saturation (factor within 1 +- strength) and hue (within +- strength).
        order: a uniform number for the order. u: four uniform numbers for the factors.

    Returns:
        A tuple of four pairs (name in JITTER, factor).
    """
    brightness, contrast, saturation, hue = strengths
    pairs = (
        ("brightness", between(max(0.0, 1 - brightness), 1 + brightness, u[0])),
        ("contrast", between(max(0.0, 1 - contrast), 1 + contrast, u[1])),
        ("saturation", between(max(0.0, 1 - saturation), 1 + saturation, u[2])),
        ("hue", between(-hue, hue, u[3])),
    )
    first, second, third, last = ORDERS[int(order * len(ORDERS))]
    return pairs[first], pairs[second], pairs[third], pairs[last]
