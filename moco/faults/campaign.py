"""Fault campaign: injects faults into real runs, resumes them, and compares with runs without a fault.

    python -m moco.faults.campaign [--seed N] [--rounds N] [--only WORDS]

It runs 2 processes on a tiny fake ImageNet, on Linux, and takes about 20 minutes on 2 cores. Each row of its table is
a fault at a random moment: the number of steps that were done, the step from which `--resume auto` continued, the
number of steps lost and the limit for it, whether the final weights and optimizer state equal those of the run without
a fault bit by bit, and whether no process and no temporary file was left behind.
"""

import sys

if not __package__:  # otherwise `import moco` fails
    print("error: this program can't be started by its path; use python -m moco.faults.campaign", file=sys.stderr)
    sys.exit(2)

import os
import random
import tempfile
from difflib import SequenceMatcher

import torch

from moco.engine.command_line import SEED, Parser, number
from moco.engine.progress import Progress
from moco.faults.internal.fault_injections import FAULTS
from moco.faults.internal.faulty_run import SAVE_EVERY, STEPS, Workplace, steps_done
from moco.tools import fake_imagenet


def trial(name, root, images, references, seed):
    """Injects one fault, resumes the run and compares it; returns the row of the table and whether all is well."""
    rng, (_, costs, hurt) = random.Random(f"{name} {seed}"), FAULTS[name]
    with tempfile.TemporaryDirectory(dir=root) as folder:
        place = Workplace(folder, images, references)
        try:
            hurt(place, rng)
            done, newest = place.done or steps_done(place.runs[0]), place.newest()
            resumed_at = place.finish(newest)
            equal, tidy = place.compare(), place.tidy()
        finally:
            place.close()
    lost = max(0, done - resumed_at)
    well = lost <= costs and equal != "no" and tidy == "yes"
    return f"{name:<52} {done:>5} {resumed_at:>7} {lost:>5} {costs:>6} {equal:>7} {tidy:>6}", well


def campaign(names, seed, rounds=None):
    """Injects the named faults and prints the table, and its progress to standard error; returns how many rows failed.

    Args:
        names: keys of FAULTS. seed: determines the moments and the victims.
        rounds: how often each fault is injected; None takes each fault's own number.
    """
    wrong = 0
    trials = [(name, i) for name in names for i in range(rounds or FAULTS[name][0])]
    print(f"{'fault':<52} {'done':>5} {'resumed':>7} {'lost':>5} {'at most':>6} {'equal':>6} {'tidy':>6}", flush=True)
    with tempfile.TemporaryDirectory() as root:
        images = os.path.join(root, "images")
        fake_imagenet.make(images, train=8, val=3, size=40)
        references, task = {}, Progress("campaign", len(trials), "faults")
        for name, i in trials:
            task.show(name)  # each fault takes more than ten seconds
            try:
                row, well = trial(name, root, images, references, f"{seed} {i}")
            except Exception as error:
                row, well = f"{name:<52} failed: {error}", False
            print(row, flush=True)
            wrong += not well
            task.done += 1
    print(
        f"{len(trials)} faults, {wrong} of them with too much lost, a difference or something left behind; seed {seed}"
    )
    print(f"a checkpoint every {SAVE_EVERY} steps, {STEPS} steps per epoch, torch {torch.__version__}", flush=True)
    return wrong


def chosen(words):
    """The names of the faults that contain `words`, regardless of case; raises ValueError if there is none."""
    names = [name for name in FAULTS if words.lower() in name.lower()]
    if not names:

        def similarity(name):
            return max(SequenceMatcher(None, words.lower(), word).ratio() for word in name.lower().split())

        near = "; ".join(sorted(FAULTS, key=similarity, reverse=True)[:3])
        raise ValueError(
            f"--only {words!r} is in no fault's name; give a part of a name; the most similar are: {near}"
        )
    return names


def main(argv=None):
    parser = Parser(__doc__, __spec__.name)
    add = parser.add_argument
    add("--seed", metavar="N", type=SEED, default=0, help="random seed of the moments and victims")
    add("--rounds", metavar="N", type=number(int, 1), help="how often to inject each fault (default: as listed)")
    add("--only", metavar="WORDS", default="", help="inject only the faults whose names contain this")
    args = parser.parse_args(argv)
    try:
        names = chosen(args.only)
    except ValueError as error:
        parser.error(error)
    sys.exit(campaign(names, args.seed, args.rounds) > 0)


if __name__ == "__main__":
    main()
