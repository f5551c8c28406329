"""Every RandAugment operation against a formula in loops or Pillow's own, and against timm where it is installed."""

import math

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from moco.views.randaugment import ARGUMENTS, NAMES, Operation, apply_on_pil
from tests.views.photographs import hard_cases, photograph

IMAGES = {"photograph": photograph(), **hard_cases()}
MAGNITUDES = (0.0, 3.3, 7.5, 9.2, 10.0)


def applied(name, argument, image, bicubic=False):
    return np.asarray(apply_on_pil(Operation(name, argument, bicubic), image)).astype(int)


def test_posterize_keeps_at_most_the_bits_that_there_are():
    assert [ARGUMENTS["Posterize"](m / 10, 1) for m in (5, 10, 20, 30)] == [2, 4, 8, 8]


@pytest.mark.parametrize("name", IMAGES)
class TestValues:
    """Operations on the values alone, by their formulas."""

    def test_invert(self, name):
        assert np.array_equal(applied("Invert", None, IMAGES[name]), 255 - np.asarray(IMAGES[name]).astype(int))

    @pytest.mark.parametrize("bits", [1, 2, 3, 4])
    def test_posterize_keeps_the_high_bits(self, name, bits):
        step = 2 ** (8 - bits)
        x = np.asarray(IMAGES[name]).astype(int)
        assert np.array_equal(applied("Posterize", bits, IMAGES[name]), x // step * step)

    @pytest.mark.parametrize("threshold", [0, 100, 230, 256])
    def test_solarize_inverts_from_the_threshold_on(self, name, threshold):
        x = np.asarray(IMAGES[name]).astype(int)
        expected = np.where(x >= threshold, 255 - x, x)
        assert np.array_equal(applied("Solarize", threshold, IMAGES[name]), expected)

    @pytest.mark.parametrize("add", [0, 57, 110, 128])
    def test_solarize_add_lifts_the_dark_half(self, name, add):
        x = np.asarray(IMAGES[name]).astype(int)
        expected = np.where(x < 128, np.minimum(x + add, 255), x)
        assert np.array_equal(applied("SolarizeAdd", add, IMAGES[name]), expected)

    def test_autocontrast_stretches_each_channel(self, name):
        x = np.asarray(IMAGES[name]).astype(int)
        expected = x.copy()
        for c in range(3):
            low, high = x[..., c].min(), x[..., c].max()
            if high > low:
                expected[..., c] = ((x[..., c] - low) * (255 / (high - low))).clip(0, 255).astype(int)
        assert np.abs(applied("AutoContrast", None, IMAGES[name]) - expected).max() <= 1

    def test_equalize_flattens_each_channels_histogram(self, name):
        x = np.asarray(IMAGES[name]).astype(int)
        expected = x.copy()
        for c in range(3):
            histogram = [int((x[..., c] == v).sum()) for v in range(256)]
            occupied = [n for n in histogram if n]
            step = (sum(occupied) - occupied[-1]) // 255
            if len(occupied) <= 1 or not step:
                continue
            table, n = [], step // 2
            for v in range(256):
                table.append(min(255, n // step))
                n += histogram[v]
            expected[..., c] = np.array(table)[x[..., c]]
        assert np.array_equal(applied("Equalize", None, IMAGES[name]), expected)

    @pytest.mark.parametrize("factor", [0.1, 1.0, 1.9])
    def test_enhancements_move_away_from_a_duller_image(self, name, factor):
        image = IMAGES[name]
        x = np.asarray(image).astype(float)
        gray = np.asarray(image.convert("L")).astype(float)[..., None]
        smooth = np.asarray(image.filter(ImageFilter.SMOOTH)).astype(float)
        dull = {"Color": gray, "Contrast": np.full(1, int(gray.mean() + 0.5)), "Brightness": 0.0, "Sharpness": smooth}
        for op, base in dull.items():
            expected = (base + factor * (x - base)).clip(0, 255)
            assert np.abs(applied(op, factor, image) - expected).max() <= 1, op
            assert np.array_equal(
                applied(op, factor, image), np.asarray(getattr(ImageEnhance, op)(image).enhance(factor))
            )


def bilinear(x, row, column):
    """The value at a fractional place given from the pixels' corners, 128 outside, as Pillow samples."""
    height, width, _ = x.shape
    if not (0 <= row < height and 0 <= column < width):
        return np.full(3, 128.0)
    row, column = row - 0.5, column - 0.5
    y, z = math.floor(row), math.floor(column)
    dy, dz = row - y, column - z

    def at(i, j):
        return x[min(max(i, 0), height - 1), min(max(j, 0), width - 1)]

    top = at(y, z) * (1 - dz) + at(y, z + 1) * dz
    return top * (1 - dy) + (at(y + 1, z) * (1 - dz) + at(y + 1, z + 1) * dz) * dy


def source_of(name, argument, width, height, row, column):
    """The place (row, column) that an operation's result takes a value from; a positive turn is counter-clockwise."""
    turn, dy, dx = math.radians(argument), row - height / 2, column - width / 2
    return {
        "Rotate": (
            height / 2 + math.sin(turn) * dx + math.cos(turn) * dy,
            width / 2 + math.cos(turn) * dx - math.sin(turn) * dy,
        ),
        "ShearX": (row, column + argument * row),
        "ShearY": (row + argument * column, column),
        "TranslateXRel": (row, column + argument * width),
        "TranslateYRel": (row + argument * height, column),
    }[name]


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("name", ["Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"])
def test_geometry_equals_bilinear_sampling_in_loops(name, sign):
    image = photograph(31, 23)
    x = np.asarray(image).astype(float)
    for magnitude in (4.2, 9.7):
        argument = ARGUMENTS[name](magnitude / 10, sign)
        result = applied(name, argument, image)
        gaps = []
        for row in range(image.height):
            for column in range(image.width):
                place = source_of(name, argument, image.width, image.height, row + 0.5, column + 0.5)
                gaps.append(np.abs(result[row, column] - bilinear(x, *place)).max())
        # A place that falls on the border itself may count as inside or outside.
        assert np.quantile(gaps, 0.97) <= 1.01, (name, argument, np.quantile(gaps, 0.97))


def test_bicubic_differs_and_fills_alike():
    image = photograph()
    for name in ("Rotate", "ShearX", "ShearY"):
        argument = ARGUMENTS[name](0.9, 1)
        linear, cubic = applied(name, argument, image), applied(name, argument, image, bicubic=True)
        assert 0 < np.abs(linear - cubic).mean() < 10
        assert np.array_equal((linear == 128).all(2)[::46, ::60], (cubic == 128).all(2)[::46, ::60])


def test_arguments_are_those_of_the_table():
    for m in MAGNITUDES:
        f = m / 10
        expected = {
            "Rotate": 30 * f,
            "Posterize": int(4 * f),
            "Solarize": min(256, int(256 * f)),
            "SolarizeAdd": min(128, int(110 * f)),
            **dict.fromkeys(("Color", "Contrast", "Brightness", "Sharpness"), 1.8 * f + 0.1),
            **dict.fromkeys(("ShearX", "ShearY"), 0.3 * f),
            **dict.fromkeys(("TranslateXRel", "TranslateYRel"), 0.45 * f),
        }
        signed = {"Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"}
        for name, value in expected.items():
            assert math.isclose(ARGUMENTS[name](f, 1), value)
            assert math.isclose(ARGUMENTS[name](f, -1), -value if name in signed else value)
    assert {name for name in NAMES if ARGUMENTS[name] is None} == {"AutoContrast", "Equalize", "Invert"}


def test_an_unknown_operation_is_refused():
    with pytest.raises(ValueError, match="Cutout"):
        apply_on_pil(Operation("Cutout"), photograph())


@pytest.mark.parametrize("name", NAMES)
def test_equals_timm(name):
    timm = pytest.importorskip("timm.data.auto_augment")
    assert set(timm._RAND_TRANSFORMS) == set(NAMES)
    for magnitude in MAGNITUDES[1:]:
        for sign in (-1, 1):
            for bicubic in (False, True):
                argument = ARGUMENTS[name] and ARGUMENTS[name](magnitude / 10, sign)
                resample = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
                to_arguments = timm.LEVEL_TO_ARG[name]
                theirs_argument = to_arguments(magnitude, {}) if to_arguments else ()
                if argument is not None:
                    # timm draws the sign in here.
                    assert math.isclose(abs(theirs_argument[0]), abs(argument)), (magnitude, theirs_argument)
                    theirs_argument = (argument,)
                for key, image in IMAGES.items():
                    theirs = timm.NAME_TO_OP[name](image, *theirs_argument, fillcolor=(128,) * 3, resample=resample)
                    ours = apply_on_pil(Operation(name, argument, bicubic), image)
                    assert np.array_equal(np.asarray(ours), np.asarray(theirs)), (name, magnitude, key)
