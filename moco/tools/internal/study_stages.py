"""The stages of a run of a study. Each leaves a file STAGE.json in the run's folder, so that none is done twice."""

import json
import os
import platform
import time
from types import SimpleNamespace

import torch
import torchvision

from moco.data.image_places import labelled_images
from moco.distributed import copy_to_device, rank
from moco.engine.checkpoint_names import CheckpointNames
from moco.engine.hardware import hardware
from moco.engine.json_log import git_commit
from moco.evaluation.feature_accuracy import accuracies, folds_of
from moco.evaluation.features import encode_all
from moco.evaluation.pretrained_encoder import open_encoder
from moco.pipe_safe_print import say
from moco.tools.internal.encoder_program import start
from moco.tools.internal.run_log import read_log
from moco.tools.internal.study_programs import ROOT, run_program
from moco.tools.internal.study_runs import BASELINE, RANDOM, design_flags, folder_of
from moco.tools.internal.study_settings import lincls_flags, write_json
from moco.tools.variance import images_of

STAGES = ("pretraining", "evaluation", "lincls", "variance")
BATCH = 256  # images per step of the evaluation
IMAGES = 512  # at most, whose variance is measured; its standard error is then some percent


def missing_stages(study, name, seed):
    """The stages of a run that are not done yet, as a list of (name of the run, stage).

    The random encoder of a seed belongs to its baseline, which starts from it. It comes last.

    Args:
        study: a Study. name: of the run. seed: of the run.
    """
    wanted = [(run, stage) for run in [name] + [RANDOM] * (name == BASELINE) for stage in stages_of(study, run)]
    return [(run, stage) for run, stage in wanted if not os.path.exists(path_of(study, run, seed, stage))]


def stages_of(study, name):
    """The stages of a run, in order. The variance of all recipes is measured by the baseline's encoder alone."""
    left_out = {"pretraining": name == RANDOM, "lincls": study.lincls is None, "variance": name != BASELINE}
    return [stage for stage in STAGES if not left_out.get(stage)]


def path_of(study, name, seed, stage):
    """The path of the result of a stage."""
    return os.path.join(study.out, folder_of(name, seed), f"{stage}.json")


def log_of(path):
    """The path of what the program of a stage prints; `path` is that of the stage's result."""
    return f"{path.removesuffix('.json')}.log"


def perform(study, name, seed, stage):
    """Does one stage of a run, and writes its result.

    Raises:
        ProgramFailed: a program that it starts fails. SystemExit: as `start`, after a line that says why.
        Exception: of any other kind, from the evaluation.
    """
    path = path_of(study, name, seed, stage)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    where = "" if stage == "evaluation" else f"; log: {log_of(path)}"
    say(f"{name}, seed {seed}: {stage}{where}")
    work = {"pretraining": pretrain, "evaluation": evaluate, "lincls": classify, "variance": measure_variance}
    work[stage](study, name, seed, path)


