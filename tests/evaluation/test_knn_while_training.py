"""--knn-every: the figures are those of the knn of the checkpoint, the training is the same with and without it."""

import json
import os
import re
import signal
import time

import pytest
import torch
import torch.distributed as dist

import main_moco
from moco.data.file_list import ImageFolder
from moco.engine.pretrained_backbone import backbone_for
from moco.evaluation import knn_while_training
from moco.evaluation.frozen_backbone import freeze
from moco.evaluation.knn import knn_accuracy
from moco.evaluation.knn_images import check_features
from moco.loader import central_loader
from tests.ranks import run_ranks, run_script, script_in_rank
from tests.tiny_net import TinyNet, use_tiny_net

LINE = re.compile(r"^ \* kNN Acc@1 (\d+\.\d{3}) Acc@5 (\d+\.\d{3}) k 5$", re.M)


def words(imagenet, folder, *more):
    small = ["-a", "resnet18", "--crop-size", "24", "-b", "24", "--moco-k", "48", "--seed", "3", "--moco-dim", "8"]
    small += ["--epochs", "3", "--enable-mean-encoding", "--lr", "0.3", "-p", "1"]
    return [str(imagenet), *small, "--output-dir", str(folder), *map(str, more)]


def logged(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {x["epoch"]: (x["knn_acc1"], x["knn_acc5"]) for x in lines if "knn_acc1" in x}


def weights(folder, epoch=2):
    return torch.load(folder / f"checkpoint__{epoch:04d}.pth.tar", weights_only=True)["state_dict"]


def accuracy_of(imagenet, folder, epoch):
    """The kNN accuracy of a checkpoint, computed afterwards."""
    network, path = TinyNet(8), str(folder / f"checkpoint__{epoch:04d}.pth.tar")
    checkpoint = torch.load(path, weights_only=True)
    network.load_state_dict(backbone_for(network, checkpoint, path, "resnet18"), strict=False)
    loaders = [central_loader(ImageFolder(imagenet / split), 24, 9, 0) for split in ("val", "train")]
    (accuracy,), _ = knn_accuracy(*freeze(network), *loaders, [5], torch.device("cpu"))
    return accuracy


@pytest.fixture(scope="module")
def plain(imagenet, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    run_script("main_moco", 1, words(imagenet, folder), tiny=True)
    return folder


@pytest.mark.parametrize("world, splits", [(1, 1), (1, 2), (2, 1)])
def test_the_figures_are_those_of_the_checkpoints_and_the_training_is_the_same(
    world, splits, imagenet, plain, tmp_path
):
    flags = ["--knn-every", 2, "--knn-k", 5, "--bn-splits", splits]
    log = run_script("main_moco", world, words(imagenet, tmp_path, *flags), tiny=True)
    figures = logged(tmp_path)
    assert set(figures) == {1, 2}  # after every second epoch, and after the last one
    for epoch, found in figures.items():
        assert found == pytest.approx(accuracy_of(imagenet, tmp_path, epoch), abs=1e-9)
    assert LINE.findall(log) == [(f"{acc1:.3f}", f"{acc5:.3f}") for acc1, acc5 in figures.values()]
    assert log.count(f"images: 36 of 12 classes in '{imagenet}/val'") == 1
    if (world, splits) == (1, 1):
        assert all(torch.equal(tensor, weights(plain)[name]) for name, tensor in weights(tmp_path).items())
    if world == 2:
        assert all(map(torch.equal, weights(tmp_path).values(), two_without(imagenet, tmp_path / "b").values()))


def two_without(imagenet, folder):
    run_script("main_moco", 2, words(imagenet, folder), tiny=True)
    return weights(folder)


def test_a_stop_within_the_classification_loses_nothing(imagenet, plain, tmp_path, monkeypatch, call):
    """The checkpoint holds all steps of the epoch; the resumed run repeats the classification."""
    use_tiny_net(monkeypatch)
    flags = words(imagenet, tmp_path, "--knn-every", 1, "--knn-k", 5, "-j", 0)

    def stopped(*args):
        os.kill(os.getpid(), signal.SIGUSR1)
        for _ in range(500):
            args[-1](1)  # a step
            time.sleep(0.01)

    with monkeypatch.context() as patch:
        patch.setattr(knn_while_training, "knn_accuracy", stopped)
        code, out, _ = call(main_moco.main, *flags)
    assert code == 143 and "checkpoint__last.pth.tar' is written" in out and not logged(tmp_path)
    middle = torch.load(tmp_path / "checkpoint__last.pth.tar", weights_only=True)
    assert (middle["epoch"], middle["step"]) == (0, 4)
    code, _, error = call(main_moco.main, *flags, "--resume", "auto", "--knn-k", 7, "--knn-data", imagenet)
    assert code == 0, error
    assert list(logged(tmp_path)) == [0, 1, 2]
    assert all(torch.equal(tensor, weights(plain)[name]) for name, tensor in weights(tmp_path).items())


def stopped_rank(words):
    """One of two ranks; the other one gets a signal when the classification begins. Returns the exit code."""
    if dist.get_rank() == 1:
        classify = knn_while_training.knn_accuracy

        def signalled(*args):
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.2)
            return classify(*args)

        knn_while_training.knn_accuracy = signalled
    try:
        script_in_rank(main_moco, words, tiny=True)
    except SystemExit as stop:
        return stop.code


def test_a_stop_of_one_rank_stops_all_within_the_classification(imagenet, tmp_path):
    assert run_ranks(stopped_rank, 2, words(imagenet, tmp_path, "--knn-every", 2, "--knn-k", 5)) == [143, 143]
    middle = torch.load(tmp_path / "checkpoint__last.pth.tar", weights_only=True)
    assert (middle["epoch"], middle["step"]) == (1, 4) and not logged(tmp_path)


def test_a_classification_that_fails_loses_nothing(imagenet, tmp_path, monkeypatch, call):
    use_tiny_net(monkeypatch)
    monkeypatch.setattr(knn_while_training, "knn_accuracy", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main_moco.main(words(imagenet, tmp_path, "--knn-every", 1, "-j", 0))
    assert torch.load(tmp_path / "checkpoint__last.pth.tar", weights_only=True)["step"] == 4


@pytest.fixture
def unlabelled(imagenet, tmp_path):
    """All training images in one folder, two of which are broken."""
    folder = tmp_path / "unlabelled" / "train" / "all"
    folder.mkdir(parents=True)
    for i, path in enumerate(sorted((imagenet / "train").glob("*/*.jpg"))):
        (folder / f"{i}.jpg").write_bytes(path.read_bytes())
    return tmp_path / "unlabelled"


def test_unlabelled_images_take_other_data(imagenet, unlabelled, tmp_path, monkeypatch, call):
    use_tiny_net(monkeypatch)
    flags = words(unlabelled, tmp_path, "-j", 0, "--epochs", 1, "--knn-every", 1, "--knn-k", 5)
    code, _, error = call(main_moco.main, *flags)
    assert code == 2 and error.count("\n") == 1
    assert f"--knn-every needs labelled images: no folder '{unlabelled}/val'; " in error
    assert error.endswith("or give other images by --knn-data\n")
    (unlabelled / "val" / "star_dots").mkdir(parents=True)
    (unlabelled / "val" / "star_dots" / "a.jpg").write_bytes((imagenet / "val/star_dots/0001.jpg").read_bytes())
    code, _, error = call(main_moco.main, *flags)
    assert code == 2 and "must have the same classes; 'all' is only in one of them; or give other images" in error
    code, _, error = call(main_moco.main, *flags, "--knn-data", unlabelled / "smal")
    assert code == 2 and f"--knn-data needs labelled images: no folder '{unlabelled}/smal'" in error
    code, out, error = call(main_moco.main, *flags, "--knn-data", imagenet)
    assert code == 0, error
    assert f"kNN (k = 5) classifies images of '{imagenet}/val' by those of '{imagenet}/train' after each epoch" in out
    assert logged(tmp_path)[0] == pytest.approx(accuracy_of(imagenet, tmp_path, 0), abs=1e-9)
    assert "next, kNN classification" not in out and "next, linear classification" in out


def test_broken_images_with_skip(imagenet, tmp_path, monkeypatch, call):
    use_tiny_net(monkeypatch)
    data = tmp_path / "data"
    for path in imagenet.glob("*/*/*.jpg"):
        copy = data / path.relative_to(imagenet)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(b"" if copy.name == "0001.jpg" and "val" in copy.parts else path.read_bytes())
    flags = words(data, tmp_path, "-j", 0, "--epochs", 1, "--knn-every", 1)
    assert call(main_moco.main, *flags)[0] == 1
    assert torch.load(tmp_path / "checkpoint__last.pth.tar", weights_only=True)["step"] == 4
    code, out, error = call(main_moco.main, *flags, "--on-bad-image", "skip")
    assert code == 0 and "note: the kNN classification leaves out 12 images that can't be decoded" in out, error


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--knn-every", "0"], "'0' is not an integer >= 1"),
        (["--knn-every", "1", "--knn-k", "97"], "--knn-k 97 is more than the 96 images of "),
        (["--knn-every", "1", "--knn-data", "nowhere"], "no folder 'nowhere'; it must hold the folders train and val"),
    ],
)
def test_what_it_refuses(flags, message, imagenet, tmp_path, call):
    code, _, error = call(main_moco.main, *words(imagenet, tmp_path / "out", *flags))
    assert code == 2 and error.count("\n") == 1 and message in error and not (tmp_path / "out").exists()


def test_features_that_fill_the_memory_are_refused(imagenet):
    val = ImageFolder(imagenet / "val")
    check_features(val, 10**6, 36 * 10**6 * 4 * 4)
    with pytest.raises(ValueError, match=r"36 images of '.*/val' need 144\.0 MB in each process, .* of its 576\.0 MB"):
        check_features(val, 10**6, 36 * 10**6 * 4 * 4 - 1)


def test_flags_without_effect_are_named(imagenet, tmp_path, call):
    flags = words(imagenet, tmp_path, "--knn-k", "7", "--knn-data", imagenet, "--dry-run")
    code, out, _ = call(main_moco.main, *flags)
    assert code == 0
    for name in ("k", "data"):
        assert f"note: --knn-{name} has no effect without --knn-every" in out
