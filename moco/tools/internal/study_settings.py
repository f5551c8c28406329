"""The settings of a study: what all of its runs have in common, and what the later calls must not change."""

import contextlib
import fcntl
import glob
import io
import json
import os
from dataclasses import dataclass

import main_lincls
import main_moco
from moco.engine.checkpoint_atomic_write import save
from moco.engine.result_changing_options import label, result_options, shown
from moco.engine.startup_checks import parse_and_check
from moco.evaluation.knn import K
from moco.evaluation.knn_images import labelled_splits
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
    "paths": "the hash of the classes and paths of the images",
    "train": "the number of labelled images in train",
    "val": "the number of labelled images in val",
    "labelled_paths": "the hash of the classes and paths of the labelled images",
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
        args: the options of the study. flags: as `complete_flags` returns them. names: of the runs.

    Raises:
        OSError, ValueError: a folder does not fit, or a setting differs from that of earlier runs.
        SystemExit: a check of main_moco.py or main_lincls.py fails; it has printed one line.
    """
    data, labelled, out = map(os.path.abspath, (args.dir, args.labelled or args.dir, args.out))
    for name in dict.fromkeys([*names, BASELINE]):
        options, launch, (_, images, *_) = dry_run(main_moco, [*flags, *design_flags(name)], data, out, least=2)
    groups = launch.world * options.bn_splits
    study = Study(data, labelled, out, args.folds, flags, options, groups, args.lincls)
    keep_settings(out, settings_of(study, images))
    return study


def complete_flags(args, flags):
    """Checks the flags of both scripts, as far as no images or GPUs are needed.

    Args:
        args: the options of the study. flags: of main_moco.py, a list of words.

    Returns:
        The flags of main_moco.py. Every run measures the variance of its own two sides, at least at its end.

    Raises:
        ValueError: one is set by the study itself. SystemExit: one is wrong; a line has said so.
    """
    if args.lincls is not None:
        check_own(main_lincls, args.lincls)
    given = check_own(main_moco, flags)
    return flags if given.variance_every else [*flags, "--variance-every", str(given.epochs)]


def check_own(script, flags):
    """The options that flags give to main_moco or main_lincls; raises ValueError if the study sets one itself."""
    parser = parser_of(script)
    given = parser.parse_args(["DIR", *flags])
    for name, way_out in OWN[script].items():
        if getattr(given, name) != parser.get_default(name):
            raise ValueError(f"{label(name)} of {script.__name__}.py is set by the study for each run; {way_out}")
    return given


def dry_run(script, words, data, out, least=1):
    """Checks the command line of a run as --dry-run does; returns what parse_and_check returns.

    `least` is as of parse_and_check.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        words = [*words, "--output-dir", out, "--dry-run", data]
        return parse_and_check(parser_of(script), script.prepare, words, least)


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


def settings_of(study, images):
    """The settings that must stay the same, by stage: a dict of dicts.

    Args:
        study: a Study. images: the ImageFolder of the pretraining.

    Raises:
        OSError, ValueError: the labelled images are missing, or do not fit.
        SystemExit: a check of main_lincls.py fails; it has printed one line.
    """
    options, lincls = study.options, {}
    try:
        val, train = labelled_splits(study.labelled)
    except FileNotFoundError as error:
        hint = "; --labelled takes the labelled images from elsewhere" * (study.labelled == study.data)
        raise ValueError(f"{error}{hint}") from None
    if study.folds is None and len(train) < K:
        raise ValueError(
            f"kNN with k = {K} needs {K} images, but {train.root!r} has {len(train)}; add images, or give --folds to "
            "use val, too"
        )
    if study.folds and study.folds > len(train) + len(val):
        raise ValueError(f"--folds {study.folds} is more than the {len(train) + len(val)} labelled images; give fewer")
    if study.lincls is not None:
        lincls = {"lincls": compared(dry_run(main_lincls, lincls_flags(study, "none"), study.labelled, study.out)[0])}
    more = {name: getattr(options, name) for name in ("mini_crop_size", "asym_bn_group")}  # of designs
    more |= {"init_from": options.init_from and os.path.abspath(options.init_from), "groups": study.groups}
    network = {name: getattr(options, name) for name in ("arch", "stem", "crop_size")}  # of the random encoder, too
    images_of_both = {"train": len(train), "val": len(val), "labelled_paths": f"{train.digest()} {val.digest()}"}
    return {
        "pretraining": {**compared(options), **more, "paths": images.digest()},
        "evaluation": {**network, **images_of_both, "folds": study.folds},
        **lincls,
    }


def compared(options):
    """The options of a script that change the results of all runs, by name."""
    return {name: value for name, value in result_options(options).items() if name not in VARY}


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
        for stage, new in settings.items():
            for name in [name for name in new if name in earlier.get(stage, ())]:  # a flag may be newer than a run
                now, then = new[name], earlier[stage][name]
                if now != then and has_begun(out, stage):
                    of = " of --lincls" * (stage == "lincls")
                    redo = "" if stage == "pretraining" else f", or remove the files {stage}.json to measure again"
                    raise ValueError(
                        f"{WORDS.get(name, label(name))}{of} is {in_words(now)}, but {in_words(then)} for the runs in "
                        f"{out!r}; give the same or another --out{redo}"
                    )
        write_json(path, {**earlier, **settings})


def has_begun(out, stage):
    """Whether a run in the folder `out` has a result of a stage, or, of the pretraining, a checkpoint."""
    names = [f"{stage}.json", *(["checkpoint_*"] if stage == "pretraining" else [])]
    return any(glob.glob(os.path.join(glob.escape(out), "*", "seed*", name)) for name in names)


def in_words(value):
    """The value of a setting as messages show it."""
    return "not given" if value is None else shown(value)


def write_json(path, value):
    """Writes a value as JSON; the file is always complete."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path, text):
    """Writes a text; the file is always complete."""
    save(text, path, lambda text, file: file.write(text.encode()))


@contextlib.contextmanager
def locked(out):
    """Context manager in which no other process of the study writes into the folder `out`, outside its runs."""
    with open(os.path.join(out, LOCK), "w") as file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.lockf(file, fcntl.LOCK_EX)
        yield
