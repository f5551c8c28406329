"""table.md from results that nobody measured: means, deviations, differences, the paper's figures, what is not run."""

import statistics

import pytest

from moco.engine.design_flags import DESIGNS, Design
from moco.tools.internal.study_table import NOTES, PAPER, Point, points_of, table
from tests.tools.internal.study_parts import result

RESULTS = [
    result("random", 0, 30.0, 20.0),
    result("baseline", 0, 60.0, 50.0, (8.0, 8.0)),
    result("baseline", 1, 62.0, 51.0, (8.5, 8.5)),
    result("baseline", 2, 61.5, 52.0, (9.0, 9.0)),
    result("multicrop", 0, 63.0, 49.0, (25.0, 10.0)),
    result("multicrop", 1, 67.0, 52.0, (26.0, 10.5)),
    result("multicrop", 2, 64.0, 54.0, (27.0, 11.0)),
    result("multicrop", 7, 99.0, 99.0),  # there is no baseline with this seed, and no variance
    result("asym_bn:source", 1, 61.0, 50.5, (7.5, 8.5)),
    result("multicrop+mean_encoding", 0, 66.0, 50.0),
]


def cells(text, row, section=None):
    """The cells of the first row that begins so, after the line `section`."""
    lines = text[text.index(section) if section else 0 :].splitlines()
    (line,) = [line for line in lines if line.startswith(f"| {row} |")][:1]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_gains_by_design_and_side():
    text = table(RESULTS)
    gains = [3.0, 5.0, 2.5]
    mean, deviation = f"{sum(gains) / 3:+.1f}", f"{statistics.stdev(gains):.1f}"
    by_regression, by_knn = "## Gain over the baseline by logistic regression", "## Gain over the baseline by kNN"
    sides = ["on the source", "on the target", "on both sides"]
    assert cells(text, "design", by_regression) == [*sides, "source minus target", "the paper"]
    expected = [f"**{mean} ± {deviation} (n = 3)**", "not run", "not run", "-", "+4.1 on the source"]
    assert cells(text, "MultiCrop", by_regression) == expected
    assert cells(text, "MultiCrop", by_knn)[0] == "**+0.7 ± 1.5 (n = 3)**"  # of -1, 1 and 2
    expected = ["-1.0 (n = 1)", "**not run**", "not run", "-", "+0.5 on the target"]
    assert cells(text, "AsymBN", by_regression) == expected
    assert cells(text, "MeanEnc", by_regression)[-1] == "+1.9 on the target"
    assert "main_lincls" not in text and text.startswith("# Study\n\n## Gain") and text.endswith(NOTES)


def test_the_two_sides_are_compared_seed_by_seed():
    target = [result("multicrop:target", 1, 60.0, 55.0), result("multicrop:target", 7, 90.0, 99.0)]
    text = table([*RESULTS, *target])  # with seeds 0 and 2, it is on the source only
    assert cells(text, "MultiCrop")[3] == f"+8.0 ± {statistics.stdev([7, 9]):.1f} (n = 2)"  # without a baseline, too
    assert cells(text, "MultiCrop", "## Gain over the baseline by kNN")[3].startswith("-1.5 ± ")  # of -3 and 0


def test_the_papers_figures_are_those_of_its_table():
    top1 = {"multicrop": 69.9, "scalemix": 67.6, "asym_aug": 67.2, "asym_bn": 66.3, "mean_encoding": 67.7}
    assert pytest.approx({name: value - 65.8 for name, value in top1.items()}) == PAPER


def test_all_runs():
    text = table(RESULTS)
    head = ["n", "logistic regression", "gain", "kNN", "gain"]
    assert cells(text, "run", "## All") == [*head, "variance of the source", "of the target", "difference"]
    assert cells(text, "`random`") == ["1", "30.0", "-30.0", "20.0", "-30.0", "-", "-", "-"]
    deviation = statistics.stdev([60, 62, 61.5])
    base = ["3", f"61.2 ± {deviation:.1f}", "-", "51.0 ± 1.0", "-"]
    assert cells(text, "`baseline`") == [*base, "8.50 ± 0.50", "8.50 ± 0.50", "+0.00 ± 0.00"]
    assert cells(text, "`multicrop`")[0] == "4"
    assert cells(text, "`multicrop`")[-3:] == ["26.00 ± 1.00", "10.50 ± 0.50", "+15.50 ± 0.50"]
    assert cells(text, "`multicrop+mean_encoding`") == ["1", "66.0", "+6.0", "50.0", "+0.0", "-", "-", "-"]


def test_linear_classification_has_a_table_if_it_was_measured():
    results = [result("baseline", 0, 60.0, linear_acc1=70.0), result("scalemix:both", 0, 60.0, linear_acc1=68.5)]
    text = table([*results, result("baseline", 1, 60.0)])
    section = "## Gain over the baseline by `main_lincls.py`"
    assert cells(text, "ScaleMix", section)[2] == "-1.5 (n = 1)"
    assert cells(text, "`baseline`", "## All")[5:7] == ["70.0", "-"]


def test_a_run_without_a_baseline_is_not_one_that_was_not_run():
    results = [
        result("baseline", 0, 60.0),
        result("multicrop", 1, 62.0, linear_acc1=70.0),
        result("scalemix", 0, 61.0),
    ]
    text = table(results)
    assert cells(text, "MultiCrop") == ["**no baseline**", "not run", "not run", "-", "+4.1 on the source"]
    by_lincls = "## Gain over the baseline by `main_lincls.py`"
    assert cells(text, "MultiCrop", by_lincls)[0] == "**no baseline**"
    assert cells(text, "ScaleMix")[0] == "**+1.0 (n = 1)**"
    assert cells(text, "ScaleMix", by_lincls)[0] == "**not run**"  # there is no result of main_lincls.py
    assert '"no baseline": there is a result, but none of the baseline with the same seed.' in " ".join(text.split())


def test_a_design_of_ones_own_has_a_row_without_a_figure_of_the_paper(monkeypatch):
    monkeypatch.setitem(DESIGNS, "cutmix", Design("CutMix", "source"))
    assert cells(table(RESULTS), "CutMix") == ["**not run**", "not run", "not run", "-", "-"]


def test_no_result():
    assert table([]).startswith("# Study\n\n## All runs\n\n| run | n | variance")


def test_points_of_the_picture():
    gains = [3.0, 5.0, 2.5]
    assert points_of(RESULTS) == [
        Point("multicrop", "source", 15.5, pytest.approx(3.5), pytest.approx(statistics.stdev(gains)), 3, 0.5),
        Point("asym_bn", "source", -1.0, -1.0, None, 1),
    ]
    assert points_of(RESULTS[4:]) == []  # without a baseline
    assert points_of([]) == []
