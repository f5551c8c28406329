"""Reads log.jsonl: which runs it holds, and the curves of each run. `engine/json_log.py` lists the keys of a line."""

import json
import math
import os

import numpy as np

WHOLE_EPOCH = math.inf  # the step of a line about an epoch, which follows the lines of its steps


class LoggedRun:
    """What a log says about one run. If a resume repeats steps, only the later lines are kept.

    Args:
        id: of the run. path: of the log.

    Attributes:
        options: those of the last start or resume, a dict. resumes: where the run was resumed, in epochs.
    """

    def __init__(self, id, path):
        self.id, self.path = id, path
        self.options, self.resumes, self.lines = {}, [], []

    @property
    def pretraining(self):
        """Whether it is a run of main_moco.py; otherwise it is a linear classification."""
        return "moco_k" in self.options

    @property
    def kind(self):
        """What the run does, in words."""
        return "pretraining" if self.pretraining else "linear classification"

    @property
    def steps_per_epoch(self):
        """Pretraining leaves out an incomplete last batch; linear classification does not."""
        images, batch = self.options["images"], self.options["total_batch"]
        return images // batch if self.pretraining else math.ceil(images / batch)

    def begin(self, line):
        """Takes a line of kind start or resume."""
        self.options = line["options"]
        if line["kind"] == "resume":
            epochs, steps = line["place"]
            place = epochs + steps / self.steps_per_epoch
            self.resumes = [earlier for earlier in self.resumes if earlier < place] + [place]

    def add(self, line):
        """Takes a line of kind step or epoch, and drops the lines of the same place and of later places."""
        place = line["epoch"], line.get("step", WHOLE_EPOCH)
        while self.lines and self.lines[-1][0] >= place:
            self.lines.pop()
        epochs = place[0] + min(place[1] / self.steps_per_epoch, 1)
        if seconds := number(line.get("seconds", 0)):
            line["images_per_second"] = self.options["total_batch"] / seconds
        self.lines.append((place, epochs, line))

    def curve(self, kind, name):
        """A figure over the epochs.

        Args:
            kind: of the lines, "step" or "epoch". name: the key of the figure, or "images_per_second".

        Returns:
            Two float arrays of equal length: finished epochs, ascending, with a fraction within an epoch; and the
            figure, which is NaN where it is not finite.
        """
        found = [(x, number(line[name])) for _, x, line in self.lines if line["kind"] == kind and name in line]
        return np.array(found, dtype=float).reshape(-1, 2).T


def number(value):
    """A figure of a line as a float; NaN if it is not finite, which the log writes as a string, or no number."""
    try:
        value = float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return value if math.isfinite(value) else math.nan


def read_log(path):
    """Reads a log. Torn lines, lines of other programs, and lines before the start of their run are skipped.

    Args:
        path: of log.jsonl, or of the folder that has it.

    Returns:
        A list of all LoggedRuns that have made a step, the one that was started or resumed last at the end.

    Raises:
        ValueError: there is no log, it can't be read, or there is no such run in it.
    """
    if os.path.isdir(path):
        path = os.path.join(path, "log.jsonl")
    if not os.path.isfile(path):
        raise ValueError(f"{path!r} is no file; give the --output-dir of a run, or its log.jsonl")
    runs = {}
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = list(filter(None, map(_parsed, file)))
    except OSError as error:
        raise ValueError(f"can't read {path!r}: {error.strerror}") from error
    for line in lines:
        id = line["run"]
        if line["kind"] in ("start", "resume"):
            runs[id] = runs.pop(id, None) or LoggedRun(id, path)
            runs[id].begin(line)
        elif id in runs:
            runs[id].add(line)
    runs = [run for run in runs.values() if run.lines]
    if not runs:
        raise ValueError(f"{path!r} has no figures of a run; give the log.jsonl of a run that has made a step")
    return runs


def _parsed(text):
    """A line of the log as a dict; None if it is torn, of no use here, or lacks what its kind needs."""
    try:
        line = json.loads(text)
        if line["kind"] in ("start", "resume"):
            images, batch = (line["options"][name] for name in ("images", "total_batch"))
            epochs, steps = line["place"]
            counts = [epochs, steps, images - batch, batch - 1, line["options"].get("moco_k", 1) - 1]
        elif line["kind"] == "step":
            counts = [line["epoch"], line["step"]]
        elif line["kind"] == "epoch":
            counts = [line["epoch"]]
            line.pop("step", None)
        else:
            return None
        whole = all(isinstance(count, int) and 0 <= count < 2**53 for count in counts)
        return line if whole and isinstance(line["run"], str) else None
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None


def choose(runs, ids=()):
    """The runs of a log to draw: those with one of the ids, or else the newest pretraining, or else the newest run."""
    return [run for run in runs if run.id in ids] or sorted(runs, key=lambda run: run.pretraining)[-1:]
