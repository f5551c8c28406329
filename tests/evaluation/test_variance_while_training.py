"""--variance-every: the figures are those of the checkpoint, the training is the same with and without it."""

import json
import os
import re
import signal

import pytest
import torch
import torch.distributed as dist

import main_moco
from moco.builder import add_projector
from moco.data.file_list import ImageFolder
from moco.engine.design_flags import designs_of
from moco.evaluation import variance_while_training
from moco.evaluation.variance import Recipe, WholeBatches, variances, view_loader
from moco.evaluation.variance_while_training import batches_for, side_recipes
from tests.ranks import run_ranks, script_in_rank
from tests.tiny_net import TinyNet, use_tiny_net

FEW, VIEWS = 48, 3  # images and views of each, so that it takes little time
LINE = re.compile(r"^ \* Variance source (\d+\.\d{3}) target (\d+\.\d{3})$", re.M)
KEYS = ["variance_source", "variance_target"]


def words(imagenet, folder, *more):
    small = ["-a", "resnet18", "--crop-size", "24", "-b", "24", "--moco-k", "48", "--seed", "3", "--moco-dim", "8"]
    small += ["--epochs", "3", "--lr", "0.3", "-p", "1", "--enable-mean-encoding", "--design", "asym_bn:source"]
    return [str(imagenet), *small, "--output-dir", str(folder), *map(str, more)]


def logged(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {x["epoch"]: [x[key] for key in KEYS] for x in lines if KEYS[0] in x}


def weights(folder, epoch=2):
    return torch.load(folder / f"checkpoint__{epoch:04d}.pth.tar", weights_only=True)["state_dict"]


def same_weights(folder, other):
    return all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(folder).items())


def quick_run(words):
    """Runs main_moco.py as one of the processes of `run_ranks`; returns what it printed."""
    variance_while_training.IMAGES, variance_while_training.VIEWS = FEW, VIEWS
    return script_in_rank(main_moco, words, tiny=True)


@pytest.fixture
def run(monkeypatch, call):
    """Runs main_moco.py in this process; returns its exit code, standard output and standard error."""
    use_tiny_net(monkeypatch)
    monkeypatch.setattr(variance_while_training, "IMAGES", FEW)
    monkeypatch.setattr(variance_while_training, "VIEWS", VIEWS)
    return lambda *argv: call(main_moco.main, *argv, "-j", 0)


@pytest.fixture(scope="module")
def plain(imagenet, tmp_path_factory):
    """Folders of runs without a measurement, by (number of processes, batch-norm groups of each)."""
    folders = {}
    for world, splits in ((1, 2), (2, 1)):
        folders[world, splits] = tmp_path_factory.mktemp("plain")
        run_ranks(quick_run, world, words(imagenet, folders[world, splits], "--bn-splits", splits))
    return folders


def variances_of(imagenet, folder, epoch):
    """The variances of a checkpoint, computed afterwards on one process."""
    prefix = "module.encoder_q."
    state = {n.removeprefix(prefix): t for n, t in weights(folder, epoch).items() if n.startswith(prefix)}
    network = add_projector(TinyNet(8))
    network.load_state_dict(state)
    args = main_moco.build_parser().parse_args(words(imagenet, folder))
    recipes, images = side_recipes(main_moco.view_plan(args), designs_of(args)), ImageFolder(imagenet / "train")
    loader = view_loader(images, recipes, WholeBatches(96, FEW, 24, VIEWS, 3), 0, "cpu")
    found = variances(network, 8, recipes, loader, "cpu", 2, torch.device("cpu"))
    return [found[key.removeprefix("variance_")].variance for key in KEYS]


@pytest.mark.parametrize("world, splits", [(1, 2), (2, 1)])
def test_the_figures_are_those_of_the_checkpoints_and_the_training_is_the_same(
    world, splits, imagenet, plain, tmp_path
):
    flags = ["--variance-every", 2, "--bn-splits", splits, "--knn-every", 3]
    log, *_ = run_ranks(quick_run, world, words(imagenet, tmp_path, *flags))
    figures = logged(tmp_path)
    assert list(figures) == [1, 2]  # after every second epoch, and after the last one
    for epoch, found in figures.items():
        assert found == pytest.approx(variances_of(imagenet, tmp_path, epoch), rel=1e-4)
    assert LINE.findall(log) == [tuple(f"{value:.3f}" for value in found) for found in figures.values()]
    said = (
        "measured after every 2 epochs and after the last one: 48 images, 3 views of each, in batch-norm groups of 12"
    )
    assert said in log
    assert log.count(" * kNN Acc@1 ") == 1 and same_weights(tmp_path, plain[world, splits])


def test_no_random_state_changes(imagenet, tmp_path, monkeypatch, run):
    measure, states = variance_while_training.VarianceWhileTraining.measure, []

    def watched(*args):
        states.append(torch.get_rng_state())
        figures = measure(*args)
        states.append(torch.get_rng_state())
        return figures

    monkeypatch.setattr(variance_while_training.VarianceWhileTraining, "measure", watched)
    assert run(*words(imagenet, tmp_path, "--variance-every", 1, "--epochs", 1))[0] == 0
    assert list(logged(tmp_path)) == [0]
    assert torch.equal(*states)


