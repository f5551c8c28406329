"""The figure of the curves of some runs: eight or nine panels and a legend, drawn with matplotlib."""

from dataclasses import dataclass
from itertools import repeat

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.lib.stride_tricks import sliding_window_view

from moco.engine.design_flags import designs_of, in_words
from moco.engine.result_changing_options import FREE, LABELS
from moco.loss import blind_guess

# Okabe and Ito's colours, which colour-blind people can tell apart. Their yellow is too pale for a line on white. Wine
# (Tol) takes its place; it is at least as far from the others under each kind of colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255")
STYLES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))  # one per eight runs
GREY = "#707070"
# Of the curves of one run in a panel.
LOOKS = tuple({"linewidth": width, "alpha": alpha} for alpha in (1, 0.4) for width in (1.5, 0.8))
MANY, FEW = 100, 30  # a curve of more points is smoothed; a curve of fewer points gets markers
MOST = 1000  # points of a curve; a longer one is thinned out
CLEAR = 3  # runs whose unsmoothed curves can be told apart
HEIGHT, WIDTH = 205, 46  # what the legend has room for: points of height, and characters in a line
GAP = 0.4  # between two entries of the legend, as a share of the size of its letters


@dataclass(frozen=True)
class Panel:
    """What a panel of the figure shows.

    Args:
        title: the figure that is drawn.
        curves: (kind, key) of each curve of a run, as `LoggedRun.curve` takes them; their looks are LOOKS.
        both: whether to draw all of these curves; otherwise only the first one of which the run has figures.
        factor: by which the figures are multiplied.
        smooth: np.ma.mean or np.ma.median over a running window, or None.
        missing: what the panel says if no run has such figures.
        contains: values that the axis contains in any case.
    """

    title: str
    curves: tuple
    both: bool = False
    factor: float = 1
    smooth: object = None
    missing: str = "measured only in pretraining"
    contains: tuple = (0,)


def panels(runs):
    """The panels for these runs, a list: eight, and that of the variance if one of them has measured it."""
    pretraining, classification = any(run.pretraining for run in runs), any(not run.pretraining for run in runs)
    accuracy = " or ".join(["kNN"] * pretraining + ["Validation"] * classification)
    missing = "not measured; --knn-every" if pretraining else "not measured yet"
    mean, sides = np.ma.mean, ("source", "target", "source_small", "target_small")
    variance = tuple(("epoch", f"variance_{side}") for side in sides)
    title = "Variance / 100: source (thick), target (thin), small views (faint)"
    measured = any(len(run.curve(*which)[1]) for run in runs for which in variance)
    return [
        Panel("Loss", (("step", "loss"),), smooth=mean, contains=()),
        Panel("Acc@1, %", (("step", "acc1"),), smooth=mean),
        Panel(f"{accuracy} Acc@1, %", (("epoch", "knn_acc1"), ("epoch", "val_acc1")), missing=missing),
        Panel("Std of the queries (0: collapsed)", (("step", "std"),), smooth=mean, contains=(0, 0.1)),
        Panel("Learning rate", (("step", "lr"),)),
        Panel(
            "Similarity to own key (thick) and queue (thin)",
            (("step", "positive"), ("step", "negative")),
            both=True,
            smooth=mean,
            contains=(),
        ),
        Panel("Images per second, running median", (("step", "images_per_second"),), smooth=np.ma.median),
        # A step's figure is the share since the start of its epoch, so it is high in the first steps of each epoch.
        Panel("Wait for data, % of an epoch", (("epoch", "wait"), ("step", "wait")), factor=100, contains=(0, 1)),
        *[Panel(title, variance, both=True)] * measured,
    ]


