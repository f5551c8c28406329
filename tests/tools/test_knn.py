"""knn: its figures are those of moco.evaluation.knn, whatever the file, on one process and on two."""

import json
import re

import pytest
import torch

from moco.data.file_list import ImageFolder
from moco.engine import progress
from moco.evaluation.knn import knn_accuracy
from moco.evaluation.pretrained_encoder import open_encoder
from moco.loader import central_loader
from moco.tools import knn
from tests.tiny_net import ARCH, WIDTH
from tests.tools.frequent_progress import often

LINE = re.compile(r"^ \* kNN Acc@1 (\d+\.\d{3}) Acc@5 (\d+\.\d{3}) k (\d+)$", re.M)


def expected(network, imagenet, ks, size=32):
    """The result of moco.evaluation.knn, in the form of the last line of --json."""
    loaders = [central_loader(ImageFolder(imagenet / split), size, 9, 0) for split in ("val", "train")]
    accuracies, _ = knn_accuracy(network, WIDTH, *loaders, ks, torch.device("cpu"))
    results = [{"k": k, "acc1": acc1, "acc5": acc5} for k, (acc1, acc5) in zip(ks, accuracies, strict=True)]
    return {**results[0], "results": results}


def check(out, result, imagenet, size=32):
    """Whether the lines of text and the last line, as JSON, say the result."""
    found = [(f"{r['acc1']:.3f}", f"{r['acc5']:.3f}", str(r["k"])) for r in result["results"]]
    assert LINE.findall(out) == found
    line = json.loads(out.splitlines()[-1])
    assert str(line.pop("checkpoint")) in out
    assert line == {**result, "arch": ARCH, "crop_size": size, "data": str(imagenet)}


@pytest.mark.parametrize("kind", ["own", "published", "torchvision"])
def test_the_figures_are_those_of_the_checkpoint(kind, checkpoints, imagenet, encoder, call):
    flags = ["-j", 0, "-b", 20, "--k", 1, 5, 20, "--json", *(["--crop-size", 32] if kind != "own" else [])]
    code, out, error = call(knn.main, checkpoints[kind], imagenet, *flags)
    assert (code, error) == (0, "")
    result = expected(encoder, imagenet, [1, 5, 20])
    check(out, result, imagenet)
    assert len({(r["acc1"], r["acc5"]) for r in result["results"]}) > 1  # so that a wrong k would be noticed
    tensors = len(encoder.state_dict())
    assert out.splitlines()[:3] == [
        f"images: 96 of 12 classes in '{imagenet}/train'",
        f"images: 36 of 12 classes in '{imagenet}/val'",
        f"encoder: {ARCH} with {tensors} tensors of '{checkpoints[kind]}', {WIDTH} features, images of 32 px",
    ]


def test_a_random_encoder_and_a_flag_that_overrules_the_file(checkpoints, imagenet, encoder, call):
    flags = ["-a", ARCH, "--crop-size", 40, "-j", 0]
    code, out, error = call(knn.main, "none", imagenet, *flags, "--json")
    assert (code, error) == (0, "") and f"with random weights, {WIDTH} features, images of 40 px" in out
    check(out, expected(open_encoder("none", ARCH, 40).network, imagenet, [20], 40), imagenet, 40)
    code, out, error = call(knn.main, checkpoints["own"], imagenet, *flags)
    assert (code, error) == (0, "") and "images of 40 px" in out
    found = expected(encoder, imagenet, [20], 40)
    assert LINE.findall(out) == [(f"{found['acc1']:.3f}", f"{found['acc5']:.3f}", "20")] and "{" not in out
    assert found != expected(encoder, imagenet, [20], 32)


def test_two_processes_say_the_same_once(checkpoints, imagenet, encoder, run_tool):
    words = [checkpoints["own"], imagenet, "-j", 1, "--k", 5, 20, "--json"]
    code, out, error = run_tool("knn", *words, "--nproc", 2, prepare=often)
    assert code == 0 and out.count("\n") == 3 + 2 + 1, error
    check(out, expected(encoder, imagenet, [5, 20]), imagenet)
    assert error == "kNN: 36 of 132 images (27%), 0:00:00 left\n"


def test_progress_goes_to_standard_error(checkpoints, imagenet, call, monkeypatch):
    monkeypatch.setattr(progress, "INTERVAL", 0)
    code, out, error = call(knn.main, checkpoints["own"], imagenet, "-j", 0, "-b", 32)
    error = re.sub(r"checking .*\n", "", error)
    assert code == 0 and "images (" not in out
    done = [32, 36, 68, 100]  # of val, then of train; of the end there is no line
    shares = re.findall(r"^kNN: (\d+) of 132 images \(\d+%\), \d:\d\d:\d\d left$", error, re.M)
    assert list(map(int, shares)) == done and error.count("\n") == len(done)


@pytest.mark.parametrize("nproc", [1, 2])
def test_a_broken_image_ends_it(nproc, checkpoints, imagenet, tmp_path, run_tool):
    for path in imagenet.glob("*/*/*.jpg"):
        (tmp_path / path.relative_to(imagenet)).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path.relative_to(imagenet)).write_bytes(path.read_bytes())
    bad = tmp_path / "train" / "star_dots" / "0003.jpg"
    bad.write_bytes(b"no image")
    words = ["knn", checkpoints["own"], tmp_path, "-j", nproc - 1, "--nproc", nproc]
    code, out, error = run_tool(*words)
    assert code == 1 and "kNN Acc" not in out and error.count("\n") == 1
    assert f"error: can't decode the image '{bad}'" in error
    code, out, error = run_tool(*words, "--on-bad-image", "skip")
    assert code == 0 and "note: the kNN classification leaves out 1 image that can't be decoded\n" in out, error


def one_class_less(root):
    (root / "train" / "a").mkdir(parents=True)
    (root / "val" / "b").mkdir(parents=True)
    for folder in ("train/a", "val/b"):
        (root / folder / "1.jpg").write_bytes(b"")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda root: root.rmdir(), "no folder 'ROOT'; it must hold the folders train and val"),
        (
            lambda root: None,
            "no folder 'ROOT/val'; 'ROOT' must hold the folders train and val, or train.tar and val.tar",
        ),
        (lambda root: (root / "train").mkdir(), "with one folder of images per class, but holds 'train'"),
        (lambda root: [(root / x).mkdir() for x in ("train", "val")], "no class folders in 'ROOT/val'; it must hold"),
        (one_class_less, "'ROOT/train' and 'ROOT/val' must have the same classes; 'a' is only in one of them"),
    ],
)
def test_images_that_it_refuses(make, message, checkpoints, tmp_path, refused):
    root = tmp_path / "data"
    root.mkdir()
    make(root)
    refused("knn", [checkpoints["own"], root], message.replace("ROOT", str(root)))


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--k", 5, 97], "--k 97 is more than the 96 images of "),
        (["--k", 0], "--k: '0' is not an integer >= 1"),
        (["--k"], "--k: expected at least one argument"),
        (["--nearest", 3], "unknown flag --nearest; --help lists all flags"),
    ],
)
def test_flags_that_it_refuses(flags, message, checkpoints, imagenet, refused):
    refused("knn", [checkpoints["own"], imagenet, *flags], message)


def test_features_that_fill_the_memory_are_refused(imagenet, refused, monkeypatch):
    monkeypatch.setattr(knn, "process_memory", lambda processes: 1000 // processes)
    message = f"the features of the 36 images of '{imagenet}/val' need 0.1 MB in each process, more than a quarter"
    refused("knn", ["none", imagenet, "-a", "shufflenet_v2_x0_5", "--nproc", 2], message)
