"""study.png: the points, none of which hides another, the words and the legends."""

import itertools

import pytest

pytest.importorskip("matplotlib")

import numpy as np
from matplotlib.transforms import Bbox
from PIL import Image

from moco.engine.design_flags import DESIGNS
from moco.tools.internal.study_figure import CLAIM, LOOKS, MARKERS, REVERSE, draw, limits, write
from moco.tools.internal.study_table import Point
from moco.views.augmentation_recipes import SIDES


def points(deviation):
    """15 Points, those on both sides with equal variances, as in a study."""
    signs, found = {"source": 1, "target": -1, "both": 0}, []
    for i, (design, side) in enumerate(itertools.product(DESIGNS, SIDES)):
        found.append(Point(design, side, signs[side] * (i + 1) * 0.9, (i * 7 % 15 - 6) / 3, deviation, 3))
    return found


@pytest.mark.parametrize("deviation", [None, 0.5])
@pytest.mark.parametrize("side", SIDES)
def test_equal_points_do_not_hide_one_another(side, deviation):
    figure = draw([Point(design, side, 0.0, 1.0, deviation, 3) for design in reversed(DESIGNS)])
    figure.canvas.draw()
    left, bottom, width, height = (round(value) for value in figure.axes[0].bbox.bounds)
    pixels = np.asarray(figure.canvas.buffer_rgba())[::-1][bottom : bottom + height, left : left + width, :3]
    for design, (colour, _) in LOOKS.items():
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (pixels == rgb).all(-1).sum() >= 10, design


@pytest.mark.parametrize("deviation", [0.4, None])
def test_the_claims_cover_nothing(deviation):
    given = points(deviation)
    figure = draw(given)
    (axis,) = figure.axes
    boxes = {text.get_text(): text.get_window_extent() for text in axis.texts}
    assert boxes.keys() == {CLAIM, REVERSE}
    for point in given:
        x, low = axis.transData.transform((point.variance, point.gain - (deviation or 0)))
        high = axis.transData.transform((0, point.gain + (deviation or 0)))[1]
        place = Bbox([(x - 10, low - 10), (x + 10, high + 10)])
        assert not [name for name, box in boxes.items() if box.overlaps(place)], point
    one, other = (legend.get_window_extent() for legend in figure.legends)
    assert one.x1 < other.x0 and other.x1 <= figure.bbox.x1 and min(one.y0, other.y0) >= axis.bbox.y1


def test_points_and_words():
    given = points(0.5)
    figure = draw(given)
    (axis,) = figure.axes
    lines = [c.lines[0] for c in axis.containers]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in lines] == [(p.variance, p.gain) for p in given]
    assert [line.get_marker() for line in lines] == [MARKERS[p.side] for p in given]
    colours = {p.design: line.get_color() for p, line in zip(given, lines, strict=True)}
    assert len(set(colours.values())) == 5
    assert [line.get_color() for line in lines] == [colours[p.design] for p in given]
    (segments,) = {len(c.lines[2][0].get_segments()) for c in axis.containers}
    assert segments == 1  # an error bar each
    (claim,) = [text for text in axis.texts if text.get_text() == CLAIM]
    x, y = axis.transData.inverted().transform(claim.get_window_extent().get_points().mean(0))
    assert x > 0 and y > 0  # the words stand in their quadrant
    names, titles = ([text.get_text() for text in legend.get_texts()] for legend in figure.legends)
    assert names == ["on the source", "on the target", "on both sides"]
    assert titles == [design.title for design in DESIGNS.values()]
    assert "standard deviation over 3 seeds" in axis.get_ylabel()


def test_the_legends_have_only_what_is_there():
    figure = draw([Point("scalemix", "target", 1.0, 2.0, None, 1), Point("asym_bn", "target", 1.0, 2.0, None, 1)])
    words = [[text.get_text() for text in legend.get_texts()] for legend in figure.legends]
    assert words == [["on the target"], ["ScaleMix", "AsymBN"]]
    colours = [line.get_color() for line in figure.legends[1].get_lines()]
    assert colours == [LOOKS["scalemix"][0], LOOKS["asym_bn"][0]]


@pytest.mark.parametrize(
    "seeds, words",
    [([1, 1], "logistic regression, 1 seed)"), ([2, 3], "over 2 to 3 seeds"), ([1, 3], "over 1 to 3 seeds")],
)
def test_the_number_of_seeds(seeds, words):
    given = [Point("multicrop", side, 1.0, 2.0, None, n) for side, n in zip(SIDES, seeds, strict=False)]
    assert words in draw(given).axes[0].get_ylabel()


def test_limits_have_all_quadrants_and_all_error_bars():
    assert limits([Point("multicrop", "source", 4.0, 2.0, 0.5, 3)])[0] == (-5.0, 5.0)
    for gain in (2.0, -2.0):
        low, high = limits([Point("multicrop", "source", -4.0, gain, 0.5, 3)])[1]
        assert low < min(0, gain - 0.5) and high > max(0, gain + 0.5)
    (left, right), (low, high) = limits([Point("multicrop", "both", 0.0, 0.0, None, 1)])
    assert left < 0 < right and low < 0 < high


def test_the_file(tmp_path):
    write(points(None)[:1], str(tmp_path / "study.png"))
    with Image.open(tmp_path / "study.png") as image:
        assert image.size == (1080, 780)
    assert [path.name for path in tmp_path.iterdir()] == ["study.png"]
