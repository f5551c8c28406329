"""The settings of a study: what all of its runs have in common, and what the later calls must not change."""

import contextlib
import fcntl
import glob
import io
import json
import os
import shlex
from dataclasses import dataclass

import main_lincls
import main_moco
from moco.engine.checkpoint_atomic_write import save
from moco.engine.result_changing_options import label, result_options, shown
from moco.engine.startup_checks import parse_and_check
from moco.evaluation.knn import K
from moco.evaluation.knn_images import check_k, labelled_splits
from moco.tools.internal.study_runs import BASELINE, design_flags

FILE, LOCK = "study.json", ".study.lock"
FOR_EACH = dict.fromkeys(("output_dir", "resume", "start_epoch", "dry_run"), "leave it out") | {"seed": "give --seeds"}
OWN = {  # options of the scripts that the study sets itself, and what to do instead
    main_moco: FOR_EACH | {"design": "name the runs by --runs", "tag": "leave it out"},
    main_lincls: FOR_EACH | dict.fromkeys(("arch", "stem", "pretrained", "evaluate"), "leave it out"),
}
VARY = {"design", "seed", "bn_splits"}  # these differ between runs, or are compared in another form
WORDS = {  # settings that are not exactly one flag of main_moco.py
    "groups": "the number of batch-norm groups (processes times --bn-splits)",
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
        groups: batch-norm groups of all processes of a pretraining.
        lincls: flags of main_lincls.py, a list of words; None: no such linear classification.
    """

    data: str
    labelled: str
    out: str
    folds: int | None
    flags: list
    options: object
    groups: int
    lincls: list | None


def open_study(args, flags, names):
    """Checks everything that can be known before the runs, and keeps the settings in --out; returns the Study.

    Args:
        args: the options of the study. flags: of main_moco.py, a list of words. names: of the runs.

    Raises:
        OSError, ValueError: a flag or a folder does not fit, or a setting differs from that of earlier runs.
        SystemExit: a check of main_moco.py or main_lincls.py fails; it has printed one line.
    """
    data, labelled, out = map(os.path.abspath, (args.dir, args.labelled or args.dir, args.out))
    check_own(main_moco, flags, data)
    for name in dict.fromkeys([*names, BASELINE]):
        options, launch = dry_run(main_moco, [*flags, *design_flags(name)], data, out, least=2)
    groups = launch.world * options.bn_splits
    study = Study(data, labelled, out, args.folds, flags, options, groups, args.lincls)
    settings = settings_of(study)
    if study.lincls is not None:
        check_own(main_lincls, study.lincls, labelled)
        dry_run(main_lincls, lincls_flags(study, "none"), labelled, out)
    keep_settings(out, settings)
    return study


def check_own(script, flags, data):
    """Raises ValueError if the flags of a script, main_moco or main_lincls, have one that the study sets itself."""
    parser = parser_of(script)
    given = vars(parser.parse_args([*flags, data]))
    for name, way_out in OWN[script].items():
        if given[name] != parser.get_default(name):
            raise ValueError(f"{label(name)} of {script.__name__}.py is set by the study for each run; {way_out}")


def dry_run(script, words, data, out, least=1):
    """Checks the command line of a run as --dry-run does; returns its options and its Launch.

    `least` is as of parse_and_check.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        words = [*words, "--output-dir", out, "--dry-run", data]
        return parse_and_check(parser_of(script), script.prepare, words, least)[:2]


def parser_of(script):
    """The script's Parser, whose messages say that they are about the flags for it."""
    parser = script.build_parser()
    parser.prog = f"the flags of {script.__name__}.py"
    return parser


def lincls_flags(study, pretrained):
    """The flags of main_lincls.py for a checkpoint, a list of words; crop size and data workers can be overruled."""
    options = study.options
    usual = ["--crop-size", str(options.crop_size), "-j", str(options.workers)]
    return [*usual, *study.lincls, "-a", options.arch, "--stem", options.stem, "--pretrained", pretrained]


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
        "pretraining": {**pretraining, **of_designs, "groups": study.groups},
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
    return "not given" if value is None else "empty" if value == "" else shown(value)


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
