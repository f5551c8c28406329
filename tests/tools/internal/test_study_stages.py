"""The stages of a run: which are missing, the commands they start, and what they leave."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from torchvision import models

from moco.engine.checkpoint_format import CheckpointError
from moco.tools import knn
from moco.tools.internal import study_stages
from moco.tools.internal.encoder_program import Encoding
from moco.tools.internal.study_stages import checkpoint_of, missing_stages, path_of, perform
from tests.ranks import run_ranks
from tests.readme import ROOT
from tests.tiny_net import TinyNet, use_tiny_net
from tests.tools.internal.study_parts import FLAGS, small_study
from tests.tools.internal.written_log import CLASSIFICATION, PRETRAINING, begin, small_run

VARIANCES = {"baseline": {"variance": 8.0, "standard_error": 0.1, "ratio": 1.0}}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    use_tiny_net(monkeypatch)


@pytest.fixture
def started(monkeypatch):
    """The command lines, as lists of words, of the programs that would start; each leaves what its stage needs."""
    lines = []

    def run_program(words, log):
        lines.append(words)
        if words[0] == f"{ROOT}/main_moco.py":
            small_run(path_of_option(words), "a1", epochs=3)
        elif words[0] == f"{ROOT}/main_lincls.py":
            file = begin(path_of_option(words), "a2", **CLASSIFICATION)
            for epoch, acc1 in enumerate([40.0, 55.5, 50.0]):
                file.write("epoch", epoch=epoch, val_acc1=acc1)
        else:
            with open(log, "w") as file:
                file.write(f"{{an earlier try}}\ntable\n{json.dumps(VARIANCES)}\nvariance: 32 of 32 views\n")

    monkeypatch.setattr(study_stages, "run_program", run_program)
    return lines


def path_of_option(words):
    return Path(words[words.index("--output-dir") + 1])


def result_of(study, name, seed, stage):
    with open(path_of(study, name, seed, stage)) as file:
        return json.load(file)


def test_which_stages_are_missing(imagenet, tmp_path):
    study = small_study(imagenet, tmp_path)
    base = [("baseline", stage) for stage in ("pretraining", "evaluation", "variance")]
    assert missing_stages(study, "baseline", 1) == [*base, ("random", "evaluation")]
    multicrop = [("multicrop:both", stage) for stage in ("pretraining", "evaluation")]
    assert missing_stages(study, "multicrop:both", 1) == multicrop
    with_lincls = small_study(imagenet, tmp_path, lincls=[])
    own = [("baseline", stage) for stage in ("pretraining", "evaluation", "lincls", "variance")]
    assert missing_stages(with_lincls, "baseline", 1) == [*own, ("random", "evaluation"), ("random", "lincls")]
    for folder, stage in (("baseline", "pretraining"), ("baseline", "evaluation"), ("random", "evaluation")):
        os.makedirs(tmp_path / folder / "seed1", exist_ok=True)
        (tmp_path / folder / "seed1" / f"{stage}.json").write_text("{}")
    assert missing_stages(study, "baseline", 1) == [("baseline", "variance")]  # of a study before this stage
    assert missing_stages(study, "multicrop:both", 1) == multicrop
    assert len(missing_stages(study, "baseline", 0)) == 4


def test_pretraining(imagenet, tmp_path, started, capsys):
    study = small_study(imagenet, tmp_path, "--epochs", "3")
    perform(study, "multicrop:target", 4, "pretraining")
    folder = f"{tmp_path}/multicrop-target/seed4"
    own = ["--design", "multicrop:target", "--seed", "4", "--resume", "auto", "--output-dir", folder, str(imagenet)]
    assert started == [[f"{ROOT}/main_moco.py", "--keep", "1", *FLAGS, "--epochs", "3", *own]]
    assert capsys.readouterr().out == f"multicrop:target, seed 4: pretraining; log: {folder}/pretraining.log\n"
    found = result_of(study, "multicrop:target", 4, "pretraining")
    assert found["figures"] == {"loss": 3.5} and found["seconds"] == 3 * 4 * 0.5
    assert found["versions"].keys() == {"python", "torch", "torchvision"} and {"git", "hardware"} <= found.keys()
    # The last checkpoint is there, but not the result: nothing is trained again.
    os.remove(path_of(study, "multicrop:target", 4, "pretraining"))
    assert checkpoint_of(study, "multicrop:target", 4) == f"{folder}/checkpoint__0002.pth.tar"
    open(checkpoint_of(study, "multicrop:target", 4), "w").close()
    perform(study, "multicrop:target", 4, "pretraining")
    assert len(started) == 1 and result_of(study, "multicrop:target", 4, "pretraining")["figures"] == {"loss": 3.5}


def test_the_variance_of_a_runs_own_encoder_is_kept(imagenet, tmp_path, started):
    study = small_study(imagenet, tmp_path)
    folder = tmp_path / "baseline" / "seed0"
    folder.parent.mkdir()
    log = begin(folder, "a1", **PRETRAINING)
    sides = {"variance_source": 9.0, "variance_target": 7.0}
    sides |= {"variance_source_small": 6.0, "variance_target_small": 5.0}
    log.write("epoch", epoch=0, loss=2.5, seconds=1.0, **sides)
    (folder / "checkpoint__0000.pth.tar").touch()
    perform(study, "baseline", 0, "pretraining")
    figures = {"loss": 2.5} | {f"own_{name}": value for name, value in sides.items()}
    assert result_of(study, "baseline", 0, "pretraining")["figures"] == figures


def test_linear_classification(imagenet, tmp_path, started):
    study = small_study(imagenet, tmp_path, "-j", "1", lincls=["--lars", "-b", "16"])
    perform(study, "random", 2, "lincls")
    folder = f"{tmp_path}/random/seed2/lincls"
    flags = ["--crop-size", "32", "-j", "1", "--lars", "-b", "16", "-a", "resnet18", "--stem", "imagenet"]
    own = ["--pretrained", "none", "--seed", "2", "--output-dir", folder, "--resume", "auto", str(imagenet)]
    assert started == [[f"{ROOT}/main_lincls.py", *flags, *own]]
    assert result_of(study, "random", 2, "lincls")["figures"] == {"linear_acc1": 55.5}


@pytest.mark.parametrize("groups, batch", [("1", 8), ("2", 8), ("4", 4)])
def test_variance(groups, batch, imagenet, tmp_path, started):
    study = small_study(imagenet, tmp_path, "--bn-splits", groups, "--asym-bn-group", "2", "--on-bad-image", "skip")
    perform(study, "baseline", 3, "variance")
    words = ["-m", "moco.tools.variance", f"{tmp_path}/baseline/seed3/checkpoint__0000.pth.tar", str(imagenet)]
    words += ["--json", "--seed", "3", "-b", str(batch), "--images", "36", "-j", "0"]  # 36 images in val
    assert started == [[*words, "--augment-on", "cpu", "--on-bad-image", "skip"]]
    assert result_of(study, "baseline", 3, "variance")["figures"] == {"variances": VARIANCES}


@pytest.mark.parametrize("folds", [None, 4])
def test_evaluation(folds, imagenet, tmp_path, capsys):
    study = small_study(imagenet, tmp_path, folds=folds)
    perform(study, "random", 5, "evaluation")
    figures = result_of(study, "random", 5, "evaluation")["figures"]
    assert figures.keys() == {"knn_acc1", "knn_acc5", "regression_acc1"}
    images = 132 if folds else 36
    for value in figures.values():
        assert round(value * images / 100) == pytest.approx(value * images / 100) and 0 < value <= 100
    out = capsys.readouterr().out
    assert f" * kNN Acc@1 {figures['knn_acc1']:.3f} Acc@5 {figures['knn_acc5']:.3f}, regression Acc@1 " in out


def evaluate_in_rank(study):
    """Evaluates the random encoder in one of several processes; returns the figures that this one has written."""
    models.get_model = lambda arch, num_classes=1000: TinyNet(num_classes)
    study_stages.start = lambda work, args, encoder, *rest: work(Encoding(torch.device("cpu"), args, encoder), *rest)
    written = []
    study_stages.finish = lambda path, seconds, **figures: written.append(figures)
    perform(study, "random", 5, "evaluation")
    return written


def test_several_processes_share_the_evaluation_and_one_writes_it(imagenet, tmp_path):
    study = small_study(imagenet, tmp_path)
    perform(study, "random", 5, "evaluation")
    expected = pytest.approx(result_of(study, "random", 5, "evaluation")["figures"])
    assert run_ranks(evaluate_in_rank, 2, study) == [[expected], []]


def test_evaluation_gives_the_accuracies_of_the_knn_program(imagenet, tmp_path, capsys):
    study = small_study(imagenet, tmp_path)
    perform(study, "random", 0, "evaluation")
    figures = result_of(study, "random", 0, "evaluation")["figures"]
    capsys.readouterr()
    knn.main(["none", str(imagenet), "-a", "resnet18", "--crop-size", "32", "-j", "0"])
    assert f"Acc@1 {figures['knn_acc1']:.3f} Acc@5 {figures['knn_acc5']:.3f} k 20" in capsys.readouterr().out


def test_images_that_cant_be_decoded(imagenet, tmp_path, capsys):
    data = shutil.copytree(imagenet, tmp_path / "data")
    broken = sorted((data / "val").glob("*/*"))[3]
    broken.write_bytes(broken.read_bytes()[:100])
    study = small_study(data, tmp_path / "out", "--on-bad-image", "skip")
    perform(study, "random", 0, "evaluation")
    assert result_of(study, "random", 0, "evaluation")["figures"]["left_out"] == 1
    with pytest.raises(SystemExit) as stop:
        perform(small_study(data, tmp_path / "out"), "random", 1, "evaluation")
    assert stop.value.code == 1 and f"'{broken}'" in capsys.readouterr().err
    assert not os.path.exists(path_of(study, "random", 1, "evaluation"))


def test_a_checkpoint_that_is_missing(imagenet, tmp_path):
    with pytest.raises(CheckpointError, match="baseline/seed0/checkpoint__0000"):
        perform(small_study(imagenet, tmp_path), "baseline", 0, "evaluation")