def finish(path, seconds, **figures):
    """Writes the result of a stage: its figures, the seconds that it took, and on what it ran."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }
    about = {"seconds": round(seconds, 1), "hardware": hardware(device), "versions": versions, "git": git_commit()}
    write_json(path, {"figures": figures, **about})


def checkpoint_of(study, name, seed):
    """The path of the last checkpoint of a run; "none", random weights, for the random encoder."""
    if name == RANDOM:
        return "none"
    folder = os.path.join(study.out, folder_of(name, seed))
    return CheckpointNames(folder, "checkpoint_", numbered=True).of_epoch(study.options.epochs - 1)


def pretrain(study, name, seed, path):
    """Pretraining by main_moco.py. Its seconds are those of all training steps, over all interruptions."""
    folder = os.path.dirname(path)
    if not os.path.exists(checkpoint_of(study, name, seed)):
        own = [*design_flags(name), "--seed", str(seed), "--resume", "auto", "--output-dir", folder]
        run_program(
            [os.path.join(ROOT, "main_moco.py"), "--keep", "1", *study.flags, *own, study.data],
            log_of(path),
        )
    log = read_log(folder)[-1]
    last = [line for *_, line in log.lines if line["kind"] == "epoch"][-1]
    seconds = log.steps_per_epoch * log.curve("epoch", "seconds")[1].sum()
    own = {f"own_{key}": value for key, value in last.items() if key.startswith("variance_")}
    finish(path, seconds, loss=last["loss"], **own)


def evaluate(study, name, seed, path):
    """kNN and logistic regression on the features of the frozen encoder."""
    options = study.options
    flags = {"arch": options.arch, "crop_size": options.crop_size, "stem": options.stem, "seed": seed}
    encoder = open_encoder(checkpoint_of(study, name, seed), **flags)
    folders = [labelled_images(study.labelled, split) for split in ("train", "val")]
    args = SimpleNamespace(nproc=None, batch_size=BATCH, workers=options.workers)
    args.skip, args.folds, args.path = options.on_bad_image == "skip", study.folds, path
    start(encode_and_classify, args, encoder, folders)


def encode_and_classify(encoding, folders):
    """One process of `evaluate`. The processes share the encoding; rank 0 does the rest, and writes the result."""
    started, args, encoder, device = time.monotonic(), encoding.args, encoding.encoder, encoding.device
    loaders = [encoding.loader(folder, "evaluation", args.skip) for folder in folders]
    done, labels, features = encoding.progress("evaluation", *loaders), [], []
    for folder, loader in zip(folders, loaders, strict=True):
        indices, x = encode_all(encoder.network, encoder.dim, loader, device, step_done=done)
        labels.append(torch.from_numpy(folder.labels).long()[indices])
        features.append(x)
    if rank() == 0:
        train = len(labels[0])
        labels, features = torch.cat(labels), torch.cat(features)
        part = folds_of(labels, args.folds) if args.folds else (torch.arange(len(labels)) >= train).long()
        parts = [copy_to_device(part == n, device) for n in (range(args.folds) if args.folds else (1,))]
        found = accuracies(features, copy_to_device(labels, device), len(folders[0].classes), parts)
        left_out = sum(map(len, folders)) - len(labels)
        say(
            f" * kNN Acc@1 {found['knn_acc1']:.3f} Acc@5 {found['knn_acc5']:.3f}, regression Acc@1 "
            f"{found['regression_acc1']:.3f}"
        )
        finish(args.path, time.monotonic() - started, **found, **({"left_out": left_out} if left_out else {}))


def classify(study, name, seed, path):
    """Linear classification by main_lincls.py; its figure is the best validation accuracy, as the script reports."""
    started, folder = time.monotonic(), os.path.join(os.path.dirname(path), "lincls")
    os.makedirs(folder, exist_ok=True)
    flags = lincls_flags(study, checkpoint_of(study, name, seed))
    own = ["--seed", str(seed), "--output-dir", folder, "--resume", "auto", study.labelled]
    run_program([os.path.join(ROOT, "main_lincls.py"), *flags, *own], log_of(path))
    best = read_log(folder)[-1].curve("epoch", "val_acc1")[1].max()
    finish(path, time.monotonic() - started, linear_acc1=best)


def measure_variance(study, name, seed, path):
    """The variance of every recipe by moco.tools.variance, as it prints it.

    A batch has as many images as AsymBN normalises together in the pretraining.
    """
    started, options, log = time.monotonic(), study.options, log_of(path)
    words = ["-m", "moco.tools.variance", checkpoint_of(study, name, seed), study.data, "--json", "--seed", str(seed)]
    words += ["-b", str(options.total_batch // study.groups * min(study.groups, options.asym_bn_group))]
    words += ["--images", str(min(IMAGES, len(images_of(study.data)))), "-j", str(options.workers)]
    words += ["--augment-on", options.augment_on, "--on-bad-image", options.on_bad_image]
    run_program(words, log)
    with open(log) as file:
        result = [line for line in file if line.startswith("{")][-1]
    finish(path, time.monotonic() - started, variances=json.loads(result))
