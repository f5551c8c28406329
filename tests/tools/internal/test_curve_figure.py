"""The figure of the curves: what its panels hold, how curves are smoothed, and what its legend says."""

import math

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from moco.tools.internal.curve_figure import COLOURS, blocks, draw, shortened, smoothed, styles_for
from moco.tools.internal.run_log import read_log
from tests.tools.internal.written_log import CLASSIFICATION, PRETRAINING, begin, small_run, steps

LOSS, ACC1, KNN, STD, LR, SIMILARITY, RATE, WAIT, LEGEND = range(9)


def figure_of(*folders, names=None):
    runs = [read_log(str(folder))[-1] for folder in folders]
    return draw(runs, names or [folder.name for folder in folders]).axes


def curves(axis, colour=COLOURS[0]):
    """The y of each curve of a colour, without the marks of resumes."""
    return [line.get_ydata() for line in axis.lines if line.get_color() == colour and line.get_marker() != "^"]


def texts(axis):
    return [text.get_text() for text in axis.texts]


def legend(axes):
    return [text.get_text() for text in axes[LEGEND].get_legend().get_texts()]


def test_one_run(tmp_path):
    axes = figure_of(small_run(tmp_path / "x", "a1", enable_multicrop=False, arch="resnet18"))
    assert [axis.get_title() for axis in axes] == [
        *("Loss", "Acc@1, %", "kNN Acc@1, %", "Std of the queries (0: collapsed)", "Learning rate"),
        *("Similarity to own key (thick) and queue (thin)", "Images per second, running median"),
        *("Wait for data, % of an epoch", ""),
    ]
    assert [len(curves(axis)) for axis in axes] == [1, 1, 0, 1, 1, 2, 1, 1, 0]
    values = {LOSS: 3.5, ACC1: 20, STD: 0.5, LR: 0.03, RATE: 16, WAIT: 25}
    assert {i: set(curves(axes[i])[0].tolist()) for i in values} == {i: {value} for i, value in values.items()}
    positive, negative = axes[SIMILARITY].lines
    assert positive.get_ydata()[0] == 0.6 and negative.get_ydata()[0] == 0.1
    assert positive.get_linewidth() > negative.get_linewidth()
    assert axes[LOSS].lines[0].get_xdata().tolist() == [i / 4 for i in range(8)]
    assert texts(axes[KNN]) == ["not measured; --knn-every"]
    assert legend(axes) == ["x\nMoCo v2 baseline\nresnet18, batch 8, run a1"]


@pytest.mark.parametrize("twice, words", [(False, "ln(64 + 1) = 4.17"), (True, "2 ln(64 + 1) = 8.35")])
def test_a_dashed_line_at_a_blind_guess(twice, words, tmp_path):
    axes = figure_of(small_run(tmp_path / "x", "a1", enable_multicrop=twice))
    (line,) = [line for line in axes[LOSS].lines if line.get_linestyle() == "--"]
    assert set(line.get_ydata()) == {math.log(65) * (1 + twice)}
    assert texts(axes[LOSS]) == [f"blind guess: {words}"]
    assert not any(line.get_linestyle() == "--" for axis in axes[1:] for line in axis.lines)


def test_eight_runs_have_eight_colours_and_their_designs(tmp_path):
    flags = ["multicrop", "scalemix", "asym_aug", "asym_bn", "mean_encoding"]
    designs = [{f"enable_{flag}": flag in flags[:i] for flag in flags} for i in range(8)]
    folders = [small_run(tmp_path / f"run{i}", f"a{i}", **designs[i]) for i in range(8)]
    axes = figure_of(*folders)
    assert [len(curves(axes[STD], colour)) for colour in COLOURS] == [1] * 8
    assert len(texts(axes[LOSS])) == 2  # with and without MultiCrop
    assert legend(axes)[:3] == ["run0\nMoCo v2 baseline", "run1\nMultiCrop", "run2\nMultiCrop, ScaleMix"]
    assert legend(axes)[7] == "run7\nMultiCrop, ScaleMix, AsymAug, AsymBN, MeanEnc"


def test_the_legend_names_the_options_in_which_runs_differ(tmp_path):
    options = {"lr": 0.5, "seed": 1, "workers": 1, "moco_m": 0.9}, {"lr": 1.0, "seed": 2, "workers": 2, "moco_m": 0.9}
    axes = figure_of(*[small_run(tmp_path / f"r{i}", f"a{i}", **options[i]) for i in range(2)])
    assert [label.split("\n")[1] for label in legend(axes)] == [f"MoCo v2 baseline, lr {lr}" for lr in (0.5, 1.0)]


@pytest.mark.parametrize("n", [9, 17])
def test_more_runs_have_other_line_styles(n, tmp_path):
    axes = figure_of(*[small_run(tmp_path / f"r{i}", "a1") for i in range(n)])
    assert len(axes[STD].lines) == n
    assert [line.get_linestyle() for line in axes[STD].lines[:9]] == ["-"] * 8 + ["--"]
    assert len({tuple(style.values()) for style in styles_for(32)}) == 32
    assert legend(axes)[0] == ("r0: MoCo v2 baseline" if n == 9 else "r0") and len(legend(axes)) == n


def test_names_stay_what_they_are_and_short(tmp_path):
    small_run(tmp_path, "a1")
    names = ["$a_$b$", "_under", "x" * 200, "a\nb\udcff"]
    axes = figure_of(*[tmp_path] * 4, names=names)
    first = [label.split("\n")[0] for label in legend(axes)]
    assert first == ["$a_$b$", "_under", "x" * 23 + "…" + "x" * 22, "a?b?"]
    assert not any(text.get_parse_math() for text in axes[LEGEND].get_legend().get_texts())


