"""table.md of a study, and the points of study.png: gains over the baseline, variances, the figures of every run."""

import statistics
from typing import NamedTuple

from moco.engine.design_flags import DESIGNS, ON
from moco.tools.internal.study_runs import BASELINE, name_of
from moco.views.augmentation_recipes import SIDES

METRICS = {"regression_acc1": "logistic regression", "knn_acc1": "kNN", "linear_acc1": "`main_lincls.py`"}
PAPER = {"multicrop": 4.1, "scalemix": 1.8, "asym_aug": 1.4, "asym_bn": 0.5, "mean_encoding": 1.9}  # points of top-1
NOTES = """\
Accuracies are Acc@1 in percent, as mean ± standard deviation over the seeds (n: their number). A gain is the mean of
the differences between a run and the baseline of the same seed, in points. "source minus target" is the mean of the
differences between a design on the source and the same design on the target, with the same seed. A variance is that
of the recipe of a side, by the encoder of the baseline, in hundredths. The paper's figures are its authors': gains in
ImageNet top-1 after 100 epochs with a ResNet-50, by linear classification; the baseline has 65.8 there. They are on
the paper's side, which is bold. "not run": there is no result. "no baseline": there is a result, but none of the
baseline with the same seed.
"""


class Point(NamedTuple):
    """A design on a side in study.png.

    `variance` is that of the source minus that of the target, in hundredths; `gain` is in points of accuracy. Both are
    means over the seeds. `deviation` is the gain's standard deviation, None for one seed. `seeds` is their number.
    `variance_deviation` is the standard deviation of `variance`.
    """

    design: str
    side: str
    variance: float
    gain: float
    deviation: float | None
    seeds: int
    variance_deviation: float | None = None


def by_run(results):
    """The results of each run: dict from name to dict from seed to result."""
    runs = {}
    for line in results:
        runs.setdefault(line["run"], {})[line["seed"]] = line
    return runs


def values_of(run, metric):
    """The values of a metric of one run (a dict from seed to result), a list; a seed without it is left out."""
    return [line[metric] for line in run.values() if metric in line]


def gains_of(runs, name, metric, over=BASELINE):
    """The gains of a run over another one, one for each seed that both have, a list."""
    run, base = runs.get(name, {}), runs.get(over, {})
    return [run[s][metric] - base[s][metric] for s in run if s in base and metric in run[s] and metric in base[s]]


def differences_of(run):
    """The variance of the source minus that of the target, for each seed of a run that has both, a list."""
    sides = [values_of(run, f"variance_{side}") for side in ("source", "target")]
    return [source - target for source, target in zip(*sides, strict=True)]


def points_of(results):
    """The Points of all runs with one design whose gain and variances are known, a list; results as for `table`."""
    runs, points = by_run(results), []
    for name, run in runs.items():
        designs = next(iter(run.values()))["designs"]
        gains, differences = gains_of(runs, name, "regression_acc1"), differences_of(run)
        if len(designs) == 1 and gains and differences:
            variance, deviation = spread(differences)
            points.append(Point(*next(iter(designs.items())), variance, *spread(gains), len(gains), deviation))
    return points


def spread(values):
    """Mean and standard deviation (n - 1) of a list; the latter is None for one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def table(results):
    """The text of table.md for the results, as `study_results.collect` returns them."""
    runs = by_run(results)
    parts = ["# Study", *(text for metric in METRICS if (text := gain_table(runs, metric)))]
    return "\n\n".join([*parts, run_table(runs), NOTES])


def gain_table(runs, metric):
    """The gains of each design on each side, as a table in Markdown; None if no run was measured by this metric."""
    if not any(values_of(run, metric) for run in runs.values()):
        return None
    rows = [["design", *(ON[side] for side in SIDES), "source minus target", "the paper"]]
    for name, (title, papers) in DESIGNS.items():
        cells = []
        for side in SIDES:
            run = name_of({name: side})
            gains = gains_of(runs, run, metric)
            absent = "no baseline" if values_of(runs.get(run, {}), metric) else "not run"
            text = with_number(gains) or absent
            cells.append(f"**{text}**" if side == papers else text)
        cells.append(with_number(gains_of(runs, name_of({name: "source"}), metric, name_of({name: "target"}))) or "-")
        rows.append([title, *cells, f"{PAPER[name]:+.1f} {ON[papers]}" if name in PAPER else "-"])
    return f"## Gain over the baseline by {METRICS[metric]}\n\n{markdown(rows)}"


def run_table(runs):
    """The figures of every run, as a table in Markdown."""
    metrics = [metric for metric in METRICS if any(values_of(run, metric) for run in runs.values())]
    rows = [["run", "n", *(word for metric in metrics for word in (METRICS[metric], "gain"))]]
    rows[0] += ["variance of the source", "of the target", "difference"]
    for name, run in runs.items():
        cells = [f"`{name}`", str(len(run))]
        for metric in metrics:
            gains = gains_of(runs, name, metric) if name != BASELINE else []
            cells += [in_words(values_of(run, metric), ".1f"), in_words(gains, "+.1f")]
        cells += [in_words(values_of(run, f"variance_{side}"), ".2f") for side in ("source", "target")]
        rows.append([*cells, in_words(differences_of(run), "+.2f")])
    return f"## All runs\n\n{markdown(rows)}"


def with_number(gains):
    """Mean ± standard deviation of a list of gains, and their number; "" if there are none."""
    return f"{in_words(gains, '+.1f')} (n = {len(gains)})" if gains else ""


def in_words(values, form):
    """Mean ± standard deviation of a list of values; - if there are none. `form` is the format of the mean."""
    if not values:
        return "-"
    mean, deviation = spread(values)
    return f"{mean:{form}}" + ("" if deviation is None else f" ± {deviation:{form.lstrip('+')}}")


def markdown(rows):
    """Rows of cells as a table in Markdown, the first row as its head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])
