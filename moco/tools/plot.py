"""Draws the curves of runs from their log.jsonl: loss, accuracies, Std, learning rate, similarities, speed.

    python -m moco.tools.plot runs/baseline runs/multicrop --out curves.png

A folder may hold several runs. It draws the newest pretraining, or, if there is none, the newest linear
classification. To draw others, name them with --id. It needs the package matplotlib.
"""

import sys

if not __package__:  # otherwise `import moco` fails
    print("error: this program can't be started by its path; use python -m moco.tools.plot", file=sys.stderr)
    sys.exit(2)

import os
import warnings

from moco.engine.command_line import Parser, output_file
from moco.tools.internal.run_log import choose, read_log


def main(argv=None):
    parser = Parser(__doc__, __spec__.name, example="runs/baseline runs/multicrop")
    help = "output folder of main_moco.py or main_lincls.py, or the path of its log.jsonl"
    parser.add_argument("runs", metavar="RUN", nargs="+", help=help)
    help = "draw the run with this id instead of the newest one of its folder; can be given several times"
    parser.add_argument("--id", action="append", metavar="ID", default=[], help=help)
    kinds = output_file(".png", ".pdf", ".svg")
    parser.add_argument("--out", metavar="FILE", type=kinds, default="curves.png", help="file to write")
    args = parser.parse_args(argv)
    try:
        import matplotlib.style
    except ImportError:
        parser.error("the plot needs the package matplotlib; pip install matplotlib")
    from moco.tools.internal.curve_figure import draw

    try:
        logs = [read_log(path) for path in dict.fromkeys(map(os.path.normpath, args.runs))]
        runs = [run for log in logs for run in choose(log, args.id)]
        ids = {run.id: None for log in logs for run in log}
        if unknown := [id for id in args.id if id not in ids]:
            raise ValueError(f"--id {unknown[0]!r} is in no log; the logs have {', '.join(ids)}")
        with matplotlib.style.context("default"), warnings.catch_warnings():  # whatever the user's matplotlibrc says
            warnings.filterwarnings("ignore", message="Glyph")  # a letter that the font lacks becomes a box
            draw(runs, names_of(runs)).savefig(args.out)
    except OSError as error:
        parser.error(f"can't write {args.out!r}: {error.strerror}")
    except ValueError as error:
        parser.error(error)
    drawn = {run.id for run in runs}
    for log in logs:
        if others := [run for run in log if run.id not in drawn]:
            words = ", ".join(f"{run.id} ({run.kind})" for run in others)
            print(f"note: {log[0].path!r} also has {words}; --id draws it")
    print(f"wrote {args.out}")


def names_of(runs):
    """What to call each run: its --tag, or else its folder; more where that does not tell the runs apart."""
    folders = [os.path.dirname(os.path.abspath(run.path)) for run in runs]
    short = [
        str(run.options.get("tag") or os.path.basename(folder)) for run, folder in zip(runs, folders, strict=True)
    ]
    long = [os.path.join(os.path.basename(os.path.dirname(folder)), os.path.basename(folder)) for folder in folders]
    full = [f"{name}, run {run.id}" for name, run in zip(short, runs, strict=True)]
    ways = list(zip(short, long, full, strict=True))
    return [
        next((way[i] for i in range(2) if [other[i] for other in ways].count(way[i]) == 1), way[2]) for way in ways
    ]


if __name__ == "__main__":
    main()
