"""The command that measures the variance: its figures are those of moco.evaluation.variance; what it refuses."""

import hashlib
import json
import shutil
import sys

import pytest
import torch

from moco.data.file_list import ImageFolder
from moco.engine import progress
from moco.engine.pretrained_backbone import SOURCE, TARGET
from moco.evaluation.pretrained_encoder import open_encoder
from moco.evaluation.variance import Variance, WholeBatches, paper_recipes, variances, view_loader
from moco.tools import variance
from tests.tools.conftest import ARCH

NAMES = ["baseline", "multicrop_small", "multicrop_full", "scalemix", "stronger", "weaker", "mean_encoding", "asym_bn"]


@pytest.fixture(scope="module")
def trained(checkpoints, tmp_path_factory):
    """The checkpoint `own`, as a run with --recipe and other batch-norm groups would have written it."""
    path = tmp_path_factory.mktemp("trained") / "c.pth.tar"
    content = torch.load(checkpoints["own"], weights_only=True)
    for name, tensor in content["state_dict"].items():
        if name.startswith("module.encoder_k.fc") and tensor.is_floating_point():
            tensor.mul_(1.5)
    options = {**content["options"], "recipe": ["blur_p=0", "scale=0.3,1"], "total_batch": 24, "bn_splits": 3}
    torch.save({**content, "options": options, "processes": 2}, path)  # groups of 4 images
    return path


def expected(path, folder, encoder=SOURCE, size=32, images=24, batch=12, views=2, splits=2, seed=0, **recipe):
    """The figures of moco.evaluation.variance, in the form of the last line of --json."""
    opened = open_encoder(str(path), ARCH, size, True, encoder)
    recipes, folder = paper_recipes(size, **recipe), ImageFolder(folder, labels=False)
    batches = WholeBatches(len(folder), images, batch, views, seed)
    loader = view_loader(folder, recipes, batches, 0, "device")
    network = opened.network.to(memory_format=torch.channels_last)  # as in the tool; rounding grows in small groups
    found = variances(network, opened.dim, recipes, loader, "device", splits, torch.device("cpu"))
    base = found["baseline"].variance
    return {name: {**one._asdict(), "ratio": one.variance / base} for name, one in found.items()}


def test_the_figures_are_those_of_the_checkpoint(trained, imagenet, call):
    before = hashlib.md5(trained.read_bytes()).hexdigest()
    words = [trained, imagenet, "-j", 0, "-b", 11, "--views", 2, "--images", 25, "--seed", 4, "--encoder", "k"]
    code, out, error = call(variance.main, *words, "--json")
    assert code == 0 and error == ""
    recipe = {"blur_p": 0.0, "scale": (0.3, 1.0)}
    # 11 images can't be divided into groups of 4, so there is one group.
    result = expected(trained, imagenet / "val", TARGET, images=22, batch=11, splits=1, seed=4, **recipe)
    assert json.loads(out.splitlines()[-1]) == result and list(result) == NAMES
    assert out.splitlines()[2:-1] == [
        "variance by encoder_k, in hundredths (0: all views alike, 100: random): 22 images, 2 views of each, in "
        "batches of 11 with 1 batch-norm group",
        "note: asym_bn is equal to the baseline, since there is only one batch-norm group; give more --bn-splits",
        "recipe            variance  std. error   ratio",
        *[f"{n:16} {x['variance']:9.3f} {x['standard_error']:11.3f} {x['ratio']:7.3f}" for n, x in result.items()],
    ]
    assert result["asym_bn"] == result["baseline"] and hashlib.md5(trained.read_bytes()).hexdigest() == before


def test_two_processes_say_the_same_once(checkpoints, imagenet, run_tool):
    words = [checkpoints["own"], imagenet, "-j", 0, "-b", 12, "--views", 2, "--images", 24, "--bn-splits", 2, "--json"]
    code, out, error = run_tool("variance", *words, "--nproc", 2)
    assert code == 0 and out.count("\n") == 3 + 9 + 1, error
    assert "24 images, 2 views of each, in batches of 12 with 2 batch-norm groups of 6 images\n" in out
    result = expected(checkpoints["own"], imagenet / "val")
    for name, figures in json.loads(out.splitlines()[-1]).items():
        assert figures == pytest.approx(result[name], rel=1e-9), name
    assert result["asym_bn"]["ratio"] != 1


