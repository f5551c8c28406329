"""The figure of the variance: its bars, and the paper's ratios beside them."""

import pytest

pytest.importorskip("matplotlib")

from moco.evaluation.variance import paper_recipes
from moco.tools.internal.variance_figure import LABELS, PAPER, draw


def results(ratios):
    return {
        name: {"variance": 4 * ratio, "standard_error": 0.5, "ratio": ratio}
        for name, ratio in zip(LABELS, ratios, strict=True)
    }


def test_a_bar_for_each_recipe_and_the_ratios_of_the_paper():
    assert list(LABELS) == list(paper_recipes())
    ratios = [1, 3.5, 1.2, 1.3, 1.5, 0.25, 0.5, 0.75]
    (axis,) = draw(results(ratios), "a $title_$").axes
    bars = sorted(axis.patches, key=lambda bar: bar.get_y())
    assert [bar.get_width() for bar in bars] == ratios and axis.yaxis_inverted()
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels[:2] == ["baseline   1.00", "MultiCrop, small views   3.50"] and labels[6] == "MeanEnc   0.50"
    (marks,) = [line for line in axis.lines if line.get_marker() == "D"]
    assert marks.get_xdata().tolist() == [38.0 / 8.2, 4.2 / 8.2] and marks.get_ydata().tolist() == [1, 6]
    assert [(text.get_text(), text.get_position()[0]) for text in axis.texts] == [
        ("4.63", PAPER["multicrop_small"]),
        ("0.51", PAPER["mean_encoding"]),
    ]
    names = [text.get_text() for text in axis.get_legend().get_texts()]
    assert sorted(names) == ["measured, with standard error", "the paper's: ImageNet, 800 epochs"]
    (segments,) = [c.get_segments() for c in axis.collections]
    assert [high[0] - low[0] for low, high in segments] == pytest.approx([2 * 0.5 / 4] * 8)
    assert axis.get_xlim()[1] > 38.0 / 8.2


def test_no_variance_at_all_and_a_large_one():
    nothing = {name: {"variance": 0.0, "standard_error": 0.0, "ratio": None} for name in LABELS}
    (axis,) = draw(nothing, "").axes
    assert [bar.get_width() for bar in axis.patches] == [0] * 8
    (axis,) = draw(results([1, 9, 1, 1, 1, 1, 1, 1]), "").axes
    assert axis.get_xlim()[1] > 9
