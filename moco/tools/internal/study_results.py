"""Collects the results of a study: from the files that the stages left to results.jsonl, table.md and study.png."""

import contextlib
import glob
import json
import os

from moco.tools.internal.study_runs import BASELINE, RANDOM, paper_runs, parse_run
from moco.tools.internal.study_settings import FILE, locked, write_text
from moco.tools.internal.study_stages import STAGES
from moco.tools.internal.study_table import points_of, table
from moco.tools.internal.study_variance import variances_of_sides

RESULTS, TABLE, FIGURE = "results.jsonl", "table.md", "study.png"


def write_results(study):
    """Writes the results of all runs in the folder `study.out`; returns lines that say what was written."""
    with locked(study.out):
        results = collect(study.out)
        text = "".join(json.dumps(line) + "\n" for line in results)
        write_text(os.path.join(study.out, RESULTS), text)
        write_text(os.path.join(study.out, TABLE), table(results))
        problem = draw(results, os.path.join(study.out, FIGURE))
    written = [RESULTS, TABLE, *([] if problem else [FIGURE])]
    lines = [f"wrote {', '.join(written)} in {study.out!r}: {len(results)} results"]
    return [*lines, *([f"note: {FIGURE} was not drawn: {problem}"] if problem else [])]


def draw(results, path):
    """Draws study.png; returns None, or why it can't be drawn."""
    if not (points := points_of(results)):
        return "it needs a run with a design, and the finished baseline of the same seed"
    try:
        from moco.tools.internal.study_figure import write
    except ImportError:
        return "it needs the package matplotlib; pip install matplotlib"
    write(points, path)
    return None


def collect(out):
    """The results of all runs in the folder `out` that are evaluated.

    Returns:
        A list of dicts, in the order of the preset, then of the names and of the seeds: `run`, `designs` (a dict
        from names to sides), `seed`, all figures of the stages, `stages` (for each its seconds, hardware, versions
        and commit), and `settings`.
    """
    with open(os.path.join(out, FILE)) as file:
        settings = json.load(file)
    results = []
    for path in glob.glob(os.path.join(glob.escape(out), "*", "seed*", "evaluation.json")):
        folder = os.path.dirname(path)
        name, seed = os.path.basename(os.path.dirname(folder)).replace("-", ":"), os.path.basename(folder)[4:]
        with contextlib.suppress(ValueError):  # the folder is not that of a run
            designs = {} if name == RANDOM else parse_run(name)
            results.append({"run": name, "designs": designs, "seed": int(seed), **figures_of(folder)})
    measured = {line["seed"]: line.get("variances") for line in results if line["run"] == BASELINE}
    for line in results:
        if line["run"] != RANDOM:
            line |= variances_of_sides(line["designs"], measured.get(line["seed"]))
    known = [RANDOM, *paper_runs()]
    order = {name: place for place, name in enumerate(known)}
    results.sort(key=lambda line: (order.get(line["run"], len(known)), line["run"], line["seed"]))
    return [{**line, "settings": settings} for line in results]


def figures_of(folder):
    """The figures of all stages of a run, and `stages`: what else is known of each stage."""
    figures, stages = {}, {}
    for stage in STAGES:
        with contextlib.suppress(FileNotFoundError), open(os.path.join(folder, f"{stage}.json")) as file:
            stages[stage] = json.load(file)
            figures |= stages[stage].pop("figures")
    return {**figures, "stages": stages}