def test_any_folder_of_images_a_random_encoder_and_the_picture(imagenet, tmp_path, call, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(progress, "INTERVAL", 0)
    out_file, (folder, *_) = tmp_path / "v.png", sorted((imagenet / "val").iterdir())
    flags = ["-a", ARCH, "--crop-size", 32, "-j", 0, "--views", 2, "--json", "--out", out_file]
    code, out, error = call(variance.main, "none", folder, *flags)
    assert code == 0 and f"images: 3 in '{folder}'\n" in out and "3 images, 2 views of each, in batches of 3" in out
    assert out.splitlines()[-2] == f"wrote {out_file}" and out_file.read_bytes().startswith(b"\x89PNG")
    assert list(json.loads(out.splitlines()[-1])) == NAMES
    assert "variance: 3 of 6 views (50%), 0:00:0" in error


@pytest.mark.parametrize(
    "batch, bn_batch, splits", [(256, 32, 8), (9, 4, 1), (36, 16, 2), (36, 32, 1), (30, 4, 6), (2, 32, 1)]
)
def test_groups_are_as_large_as_in_the_pretraining(batch, bn_batch, splits):
    assert variance.usual_splits(batch, bn_batch) == splits


def test_a_variance_of_0_has_no_ratio():
    results = variance.with_ratios({"baseline": Variance(0.0, 0.0)})
    assert results == {"baseline": {"variance": 0.0, "standard_error": 0.0, "ratio": None}}
    assert list(variance.table(results))[1] == "baseline             0.000       0.000       -"


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--views", 1], "argument --views: '1' is not an integer >= 2"),
        (["--images", 37], "/val' has 36 images, fewer than --images 37; give fewer"),
        (["--bn-splits", 5], "--bn-splits 5 does not divide a process's batch of 36 into groups of at least 2 images"),
        (["-b", 1], "batch of 1 is too small, since batch normalisation needs at least 2 images in each group"),
        (["--encoder", "x"], "argument --encoder: invalid choice: 'x'; give one of q, k"),
        (["--mini-crop-size", 32], "--mini-crop-size 32 must be smaller than --crop-size 32"),
        (["--mini-crop-size", 7], f"--mini-crop-size 7 is too small for {ARCH}, whose strides reduce 32 pixels to 1"),
        (["--crop-size", 10**6], "GB of memory; give a smaller --crop-size or --mini-crop-size, or a smaller --batch"),
        (["--out", "v.txt"], "'v.txt' is no file to write; give a name that ends in .png or .pdf or .svg"),
    ],
)
def test_flags_that_it_refuses(flags, message, checkpoints, imagenet, refused):
    refused("variance", [checkpoints["own"], imagenet, *flags], message)


def test_checkpoints_that_it_refuses(checkpoints, imagenet, refused):
    file = checkpoints["torchvision"]
    words = [file, imagenet, "-a", ARCH]
    refused("variance", words, f"the checkpoint '{file}' has no projector; give a checkpoint of main_moco")
    refused("variance", [*words, "--encoder", "k"], f"the checkpoint '{file}' has no target encoder; give a")
    refused("variance", ["nowhere", imagenet], "no checkpoint 'nowhere'")


def test_images_that_it_refuses(checkpoints, imagenet, tmp_path, refused):
    refused("variance", [checkpoints["own"], tmp_path / "x"], f"no folder '{tmp_path}/x'; it must hold images")
    shutil.copy(next((imagenet / "val").glob("*/*.jpg")), tmp_path)
    message = f"'{tmp_path}' has 1 image, but a variance needs 2 or more; add images"
    refused("variance", [checkpoints["own"], tmp_path], message)


def test_sums_that_fill_the_memory_are_refused(checkpoints, imagenet, refused, monkeypatch):
    monkeypatch.setattr(variance, "process_memory", lambda processes: 10**5 // processes)
    message = (
        "the encodings of 36 images need 0.0 MB in each process, more than a quarter of its 0.1 MB of memory; give"
    )
    refused("variance", [checkpoints["own"], imagenet, "--nproc", 2], message)


def test_a_picture_needs_matplotlib(checkpoints, imagenet, tmp_path, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    words = [checkpoints["own"], imagenet, "--out", tmp_path / "v.png"]
    refused("variance", words, "--out needs the package matplotlib; pip install matplotlib, or leave it out")


def test_a_broken_image(checkpoints, imagenet, tmp_path, call):
    shutil.copytree(sorted((imagenet / "val").iterdir())[0], tmp_path / "a")
    bad = tmp_path / "a" / "0001.jpg"
    bad.write_bytes(b"no image")
    words = [checkpoints["own"], tmp_path / "a", "-j", 0, "--views", 2]
    code, out, error = call(variance.main, *words)
    assert code == 1 and "std. error" not in out
    assert f"error: can't decode the image '{bad}'" in error and "or give --on-bad-image skip" in error
    code, out, error = call(variance.main, *words, "--on-bad-image", "skip")
    assert code == 0 and "std. error" in out and error.count("\n") == 1
    assert f"warning: can't decode the image '{bad}'" in error and "the next image is used instead" in error


def test_a_network_that_has_diverged_is_no_result(trained, imagenet, tmp_path, call):
    content = torch.load(trained, weights_only=True)
    content["state_dict"]["module.encoder_q.fc.5.bias"].fill_(torch.nan)
    torch.save(content, tmp_path / "c.pth.tar")
    code, out, error = call(variance.main, tmp_path / "c.pth.tar", imagenet, "-j", 0, "--views", 2, "--json")
    assert code == 1 and "NaN" not in out
    assert error.endswith("the encodings are not finite, so the network has diverged; give an earlier checkpoint\n")
