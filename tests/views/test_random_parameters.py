"""The distributions of a view's parameters against torchvision's own `get_params`, over a few thousand draws."""

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from torchvision import transforms

from moco.asymmetry.scalemix import mix_box
from moco.views.augmentation_recipes import View
from moco.views.randaugment import ARGUMENTS, NAMES, UNIFORMS, draw_operation
from moco.views.random_parameters import JITTER, ORDERS, draw_view, uniforms_needed

DRAWS = 4000


def draws(view, width=500, height=375, n=DRAWS, seed=0):
    rng = np.random.default_rng(seed)
    return [draw_view(view, width, height, rng.random(uniforms_needed(view)).tolist()) for _ in range(n)]


def assert_same_distribution(ours, theirs, what):
    """Two-sample Kolmogorov-Smirnov test at a level of 1e-4."""
    ours, theirs = np.sort(ours), np.sort(theirs)
    grid = np.concatenate((ours, theirs))
    gap = np.abs(
        np.searchsorted(ours, grid, side="right") / len(ours)
        - np.searchsorted(theirs, grid, side="right") / len(theirs)
    ).max()
    limit = np.sqrt(-np.log(1e-4 / 2) / 2 * (len(ours) + len(theirs)) / (len(ours) * len(theirs)))
    assert gap < limit, f"{what}: KS distance {gap:.4f} above {limit:.4f}"


def assert_share(hits, n, p, what):
    assert abs(hits - n * p) < 4.5 * (n * p * (1 - p)) ** 0.5, f"{what}: {hits} of {n}, expected a share of {p}"


@pytest.mark.parametrize("width, height", [(500, 375), (375, 500), (640, 90), (60, 700), (1, 1)])
@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.05, 0.14), (0.08, 1.0)])
def test_crops_are_those_of_random_resized_crop(width, height, scale):
    torch.manual_seed(0)
    image, n = torch.empty(3, height, width), DRAWS if width > 1 else 50  # a single pixel is all that one can draw
    theirs = [transforms.RandomResizedCrop.get_params(image, scale, (3 / 4, 4 / 3)) for _ in range(n)]
    ours = [d.crop for d in draws(View(scale=scale), width, height, n)]
    for i, name in enumerate(("top", "left", "height", "width")):
        assert_same_distribution([c[i] for c in ours], [c[i] for c in theirs], name)
    assert all(c.top >= 0 and c.top + c.height <= height and c.height > 0 for c in ours)
    assert all(c.left >= 0 and c.left + c.width <= width and c.width > 0 for c in ours)


@pytest.mark.parametrize("ratio, width, height", [((10, 20), 3, 500), ((0.01, 0.02), 500, 3), ((1000, 1000), 40, 40)])
def test_a_crop_has_a_pixel_whatever_its_ratio(ratio, width, height):
    for draw in draws(View(ratio=ratio), width, height, n=50):
        assert 1 <= draw.crop.height <= height and 1 <= draw.crop.width <= width


def slow_crop(width, height, scale, ratio, u):
    """The same box in the plainest words, every operation of floats in its place."""
    for area, aspect in zip(u[0:20:2], u[1:20:2], strict=True):
        area = width * height * (scale[0] + (scale[1] - scale[0]) * area)
        aspect = math.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * aspect)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return (int(u[20] * (height - h + 1)), int(u[21] * (width - w + 1)), h, w)
    w, h = min(width, max(1, round(height * ratio[1]))), min(height, max(1, round(width / ratio[0])))
    return ((height - h) // 2, (width - w) // 2, h, w)


def slow_jitter(strengths, order, u):
    factors = []
    for i, strength in enumerate(strengths):
        low, high = (-strength, strength) if i == 3 else (max(0.0, 1 - strength), 1 + strength)
        factors.append(low + (high - low) * u[i])
    return tuple((JITTER[i], factors[i]) for i in ORDERS[int(order * 24)])


@pytest.mark.parametrize("view", [View(), View(scale=(0.9, 1.0), ratio=(3.0, 4.0)), View(jitter=(1.5, 0.0, 0.2, 0.5))])
def test_draws_are_the_same_to_the_bit_as_ever(view):
    """Otherwise an old run, when it is resumed, would not continue as it began."""
    rng = np.random.default_rng(1)
    for width, height in ((500, 375), (30, 700), (1, 1)) * 200:
        u = rng.random(uniforms_needed(view)).tolist()
        draw = draw_view(view, width, height, u)
        assert tuple(draw.crop) == slow_crop(width, height, view.scale, view.ratio, u)
        assert draw.jitter == (slow_jitter(view.jitter, u[23], u[24:28]) if u[22] < view.jitter_p else ())


def test_jitter_is_that_of_color_jitter():
    torch.manual_seed(0)
    jitter = transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)
    ranges = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    theirs = [transforms.ColorJitter.get_params(*ranges) for _ in range(DRAWS)]
    ours = draws(View())
    on = [d.jitter for d in ours if d.jitter]
    assert_share(len(on), DRAWS, 0.8, "jitter")
    for i, name in enumerate(JITTER):
        assert_same_distribution([dict(j)[name] for j in on], [t[1 + i] for t in theirs], name)
    counts = Counter(tuple(name for name, _ in j) for j in on)
    assert len(counts) == len(ORDERS) == 24
    for order, count in counts.items():
        assert_share(count, len(on), 1 / 24, order)


