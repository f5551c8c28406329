"""log.jsonl in the output folder: what ran and how it went, one JSON object per line.

Every line has `kind`, `time` (seconds since 1970), `run` (the id of the run) and `script`. Further keys by kind:

start, resume   `argv`, `options`, `seed`, `place` (finished epochs, finished steps of the next epoch), `git` (commit),
                `processes` (`host` and `device` of each), `versions`
step            `epoch`, `step` (both 0-based); `loss`, `acc1`, `acc5` of this step (accuracies in percent), `seconds`
                (of this step), `wait` (share of the epoch's time spent waiting for data), `lr`, `grad_norm`; in
                pretraining also `std`, `positive` and `negative` (see `training_statistics.statistics_of`)
epoch           `epoch`; `loss`, `acc1`, `acc5`, `seconds` as means over its steps from `first_step` on, which is not 0
                if the run was resumed within the epoch; `wait`, `lr`; `val_acc1` in linear classification; `knn_acc1`
                and `knn_acc5` with --knn-every; `variance_source` and `variance_target` with --variance-every, with
                small views also `variance_source_small` or `variance_target_small` (in hundredths, see
                `evaluation/variance.py`); `bad_images`, the number of bad images so far, if there are any
stop            `signal`, `checkpoint` (path of the last checkpoint)

All figures are those of the global batch, except `seconds` and `wait`, which rank 0 measures. A float that is not
finite is written as a string; `grad_norm` is one in each fp16 step that the loss scaler skips. A resumed run appends
to the file, and so does another run in the same folder.
"""

import contextlib
import json
import math
import os
import platform
import socket
import subprocess
import sys
import time

import numpy
import PIL
import torch
import torchvision

from moco.distributed import from_all
from moco.pipe_safe_print import say


class JsonLog:
    """Appends lines to `log.jsonl`. The file can be read at any time.

    Args:
        folder: where the file lies. Give None on all ranks except rank 0; then nothing is written.
        run: the id of the run.
    """

    def __init__(self, folder, run=None):
        self.path = folder and os.path.join(folder, "log.jsonl")
        self.facts = {"run": run, "script": os.path.basename(sys.argv[0])}

    def write(self, kind, **facts):
        """Appends one line: the kind, the time, the run, the script, and the facts."""
        if self.path is None:
            return
        facts = {name: str(x) if isinstance(x, float) and not math.isfinite(x) else x for name, x in facts.items()}
        try:
            with open(self.path, "a") as file:
                file.write(json.dumps({"kind": kind, "time": round(time.time(), 3), **self.facts, **facts}) + "\n")
        except OSError as error:
            say(f"warning: can't write {self.path!r}: {error.strerror}; this log ends here")
            self.path = None

    def write_start(self, args, device, place):
        """Appends the line of a start or a resume: what runs, on which hosts and devices, in which versions.

        Call it on every rank.

        Args:
            args: the options. device: of this process. place: (finished epochs, finished steps of the next epoch).
        """
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        processes = from_all((socket.gethostname(), name))
        self._end_torn_line()
        self.write(
            "resume" if args.resume else "start",
            argv=sys.argv,
            options={name: value for name, value in vars(args).items() if isinstance(value, (str, int, float, list))},
            seed=args.seed,
            place=place,
            git=git_commit(),
            processes=[{"host": host, "device": device} for host, device in processes],
            versions={
                "python": platform.python_version(),
                **{module.__name__: module.__version__ for module in (torch, torchvision, numpy, PIL)},
                "cuda": torch.version.cuda,
            },
        )

    def _end_torn_line(self):
        """Ends a line that a full disk or a power cut has left incomplete."""
        if self.path is None:
            return
        with contextlib.suppress(OSError), open(self.path, "rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")


def git_commit():
    """The commit of this code, with "-dirty" appended if files differ from it; None outside a clone."""
    here = os.path.dirname(os.path.abspath(__file__))
    command = ["git", "-C", here, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