def draw(runs, names):
    """Draws the curves.

    Args:
        runs: list of LoggedRun. names: what the legend calls each run.

    Returns:
        A matplotlib Figure of 12 x 9 inches at 100 dpi; with nine panels, 20 x 6. Its axes are the panels and, last,
        the legend.
    """
    shown = panels(runs)
    rows, columns = (3, 3) if len(shown) == 8 else (2, 5)
    figure = Figure((4 * columns, 3 * rows), dpi=100, layout="constrained")
    figure.get_layout_engine().set(h_pad=0.08, w_pad=0.08)
    figure.supxlabel("epochs", fontsize=10)
    axes = figure.subplots(rows, columns, sharex=True).flatten()
    styles = styles_for(len(runs))
    faint = False
    for axis, panel in zip(axes, shown, strict=False):
        for run, style in zip(runs, styles, strict=True):
            looks = LOOKS if panel.both else repeat(LOOKS[0])
            curves = [(*run.curve(*which), look) for which, look in zip(panel.curves, looks, strict=False)]
            curves = [curve for curve in curves if not np.isnan(curve[1]).all()]
            for x, y, look in curves if panel.both else curves[:1]:
                if len(runs) <= CLEAR and is_noisy(y, panel.smooth):
                    _draw_faint(axis, x, y * panel.factor, style["color"])
                    faint = True
                _draw_curve(axis, x, y * panel.factor, panel.smooth, **look, **style)
        _finish(axis, panel, runs, styles)
    _draw_guesses(axes[0], runs)
    _draw_legend(axes[-1], runs, names, styles, faint)
    return figure