def test_gray_blur_and_flip():
    ours = draws(View())
    random.seed(0)
    assert_share(sum(d.gray for d in ours), DRAWS, 0.2, "gray")
    assert_share(sum(d.flip for d in ours), DRAWS, 0.5, "flip")
    sigmas = [d.sigma for d in ours if d.sigma]
    assert_share(len(sigmas), DRAWS, 0.5, "blur")
    assert_same_distribution(sigmas, [random.uniform(0.1, 2.0) for _ in range(DRAWS)], "sigma")
    assert not any(d.operations or d.box for d in ours)


def test_steps_are_drawn_independently():
    ours = draws(View())
    columns = np.array([[bool(d.jitter), d.gray, bool(d.sigma), d.flip, d.crop.left] for d in ours], float)
    correlation = np.corrcoef(columns.T) - np.eye(5)
    assert np.abs(correlation).max() < 4.5 / DRAWS**0.5


def test_randaugment_draws():
    rng = np.random.default_rng(0)
    operations = [draw_operation(rng.random(UNIFORMS).tolist()) for _ in range(4 * DRAWS)]
    applied = [op for op in operations if op is not None]
    assert_share(len(applied), 4 * DRAWS, 0.5, "applied")
    counts = Counter(op.name for op in applied)
    assert set(counts) == set(NAMES) and len(NAMES) == 15
    for name, count in counts.items():
        assert_share(count, len(applied), 1 / 15, name)
    assert_share(
        sum(op.bicubic for op in applied if ARGUMENTS[op.name]),
        sum(bool(ARGUMENTS[op.name]) for op in applied),
        0.5,
        "bicubic",
    )

    # The magnitude, read back from an argument: N(10, 0.5) clipped to 10, half of it at the clip.
    enhanced = [
        (op.argument - 0.1) / 0.18 for op in applied if op.name in ("Color", "Contrast", "Brightness", "Sharpness")
    ]
    assert max(enhanced) <= 10 + 1e-9
    assert_share(sum(m > 10 - 1e-9 for m in enhanced), len(enhanced), 0.5, "clipped")
    gauss = random.Random(1)
    assert_same_distribution(enhanced, [min(10, gauss.gauss(10, 0.5)) for _ in range(DRAWS)], "magnitude")
    rotations = [op.argument for op in applied if op.name == "Rotate"]
    assert_share(sum(r < 0 for r in rotations), len(rotations), 0.5, "sign")
    assert all(24 < abs(r) <= 30 for r in rotations)


def test_two_operations_an_image():
    counts = Counter(len(d.operations) for d in draws(View(randaugment=True)))
    for n, p in ((0, 0.25), (1, 0.5), (2, 0.25)):
        assert_share(counts[n], DRAWS, p, f"{n} operations")


def test_a_mixed_view_is_two_independent_draws_and_a_box():
    view = View(mix_box=mix_box)
    ours = draws(view)
    first, second = [d.crop.width for d in ours], [d.other.crop.width for d in ours]
    assert_same_distribution(first, second, "width")
    assert abs(np.corrcoef(first, second)[0, 1]) < 4.5 / DRAWS**0.5
    assert all(d.box is not None and d.other.box is None for d in ours)


def test_a_draw_is_a_function_of_its_numbers():
    view = View(randaugment=True, mix_box=mix_box)
    u = np.random.default_rng(3).random(uniforms_needed(view)).tolist()
    assert draw_view(view, 100, 80, u) == draw_view(view, 100, 80, u)
    assert draw_view(view, 100, 80, u) != draw_view(view, 100, 80, u[1:] + u[:1])
