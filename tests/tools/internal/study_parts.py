"""What tests of the study share: a small study, and results that nobody measured."""

from types import SimpleNamespace

from moco.tools.internal.study_runs import BASELINE, RANDOM, parse_run
from moco.tools.internal.study_settings import complete_flags, open_study

FLAGS = [
    "-a",
    "resnet18",
    "--crop-size",
    "32",
    "--mini-crop-size",
    "16",
    "-b",
    "8",
    "--moco-k",
    "32",
    "--moco-dim",
    "8",
]
FLAGS += ["--epochs", "1", "-j", "0", "--variance-every", "1"]


def small_study(imagenet, out, *flags, names=(), **options):
    """A Study of the fake ImageNet with small networks; `flags` are more ones of main_moco.py."""
    args = SimpleNamespace(**{"dir": imagenet, "labelled": None, "out": out, "folds": None, "lincls": None, **options})
    return open_study(args, complete_flags(args, [*FLAGS, *flags]), names)


def result(run, seed, regression, knn=50.0, sides=None, **more):
    """One result; `sides` are the variances of source and target."""
    designs = {} if run in (BASELINE, RANDOM) else parse_run(run)
    sides = dict(zip(("variance_source", "variance_target"), sides or (), strict=False))
    return {
        "run": run,
        "designs": designs,
        "seed": seed,
        "regression_acc1": regression,
        "knn_acc1": knn,
        **sides,
        **more,
    }