def styles_for(n):
    """Colours and line styles for n runs, a list of dicts; from 33 runs on they are used again."""
    return [{"color": COLOURS[i % 8], "linestyle": STYLES[i // 8 % 4]} for i in range(n)]


def is_noisy(y, smooth):
    """Whether a curve is drawn smoothed, and faintly as it is."""
    return smooth is np.ma.mean and len(y) > MANY


def _draw_faint(axis, x, y, colour):
    """Draws a curve as it is, in a faint colour. Of a long one, it draws the lowest and the highest of every few."""
    x, y = (blocks(values, -(-len(values) // MOST)) for values in (x, y))
    extremes = np.ma.stack((y.min(1), y.max(1)), 1).ravel()
    axis.plot(np.repeat(x.mean(1), 2), extremes, color=colour, linewidth=0.5, alpha=0.25)


def _draw_curve(axis, x, y, smooth, **style):
    """Draws a curve, thinned out and smoothed where that helps; with markers if it has few points."""
    noisy = is_noisy(y, smooth)
    x, y = (blocks(values, -(-len(values) // MOST)) for values in (x, y))
    x, y = x.mean(1), (smooth or np.ma.mean)(y, 1)
    if noisy or smooth is np.ma.median:
        y = smoothed(y, max(9, len(y) // 50), smooth)
    axis.plot(x, y, marker="o" if len(y) < FEW else None, markersize=3.5, **style)


def blocks(values, size):
    """Arranges N values in rows of `size`, a masked array. NaN is masked, and so is what the last row lacks."""
    padded = np.concatenate((values, np.full(-len(values) % size, np.nan)))
    return np.ma.masked_invalid(padded.reshape(-1, size))


def smoothed(y, window, average):
    """Averages over a running window, which is cut off at both ends.

    Args:
        y: N values, a masked array; a masked value does not count for the others. window: its length; an even one
            becomes the next odd one. average: np.ma.mean or np.ma.median.

    Returns:
        N values, masked where `y` is.
    """
    half = window // 2
    gap = np.full(half, np.nan)
    windows = sliding_window_view(np.concatenate((gap, np.ma.filled(y, np.nan), gap)), 2 * half + 1)
    return np.ma.array(average(np.ma.masked_invalid(windows), 1), mask=np.ma.getmaskarray(y))


def _finish(axis, panel, runs, styles):
    """Adds what is no curve: the title, limits, and marks of resumes; or words, if there is no curve."""
    axis.set_title(panel.title, fontsize=10)
    axis.tick_params(labelsize=8, labelbottom=True)
    axis.spines[["top", "right"]].set_visible(False)
    if not axis.lines:
        axis.text(0.5, 0.5, panel.missing, transform=axis.transAxes, ha="center", va="center", color=GREY)
        axis.set_yticks([])
        return
    axis.grid(alpha=0.3, linewidth=0.5)
    if panel.contains:
        axis.update_datalim([(0, y) for y in panel.contains], updatex=False)
        axis.autoscale_view()
    for run, style in zip(runs, styles, strict=True):
        if run.resumes:
            at_the_bottom = {"transform": axis.get_xaxis_transform(), "clip_on": False, "zorder": 3}
            axis.plot(run.resumes, [0] * len(run.resumes), "^", color=style["color"], markersize=5, **at_the_bottom)


def _draw_guesses(axis, runs):
    """Draws a dashed line at the loss of a blind guess, one for each different value."""
    for K, twice in sorted({_guess_of(run) for run in runs if run.pretraining}):
        guess = blind_guess(K, twice)
        axis.axhline(guess, color=GREY, linestyle="--", linewidth=1)
        words = f"blind guess: {'2 ' * twice}ln({K} + 1) = {guess:.2f}"
        look = {"fontsize": 7, "zorder": 3, "bbox": {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1}}
        axis.text(0.99, guess, words, transform=axis.get_yaxis_transform(), ha="right", va="bottom", **look)


def _guess_of(run):
    return run.options["moco_k"], "multicrop" in designs_of(run.options)


def _draw_legend(axis, runs, names, styles, faint):
    """Lists the runs, and what the marks mean. The more runs there are, the less it says about each."""
    n, columns = len(runs), 1 if len(runs) <= 16 else 2
    lines, different = 3 if n <= 4 else 2 if n <= 8 else 1, differing(runs)
    labels = [
        _label(run, name, lines, different) if columns == 1 else shortened(name, WIDTH // 2 - 3)
        for run, name in zip(runs, names, strict=True)
    ]
    handles = [Line2D([], [], linewidth=1.5, **style) for style in styles]
    if any(run.resumes for run in runs):
        handles.append(Line2D([], [], color=GREY, marker="^", linestyle="none", markersize=5))
        labels.append("resumed")
    if faint:
        handles.append(Line2D([], [], color=GREY, linewidth=0.5))
        labels.append("not smoothed")
    rows = sum(1.2 * (label.count("\n") + 1) + GAP for label in labels) / columns
    axis.axis("off")
    place = {"loc": "upper left", "bbox_to_anchor": (-0.08, 1.05), "ncols": columns}
    look = {"fontsize": min(8, HEIGHT / rows), "frameon": False, "labelspacing": GAP, "columnspacing": 1}
    legend = axis.legend(handles, ["-"] * len(labels), **place, **look)
    legend.set_in_layout(False)  # a long text must not make the panels smaller
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_parse_math(False)  # a dollar sign in a name is only that
        text.set_text(label)


def differing(runs):
    """The options in which the runs differ, of those that are numbers and change a result; without their seed."""
    known = FREE | LABELS.keys() | {"seed"}
    names = [name for name, value in runs[0].options.items() if type(value) in (int, float) and name not in known]
    return [name for name in names if len({str(run.options.get(name)) for run in runs}) > 1]


def _label(run, name, lines, different):
    """The run in 1 to 3 lines; `different` are the options that tell it apart."""
    options, designs = run.options, run.kind
    if run.pretraining:
        designs = in_words(designs_of(options)) or "MoCo v2 baseline"
    designs = ", ".join([designs, *(f"{option} {options.get(option)}" for option in different)])
    if lines == 1:
        name = shortened(name, WIDTH // 2 - 2)
        return f"{name}: {shortened(designs, WIDTH - len(name) - 2)}"
    more = f"{options.get('arch')}, batch {options['total_batch']}, run {run.id}"
    return "\n".join(shortened(line, WIDTH) for line in (name, designs, more)[:lines])


def shortened(text, width):
    """The text, without its middle if it is longer than `width`, and with "?" for what can't be printed."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    if len(text) <= width:
        return text
    head = width // 2
    return f"{text[:head]}…{text[head + 1 - width :]}"
