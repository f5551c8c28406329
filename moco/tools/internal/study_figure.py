"""study.png: the gain of each design on each side against the difference of the two sides' variances."""

import itertools
import math

import matplotlib.style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from moco.engine.checkpoint_atomic_write import save
from moco.engine.design_flags import DESIGNS
from moco.tools.internal.curve_figure import COLOURS, GREY

MARKERS = {"source": "o", "target": "s", "both": "D"}
GREEN = "#009E73"
CLAIM = "the paper's claim: more variance in the source\nthan in the target helps"
REVERSE = "its reverse: less variance in the source\nthan in the target hurts"
DISTANCES = (11, 18, 28, 42, 60, 80, 105, 135)  # from a point to its label, in pixels; the first free place is taken
ANGLES = 16  # directions that are tried at each distance


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
    axis.fill_between((0, right), 0, high, color=GREEN, alpha=0.08, linewidth=0, zorder=0)
    axis.fill_between((left, 0), low, 0, color=GREEN, alpha=0.08, linewidth=0, zorder=0)
    look = {"transform": axis.transAxes, "fontsize": 9, "color": GREEN, "style": "italic"}
    claims = [axis.text(0.99, 0.985, CLAIM, ha="right", va="top", **look)]
    claims.append(axis.text(0.01, 0.015, REVERSE, ha="left", va="bottom", **look))
    colours = dict(zip(DESIGNS, COLOURS, strict=False))
    for point in points:
        style = {"color": colours[point.design], "marker": MARKERS[point.side], "markersize": 7, "mec": "white"}
        axis.errorbar(point.variance, point.gain, yerr=point.deviation, capsize=3, elinewidth=1, **style)
    seeds = sorted({point.seeds for point in points})
    number = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    over = "1 seed" if number == "1" else f"mean ± standard deviation over {number} seeds"
    axis.set_ylabel(f"gain over the baseline in points\n(logistic regression, {over})", fontsize=9)
    words = "variance of the source's encodings minus the target's, in hundredths, by the baseline's encoder"
    axis.set_xlabel(words, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    sides = {"source": "on the source", "target": "on the target", "both": "on both sides"}
    marks = [Line2D([], [], color=GREY, marker=MARKERS[side], linestyle="none", label=sides[side]) for side in sides]
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
    axis.legend(handles=marks, ncols=3, frameon=False, fontsize=9, **place)
    zero = axis.transData.transform((0, 0))
    lines = [Bbox([(axis.bbox.x0, zero[1] - 1), (axis.bbox.x1, zero[1] + 1)])]
    lines.append(Bbox([(zero[0] - 1, axis.bbox.y0), (zero[0] + 1, axis.bbox.y1)]))
    label(axis, points, colours, [*lines, *(text.get_window_extent() for text in claims)])
    return figure


def limits(points):
    """The limits of both axes: (left, right), (low, high). Zero lies within, so that all quadrants are seen."""
    reach = 1.25 * max(abs(point.variance) for point in points) or 1
    ends = [point.gain + sign * (point.deviation or 0) for point in points for sign in (-1, 1)]
    low, high = min(0, *ends), max(0, *ends)
    margin = 0.17 * (high - low) or 1  # has room for the words in the quadrants
    return (-reach, reach), (low - margin, high + margin)


def label(axis, points, colours, taken):
    """Names each point beside it, where it covers nothing; a line leads to a name that is farther away.

    Args:
        axis: with its final limits. colours: of the designs, a dict. taken: list of Bbox in pixels to leave free.
    """
    places = [axis.transData.transform((point.variance, point.gain)) for point in points]
    for point, (x, y) in zip(points, places, strict=True):
        ends = [axis.transData.transform((0, point.gain + sign * (point.deviation or 0)))[1] for sign in (-1, 1)]
        taken = [*taken, Bbox([(x - 7, min(y - 7, ends[0])), (x + 7, max(y + 7, ends[1]))])]
    for point, (x, y) in zip(points, places, strict=True):
        words = f"{DESIGNS[point.design].title}, {point.side}"
        text = axis.text(0, 0, words, fontsize=8, color=colours[point.design], transform=None)
        size = text.get_window_extent()
        box, distance = free_box(x, y, size.width, size.height, taken, axis.bbox)
        text.set_position((box.x0, box.y0 - size.y0))
        taken.append(box)
        if distance > DISTANCES[1]:
            ends = [min(max(x, box.x0), box.x1), min(max(y, box.y0), box.y1)]
            line = Line2D([x, ends[0]], [y, ends[1]], color=colours[point.design], linewidth=0.5, transform=None)
            axis.add_artist(line)


def free_box(x, y, width, height, taken, inside):
    """The nearest box to (x, y) that covers nothing taken and stays inside, or that covers least; and its distance."""
    least, found = math.inf, None
    for distance, turn in itertools.product(DISTANCES, range(ANGLES)):
        cos, sin = (function(2 * math.pi * turn / ANGLES) for function in (math.cos, math.sin))
        left, bottom = x + distance * cos + (cos - 1) / 2 * width, y + distance * sin + (sin - 1) / 2 * height
        box = Bbox.from_bounds(left, bottom, width, height)
        cost = width * height - overlap(box, inside) + sum(overlap(box, other) for other in taken)
        if round(cost) < least:
            least, found = round(cost), (box, distance)
        if least == 0:
            break
    return found


def overlap(one, other):
    """The area that two Bbox have in common."""
    (left, bottom), (right, top) = one.min, one.max
    width = min(right, other.x1) - max(left, other.x0)
    return max(0, width) * max(0, min(top, other.y1) - max(bottom, other.y0))
