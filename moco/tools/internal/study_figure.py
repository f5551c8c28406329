"""study.png: the gain of each design on each side against the difference of the two sides' variances."""

import matplotlib.style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from moco.engine.checkpoint_atomic_write import save
from moco.engine.design_flags import DESIGNS, ON
from moco.tools.internal.curve_figure import COLOURS, GREY

MARKERS = {"source": "o", "target": "s", "both": "D"}
CLAIM = "the paper's claim: more variance in the source\nthan in the target helps"
REVERSE = "its reverse: less variance in the source\nthan in the target hurts"
LOOKS = {name: (colour, 6 + 3 * i) for i, (name, colour) in enumerate(zip(DESIGNS, COLOURS, strict=False))}


def write(points, path):
    """Draws the figure into a file, whatever the user's matplotlibrc says; the file is always complete."""
    with matplotlib.style.context("default"):
        save(draw(points), path, lambda figure, file: figure.savefig(file, format="png"))


def draw(points):
    """Draws the figure.

    Args:
        points: list of Points, at least one.

    Returns:
        A matplotlib Figure of 9 x 6.5 inches at 120 dpi.
    """
    figure = Figure((9, 6.5), dpi=120)
    FigureCanvasAgg(figure)
    axis = figure.add_axes((0.09, 0.09, 0.89, 0.85))
    (left, right), (low, high) = limits(points)
    axis.set(xlim=(left, right), ylim=(low, high))
    axis.axhline(0, color=GREY, linewidth=1, zorder=0)
    axis.axvline(0, color=GREY, linewidth=1, zorder=0)
    axis.fill_between((0, right), 0, high, color=GREY, alpha=0.1, linewidth=0, zorder=0)
    axis.fill_between((left, 0), low, 0, color=GREY, alpha=0.1, linewidth=0, zorder=0)
    look = {"transform": axis.transAxes, "fontsize": 9, "color": GREY, "style": "italic"}
    axis.text(0.99, 0.985, CLAIM, ha="right", va="top", **look)
    axis.text(0.01, 0.015, REVERSE, ha="left", va="bottom", **look)
    for point in points:
        style = marker(*LOOKS[point.design], MARKERS[point.side])
        bars = {"elinewidth": 1, "capsize": style["markersize"] / 2}
        axis.errorbar(point.variance, point.gain, yerr=point.deviation, xerr=point.variance_deviation, **style, **bars)
    seeds = sorted({point.seeds for point in points})
    number = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    over = "1 seed" if number == "1" else f"mean ± standard deviation over {number} seeds"
    axis.set_ylabel(f"gain over the baseline in points\n(logistic regression, {over})", fontsize=9)
    words = "variance of the source's encodings minus the target's, in hundredths, by the baseline's encoder"
    axis.set_xlabel(words, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    seen = {word for point in points for word in (point.design, point.side)}
    kinds = [[marker(GREY, 8, MARKERS[side], label=ON[side]) for side in ON if side in seen]]
    kinds.append([marker(*LOOKS[name], "o", label=DESIGNS[name].title) for name in LOOKS if name in seen])
    for kind, side in zip(kinds, ("left", "right"), strict=True):
        lines = [Line2D([], [], linestyle="none", **style) for style in kind]
        place = {"loc": f"upper {side}", "ncols": len(kind), "columnspacing": 1.2, "handlelength": 1.5}
        figure.legend(handles=lines, frameon=False, fontsize=9, **place)
    return figure


def marker(colour, size, shape, **more):
    """The options of matplotlib for an open marker. Each design has its own size, so that none hides another."""
    return {"color": colour, "marker": shape, "markersize": size, "fillstyle": "none", "markeredgewidth": 1.3, **more}


def limits(points):
    """The limits of both axes: (left, right), (low, high). Zero lies within, so that all quadrants are seen."""
    reach = 1.25 * max(abs(point.variance) + (point.variance_deviation or 0) for point in points) or 1
    ends = [point.gain + sign * (point.deviation or 0) for point in points for sign in (-1, 1)]
    low, high = min(0, *ends), max(0, *ends)
    margin = 0.17 * (high - low) or 1  # has room for the words in the quadrants
    return (-reach, reach), (low - margin, high + margin)