def test_resumes_are_marked_in_every_panel_with_curves(tmp_path):
    small_run(tmp_path, "a1")
    steps(begin(tmp_path, "a1", place=(1, 2), **PRETRAINING), 1, (2, 3), loss=1.0)
    axes = figure_of(tmp_path)
    for i, axis in enumerate(axes[:LEGEND]):
        marks = [line.get_xdata() for line in axis.lines if line.get_marker() == "^"]
        assert marks == ([] if i == KNN else [[1.5]])
    assert legend(axes)[1:] == ["resumed"]


def test_the_wait_is_that_of_whole_epochs_if_there_are_any(tmp_path):
    log = begin(tmp_path, "a1", **PRETRAINING)
    steps(log, 0, range(4), loss=1.0, wait=0.5)
    assert curves(figure_of(tmp_path)[WAIT])[0].tolist() == [50] * 4
    log.write("epoch", epoch=0, loss=1.0, wait=0.25)
    assert [y.tolist() for y in curves(figure_of(tmp_path)[WAIT])] == [[25]]


def test_linear_classification(tmp_path):
    log = begin(tmp_path / "probe", "b1", **CLASSIFICATION, arch="vgg")
    for epoch, val in enumerate((30.0, 40.0)):
        steps(log, epoch, range(5), loss=2.0, acc1=25.0, lr=0.1, seconds=1.0, wait=0.0)
        log.write("epoch", epoch=epoch, val_acc1=val)
    axes = figure_of(tmp_path / "probe")
    assert axes[KNN].get_title() == "Validation Acc@1, %" and curves(axes[KNN])[0].tolist() == [30, 40]
    assert not texts(axes[LOSS]) and len(axes[LOSS].lines) == 1
    assert texts(axes[STD]) == texts(axes[SIMILARITY]) == ["measured only in pretraining"]
    assert legend(axes) == ["probe\nlinear classification\nvgg, batch 8, run b1"]
    both = figure_of(tmp_path / "probe", small_run(tmp_path / "x", "a1"))
    assert both[KNN].get_title() == "kNN or Validation Acc@1, %" and len(both[STD].lines) == 1


def test_few_points_have_markers_and_many_are_smoothed_and_thinned_out(tmp_path):
    rng = np.random.default_rng(0)
    log = begin(tmp_path, "a1", images=9600, total_batch=8, moco_k=64)
    noise = rng.normal(3, 1, 1200)
    for step, loss in enumerate(noise):
        log.write("step", epoch=0, step=step, loss=loss, lr=0.03, seconds=60.0 if step % 50 == 0 else 0.5)
    log.write("epoch", epoch=0, knn_acc1=33.0)
    axes = figure_of(tmp_path)
    faint, smooth = curves(axes[LOSS])
    assert (faint.min(), faint.max()) == (noise.min(), noise.max()) and len(faint) <= 2000
    assert smooth.std() < 0.3 and abs(smooth.mean() - 3) < 0.1 and len(smooth) <= 1000
    assert set(curves(axes[RATE])[0].tolist()) == {16}  # no outlier is left
    (point,) = axes[KNN].lines
    assert point.get_marker() == "o" and axes[LOSS].lines[1].get_marker() == "None"
    assert legend(axes)[1:] == ["not smoothed"]
    assert len(curves(figure_of(*[tmp_path] * 4)[LOSS])) == 1  # faint curves of so many runs hide each other


@pytest.mark.parametrize("average, slow", [(np.ma.mean, np.nanmean), (np.ma.median, np.nanmedian)])
def test_a_running_average_against_loops(average, slow):
    y = np.random.default_rng(1).normal(size=40)
    y[[0, 7, 8, 9, 30]] = np.nan
    expected = [np.nan if np.isnan(y[i]) else slow(y[max(i - 2, 0) : i + 3]) for i in range(40)]
    found = smoothed(np.ma.masked_invalid(y), 5, average)
    np.testing.assert_allclose(found.filled(np.nan), expected)


def test_blocks():
    assert blocks(np.array([1, 2, np.nan, 4, 5]), 2).tolist() == [[1, 2], [None, 4], [5, None]]
    assert blocks(np.arange(3.0), 1).tolist() == [[0], [1], [2]]


@pytest.mark.parametrize("width", [5, 6])
def test_a_long_text_loses_its_middle(width):
    short = shortened("abcdefghi", width)
    assert short == {5: "ab…hi", 6: "abc…hi"}[width] and shortened("abcde", width) == "abcde"


def test_a_measured_variance_has_a_panel(tmp_path):
    log = begin(tmp_path / "x", "a1", **PRETRAINING)
    for epoch in range(2):
        steps(log, epoch, range(4), loss=1.0)
        log.write(
            "epoch", epoch=epoch, loss=1.0, variance_source=8.0 + epoch, variance_target=4.0, variance_target_small=5.0
        )
    for folders in ((tmp_path / "x",), (small_run(tmp_path / "y", "a2"), tmp_path / "x")):
        axes = figure_of(*folders)
        assert len(axes) == 10 and axes[8].get_title().startswith("Variance / 100: source")
        source, target, small = axes[8].lines
        assert source.get_ydata().tolist() == [8, 9] and target.get_ydata().tolist() == [4, 4]
        assert small.get_ydata().tolist() == [5, 5] and small.get_alpha() < target.get_alpha() == 1
        assert source.get_linewidth() > target.get_linewidth() == small.get_linewidth()
        assert len(axes[9].get_legend().get_texts()) == len(folders)
