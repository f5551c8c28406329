"""study.png: the points, the words, and labels that cover nothing."""

import itertools

import pytest

pytest.importorskip("matplotlib")

from PIL import Image

from moco.engine.design_flags import DESIGNS
from moco.tools.internal.study_figure import CLAIM, MARKERS, draw, limits, write
from moco.tools.internal.study_table import Point
from moco.views.augmentation_recipes import SIDES


def points(deviation, spread=1.0):
    """15 Points, those on both sides with equal variances, as in a study."""
    signs, found = {"source": 1, "target": -1, "both": 0}, []
    for i, (design, side) in enumerate(itertools.product(DESIGNS, SIDES)):
        found.append(Point(design, side, signs[side] * (i + 1) * 0.9, spread * (i * 7 % 15 - 6) / 3, deviation, 3))
    return found


@pytest.mark.parametrize("deviation, spread", [(0.4, 1.0), (None, 1.0), (0.1, 0.2)])
def test_labels_cover_nothing(deviation, spread):
    given = points(deviation, spread)
    if spread < 1:  # a far one makes the others a crowd
        given = [given[0]._replace(variance=40.0, gain=9.0), *given[1:]]
    (axis,) = draw(given).axes
    boxes = {text.get_text(): text.get_window_extent() for text in axis.texts}
    assert boxes.keys() >= {f"{DESIGNS[point.design].title}, {point.side}" for point in given}
    boxes["legend"] = axis.get_legend().get_window_extent()
    for (one, box), (other, its) in itertools.combinations(boxes.items(), 2):
        assert not box.padded(-1).overlaps(its.padded(-1)), (one, other)
    for point in given:
        x, y = axis.transData.transform((point.variance, point.gain))
        assert not [name for name, box in boxes.items() if box.contains(x, y)], point
    assert all(axis.bbox.padded(1).fully_containsx(box.x0) for box in boxes.values())


def test_points_and_words():
    given = points(0.5)
    (axis,) = draw(given).axes
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
    names = [text.get_text() for text in axis.get_legend().get_texts()]
    assert names == ["on the source", "on the target", "on both sides"]
    assert "standard deviation over 3 seeds" in axis.get_ylabel()


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
