"""The settings of a study: what all of its runs have in common, and what the later calls must not change."""

import contextlib
import fcntl
import glob
import io
import json
import os
import shlex
from dataclasses import dataclass

import main_moco
from moco.engine.checkpoint_atomic_write import save
from moco.engine.result_changing_options import label, result_options, shown
from moco.engine.startup_checks import parse_and_check
from moco.evaluation.knn import K
from moco.evaluation.knn_images import check_k, labelled_splits
from moco.tools.internal.study_runs import design_flags

FILE, LOCK = "study.json", ".study.lock"
OWN = {  # options of main_moco.py that the study sets itself, and what to do instead
    "design": "name the runs by --runs",
    "seed": "give --seeds",
    **dict.fromkeys(("output_dir", "tag", "resume", "start_epoch", "dry_run"), "leave it out"),
}
VARY = {"design", "seed", "bn_splits"}  # these differ between runs, or are compared in another form
WORDS = {  # settings that are not exactly one flag of main_moco.py
    "groups": "the number of batch-norm groups (--nproc times --bn-splits)",
    "train": "the number of labelled images in train",
    "val": "the number of labelled images in val",
}


@dataclass(frozen=True)
class Study:
    """What the runs of a study have in common.

    Attributes:
        data: the images for the pretraining. labelled: the folder with the labelled train and val.
        out: --out. All three are absolute paths.
        folds: of the cross-validation; None: val is classified by train.
        flags: of main_moco.py, a list of words. options: what they mean, the Namespace of the baseline.
        lincls: flags of main_lincls.py, a list of words; None: no such linear classification.
    """

    data: str
    labelled: str
    out: str
    folds: int | None
    flags: list
    options: object
    lincls: list | None


def check_flags(data, out, flags, names):
    """Checks the flags of main_moco.py for every run, as `--dry-run` does.

    Args:
        data, out: absolute paths. flags: list of words. names: of the runs.

    Returns:
        The options of the baseline, a Namespace.

    Raises:
        ValueError: the flags have one that the study sets itself.
        SystemExit: a check of main_moco.py fails; it has printed one line.
    """
    parser = main_moco.build_parser()
    parser.prog = "the flags of main_moco.py"
    given = vars(parser.parse_args([*flags, data]))
    for name, way_out in OWN.items():
        if given[name] != parser.get_default(name):
            raise ValueError(f"{label(name)} is set by the study for each run; {way_out}")
    for name in [*names, "baseline"]:
        words = [*flags, *design_flags(name), "--output-dir", out, "--dry-run", data]
        with contextlib.redirect_stdout(io.StringIO()):
            options, *_ = parse_and_check(parser, main_moco.prepare, words, least=2)
    return options


def settings_of(study):
    """The settings that must stay the same, by stage: a dict of dicts.

    Raises:
        OSError, ValueError: the labelled images are missing, or do not fit.
    """
    options = study.options
    val, train = labelled_splits(study.labelled)
    if study.folds is None:
        check_k([K], train, "kNN with k")
    elif study.folds > len(train) + len(val):
        raise ValueError(f"--folds {study.folds} is more than the {len(train) + len(val)} labelled images; give fewer")
    pretraining = {name: value for name, value in result_options(options).items() if name not in VARY}
    of_designs = {name: getattr(options, name) for name in ("mini_crop_size", "asym_bn_group")}
    return {
        "pretraining": {**pretraining, **of_designs, "groups": (options.nproc or 1) * options.bn_splits},
        "evaluation": {"train": len(train), "val": len(val), "folds": study.folds},
        **({} if study.lincls is None else {"lincls": {"lincls": shlex.join(study.lincls)}}),
    }


def keep_settings(out, settings):
    """Writes the settings into the folder `out`, or compares them with those of the runs that are already there.

    Raises:
        ValueError: a setting differs; the message names it.
    """
    path, earlier = os.path.join(out, FILE), {}
    os.makedirs(out, exist_ok=True)
    with locked(out):
        with contextlib.suppress(FileNotFoundError), open(path) as file:
            earlier = json.load(file)
        for stage in earlier.keys() & settings.keys():
            for name in sorted(earlier[stage].keys() & settings[stage].keys()):  # a flag may be newer than a run
                now, then = settings[stage][name], earlier[stage][name]
                if now != then and has_begun(out, stage):
                    redo = "" if stage == "pretraining" else f", or remove the files {stage}.json to measure again"
                    raise ValueError(
                        f"{WORDS.get(name, label(name))} is {in_words(now)}, but {in_words(then)} for the runs in "
                        f"{out!r}; give the same or another --out{redo}"
                    )
        write_json(path, {**earlier, **settings})


def has_begun(out, stage):
    """Whether a run in the folder `out` has a result of a stage, or, of the pretraining, a checkpoint."""
    names = ["*.json", "checkpoint_*"] if stage == "pretraining" else [f"{stage}.json"]
    return any(glob.glob(os.path.join(glob.escape(out), "*", "seed*", name)) for name in names)


def in_words(value):
    """The value of a setting as messages show it."""
    return "not given" if value is None else shown(value)


def write_json(path, value):
    """Writes a value as JSON; the file is always complete."""
    save(json.dumps(value, indent=1) + "\n", path, lambda text, file: file.write(text.encode()))


@contextlib.contextmanager
def locked(out):
    """Context manager in which no other process of the study writes into the folder `out`, outside its runs."""
    with open(os.path.join(out, LOCK), "w") as file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.lockf(file, fcntl.LOCK_EX)
        yield
