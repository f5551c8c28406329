"""What an epoch prints and logs: figures of the global batch, whatever the number of processes and of prints."""

import json
import math
import re

import pytest
import torch

from moco.loss import blind_guess
from tests.ranks import run_script


def train(imagenet, folder, world, *more):
    words = [str(imagenet), "-a", "resnet18", "--crop-size", "24", "-b", "24", "--moco-k", "48", "--seed", "3"]
    words += ["--moco-dim", "8", "--enable-multicrop", "--epochs", "2", "--bn-splits", str(2 // world)]
    log = run_script("main_moco", world, [*words, "--output-dir", str(folder), *more], tiny=True)
    return log, [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(imagenet, tmp_path_factory):
    """Two batch-norm groups in one process and in two; a run that prints rarely. All have the same seed."""
    folder = tmp_path_factory.mktemp("runs")
    flags = {"one": (1, "-p", "3"), "two": (2, "-p", "3"), "rare": (1, "-p", "100")}
    return folder, {name: train(imagenet, folder / name, *words) for name, words in flags.items()}


def test_figures_are_those_of_the_global_batch(runs):
    one, two = (runs[1][name][1] for name in ("one", "two"))
    assert [line["kind"] for line in one] == ["start", *(["step", "step", "epoch"] * 2)]
    keys = {"loss", "acc1", "acc5", "lr", "grad_norm", "std", "positive", "negative"}
    for a, b in zip(one[1:], two[1:], strict=True):
        for key in keys if a["kind"] == "step" else keys & a.keys():
            assert math.isclose(a[key], b[key], rel_tol=1e-3, abs_tol=1e-5), (key, a, b)
    assert 0 < one[1]["std"] <= 1.05 and -1 <= one[1]["negative"] < one[1]["positive"] <= 1 and one[1]["grad_norm"] > 0


def test_prints_change_nothing_but_the_log(runs):
    folder, logs = runs
    a, b = (
        torch.load(folder / name / "checkpoint__0001.pth.tar", weights_only=True)["state_dict"]
        for name in ("one", "rare")
    )
    assert all(torch.equal(tensor, b[name]) for name, tensor in a.items())
    epochs = [[line["loss"] for line in logs[name][1] if line["kind"] == "epoch"] for name in ("one", "rare")]
    assert torch.allclose(*map(torch.tensor, epochs))  # the mean over all steps, not only those that are printed


def test_the_lines_of_a_run(runs):
    log = runs[1]["two"][0]
    assert re.search(r"^loss of a blind guess: 2 ln\(K \+ 1\) = 7\.7836$", log, re.M)
    assert math.isclose(blind_guess(48, 6), 7.7836, rel_tol=1e-5)
    assert "note: with --moco-k 48" not in log  # half the 96 images
    assert re.search(r"^steps: 4 per epoch, 8 in all\nnote: 8 steps are very few", log, re.M)
    assert len(re.findall(r"^Epoch: \[\d\]\[\d/4\]\t.*\tStd \d\.\d+\tLeft .*\tWait", log, re.M)) == 4
    ends = re.findall(
        r"^epoch (\d) ended: mean loss (\S+), Acc@1 \S+, Acc@5 \S+, 0:00:\d\d; writing '(.*)'$", log, re.M
    )
    logged = [line["loss"] for line in runs[1]["two"][1] if line["kind"] == "epoch"]
    assert [(int(n), round(float(loss), 3)) for n, loss, _ in ends] == [(i, round(x, 3)) for i, x in enumerate(logged)]
    *_, finished, quick, following = log.splitlines()
    assert finished.startswith("finished: 2 epochs, 0:00:") and finished.endswith(f"checkpoint: {ends[1][2]!r}")
    assert quick.startswith("next, kNN classification (takes minutes): python -m moco.tools.knn ")
    assert following.startswith("next, linear classification: python main_lincls.py -a resnet18")