def test_a_stop_within_the_measurement_loses_nothing(imagenet, plain, tmp_path, monkeypatch, run):
    """The checkpoint holds all steps of the epoch. The resumed run repeats the measurement, here more often."""
    flags = words(imagenet, tmp_path, "--bn-splits", 2)

    def stopped(*args):
        os.kill(os.getpid(), signal.SIGUSR1)
        return variances(*args)

    with monkeypatch.context() as patch:
        patch.setattr(variance_while_training, "variances", stopped)
        code, out, _ = run(*flags, "--variance-every", 2)
    assert code == 143 and "checkpoint__last.pth.tar' is written" in out and not logged(tmp_path)
    middle = torch.load(tmp_path / "checkpoint__last.pth.tar", weights_only=True)
    assert (middle["epoch"], middle["step"]) == (1, 4) and "variance_every" not in middle["options"]
    code, _, error = run(*flags, "--variance-every", 1, "--resume", "auto")
    assert code == 0, error
    assert list(logged(tmp_path)) == [1, 2] and same_weights(tmp_path, plain[1, 2])


def stopped_rank(words):
    """One of two ranks; the other one gets a signal when the measurement begins. Returns the exit code."""
    if dist.get_rank() == 1:
        measure = variance_while_training.variances

        def signalled(*args):
            os.kill(os.getpid(), signal.SIGUSR1)
            return measure(*args)

        variance_while_training.variances = signalled
    try:
        quick_run(words)
    except SystemExit as stop:
        return stop.code


def test_a_stop_of_one_rank_stops_all_within_the_measurement(imagenet, tmp_path):
    assert run_ranks(stopped_rank, 2, words(imagenet, tmp_path, "--variance-every", 1, "--knn-every", 1)) == [143, 143]
    middle = torch.load(tmp_path / "checkpoint__last.pth.tar", weights_only=True)
    assert (middle["epoch"], middle["step"]) == (0, 4) and not logged(tmp_path)


def test_broken_images_with_skip(imagenet, tmp_path, run):
    data = tmp_path / "data" / "train" / "all"
    data.mkdir(parents=True)
    for i, path in enumerate(sorted((imagenet / "train").glob("*/*.jpg"))[:48]):
        (data / f"{i}.jpg").write_bytes(b"" if i == 30 else path.read_bytes())
    flags = words(tmp_path / "data", tmp_path, "--epochs", 1, "--variance-every", 1)
    code, out, error = run(*flags, "--on-bad-image", "skip")
    assert code == 0 and len(LINE.findall(out)) == 1 and "the next image is used instead" in error


@pytest.mark.parametrize(
    "words, expected",
    [
        ("", {"source": 1, "target": 1}),
        ("--enable-asym-bn", {"source": 1, "target": (1, True)}),
        ("--design asym_bn:both", {"source": (1, True), "target": (1, True)}),
        ("--design mean_encoding:source", {"source": 2, "target": 1}),
        ("--design multicrop:both", {"source": 1, "source_small": 1, "target": 1, "target_small": 1}),
        (
            "--design multicrop:target --enable-mean-encoding --enable-asym-bn",
            {"source": 1, "target": (2, True), "target_small": (1, True)},
        ),
    ],
)
def test_the_recipes_of_both_sides(words, expected):
    args = main_moco.build_parser().parse_args(["D", *words.split(), "--mini-crop-size", "96"])
    plan = main_moco.view_plan(args)
    recipes = side_recipes(plan, designs_of(args))
    assert list(recipes) == list(expected)
    for name, counted in expected.items():
        number, synchronised = counted if isinstance(counted, tuple) else (counted, False)
        side = plan.source if name.startswith("source") else plan.target
        views = side.mini if name.endswith("small") else side.full
        assert recipes[name] == Recipe(views[:number], synchronised)


@pytest.mark.parametrize(
    "images, total_batch, groups, expected",
    [
        (1000, 256, 8, (256, 256, 8)),  # groups of 32, as in the paper
        (1000, 64, 2, (256, 64, 2)),
        (1000, 4096, 128, (256, 256, 8)),  # fewer groups of the same size
        (1000, 1024, 2, (256, 256, 1)),  # a smaller group
        (100, 48, 2, (96, 48, 2)),
        (30, 24, 1, (24, 24, 1)),
    ],
)
def test_groups_are_as_large_as_those_of_the_training(images, total_batch, groups, expected):
    assert batches_for(images, total_batch, groups) == expected


def test_what_it_refuses(imagenet, tmp_path, call):
    code, _, error = call(main_moco.main, *words(imagenet, tmp_path / "out", "--variance-every", 0))
    assert code == 2 and error.count("\n") == 1 and "argument --variance-every: '0' is not an integer >= 1" in error
