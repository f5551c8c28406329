"""The figure of `moco.tools.variance`: a bar for each recipe, its variance as a ratio to the baseline's."""

import matplotlib.style
from matplotlib.figure import Figure

PAPER = {"multicrop_small": 38.0 / 8.2, "mean_encoding": 4.2 / 8.2}  # variances that the authors report, as ratios
PAPER_LABEL = "the paper's: ImageNet, 800 epochs"
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#707070"
LABELS = {
    "baseline": "baseline",
    "multicrop_small": "MultiCrop, small views",
    "multicrop_full": "MultiCrop, full-size views",
    "scalemix": "ScaleMix",
    "stronger": "AsymAug, stronger",
    "weaker": "AsymAug, weaker",
    "mean_encoding": "MeanEnc",
    "asym_bn": "AsymBN",
}


def write(results, path, title):
    """Draws the figure into a file, whatever the user's matplotlibrc says; arguments as of `draw`."""
    with matplotlib.style.context("default"):
        draw(results, title).savefig(path)


def draw(results, title):
    """Draws the figure.

    Args:
        results: dict from name to dict of variance, standard_error and ratio. title: of the figure.

    Returns:
        A matplotlib Figure of 8 x 4.5 inches at 120 dpi.
    """
    figure = Figure((8, 4.5), dpi=120, layout="constrained")
    axis, places = figure.subplots(), range(len(results))
    ratios = [one["ratio"] or 0 for one in results.values()]
    base = results["baseline"]["variance"] or 1
    errors = [one["standard_error"] / base for one in results.values()]
    axis.barh(places, ratios, xerr=errors, color=BLUE, ecolor=GREY, height=0.6, label="measured, with standard error")
    axis.axvline(1, color=GREY, linestyle="--", linewidth=1, zorder=0)
    theirs = [(PAPER[name], place) for place, name in enumerate(results) if name in PAPER]
    for ratio, place in theirs:
        axis.text(ratio, place - 0.42, f"{ratio:.2f}", color=ORANGE, ha="center", fontsize=8)
    axis.plot(*zip(*theirs, strict=True), "D", color=ORANGE, markersize=6, label=PAPER_LABEL)
    labels = [f"{LABELS[name]}   {ratio:.2f}" for name, ratio in zip(results, ratios, strict=True)]
    axis.set_yticks(places, labels, fontsize=9)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.12 * max(*PAPER.values(), *map(sum, zip(ratios, errors, strict=True))))
    axis.set_xlabel("intra-image variance as a ratio to the baseline's", fontsize=9)
    axis.set_title(title, fontsize=9, parse_math=False)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8, axis="x")
    axis.legend(fontsize=8, frameon=False, loc="lower right")
    return figure
