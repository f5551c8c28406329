"""The loader's benchmark, for a second; its figures are not judged here."""

import json
import math
import sys

import pytest
import torch

from moco.asymmetry.asym_aug import asym_aug_plan
from moco.asymmetry.scalemix import scalemix_plan
from moco.benchmarks import loader as bench_loader
from moco.benchmarks.internal.original_project_loader import original_loader
from moco.data.file_list import ImageFolder
from moco.data.image_reading import BadImageError
from moco.tools import fake_imagenet
from moco.views.augmentation_recipes import baseline_plan
from tests import gpu_checks as checks
from tests.ranks import Program


@pytest.mark.slow
def test_it_prints_a_table_and_json(imagenet):
    small = ["--enable-multicrop", "--crop-size", "32", "--mini-crop-size", "16", "--workers", "1", "--seconds", "1"]
    code, out, error = Program(bench_loader.main, [str(imagenet), *small, "--json"]).finish(300)
    assert code == 0, error
    lines = out.splitlines()
    figures = json.loads(lines[-1])
    assert {"device", "cpu", "original", "decode_only", "device_over_original"} <= set(figures)
    assert all(figures[name] > 0 for name in figures if name != "device_name")
    # 32 images of a 32 px view a side and six of 16 px: floats for the original, bytes and the rows for us.
    pixels = 32 * 3 * (2 * 32 * 32 + 6 * 16 * 16)
    assert figures["bytes_original"] == 4 * pixels + 32 * 8
    assert pixels < figures["bytes_device"] < 1.2 * pixels and pixels < figures["bytes_cpu"] < 1.2 * pixels
    for word in ("device", "cpu", "original", "floor", "decode only", "ms an image"):
        assert any(word in line for line in lines)


def test_the_original_recipe_makes_normalised_views(imagenet):
    plan = asym_aug_plan(scalemix_plan(baseline_plan(24)))
    (views, labels) = next(iter(original_loader(imagenet / "train", plan, 32, 1)))
    assert [v.shape for v in views] == [(32, 3, 24, 24)] * 2 and labels.shape == (32,)
    assert all(v.dtype == torch.float32 and -3 < v.min() < 0 < v.max() < 3 for v in views)


def test_a_gpus_part_is_timed_from_pinned_memory(monkeypatch):
    plan, batch, pinned_while_timed = baseline_plan(224), 4, []
    with checks.fake_gpu() as gpu:

        def timed(function, steps):
            gpu.reset()
            with gpu.waits_allowed():
                function()
            pinned_while_timed.extend(gpu.late_pins)
            return 1.0

        monkeypatch.setattr(bench_loader, "timed", timed)
        bench_loader.device_part(plan, iter([checks.batch_of_crops(plan, batch)] * 8))
    assert 0 < max(map(math.prod, pinned_while_timed)) < 1000  # only indices and arguments of the steps


def test_lightly_is_timed_where_it_is_installed(imagenet, monkeypatch, call):
    pytest.importorskip("lightly")
    for name, result in (("rate_of_loops", 9.0), ("device_part", (1.0, "CPU"))):
        monkeypatch.setattr(bench_loader, name, lambda *_, result=result: result)
    small = ["--lightly", "--json", "--workers", "1", "--crop-size", "32", "--seconds", "1e-9"]
    code, out, _ = call(bench_loader.main, imagenet, *small)
    figures = json.loads(out.splitlines()[-1])
    assert code == 0 and figures["lightly"] > 0 and figures["lightly_over_original"] > 0
    assert any(line.startswith("lightly ") for line in out.splitlines())
    assert figures["bytes_lightly"] == figures["bytes_original"]


def test_a_lack_of_lightly_is_one_line(imagenet, monkeypatch, call):
    monkeypatch.setitem(sys.modules, "lightly.transforms", None)  # as if it were not installed
    code, _, error = call(bench_loader.main, imagenet, "--lightly", "--workers", "1", "--crop-size", "32")
    assert code == 2 and error.count("\n") == 1 and "error: --lightly needs lightly (" in error
    assert error.endswith("; pip install lightly, or leave --lightly out\n")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--workers", "0"], "'0' is not an integer >= 1 and <= 1024"),
        (["--seconds", "0"], "'0' is not a finite number > 0"),
        (["--crop-size", "0"], "'0' is not an integer >= 1"),
        (["--crop-size", "99999999", "--workers", "2"], "views of 99999999 pixels for 160 images need "),
        (["--enable-multicrop", "--mini-crop-size", "99999999"], "or fewer --workers"),
        (["--multicrop"], "did you mean --enable-multicrop?"),
    ],
)
def test_what_it_refuses(imagenet, flags, message, call, monkeypatch):
    monkeypatch.setattr(bench_loader, "bench", lambda *_: pytest.fail("it worked"))
    code, out, error = call(bench_loader.main, imagenet, *flags)
    assert code == 2 and not out and error.count("\n") == 1 and message in error


def test_folders_that_it_refuses(tmp_path, call):
    code, _, error = call(bench_loader.main, tmp_path)
    assert code == 2 and error.count("\n") == 1 and "no folder" in error
    fake_imagenet.make(tmp_path, train=1, val=1, size=16)
    code, _, error = call(bench_loader.main, tmp_path)
    assert code == 2 and "has 12 images, fewer than a batch of 32; give more images\n" in error


def test_an_image_that_can_not_be_decoded_is_named(tmp_path, call):
    fake_imagenet.make(tmp_path, train=3, val=1, size=16)
    for path in (bad := tmp_path / "train" / "disk_dots").iterdir():
        path.write_text("no image")
    code, _, error = call(bench_loader.main, tmp_path, "--workers", "1", "--crop-size", "8")
    assert code == 2 and error.count("\n") == 1
    assert error.startswith(f"python -m moco.benchmarks.loader: error: can't decode the image '{bad}")
    plan = baseline_plan(8)
    with pytest.raises(BadImageError, match="can't decode the image"):  # and no hang
        bench_loader.rate_of_loops(ImageFolder(tmp_path / "train"), plan, "floor", 0.1, 2)


def test_its_progress_is_not_in_the_table(imagenet, monkeypatch, impatient, call):
    for name in ("training_loader", "original_loader"):
        monkeypatch.setattr(bench_loader, name, lambda *_, **__: None)
    monkeypatch.setattr(bench_loader, "endless", lambda loader: iter([torch.zeros(2)]))
    for name, result in (("rate_of", 7.0), ("rate_of_loops", 9.0), ("device_part", (1.0, "CPU"))):
        monkeypatch.setattr(bench_loader, name, lambda *_, result=result: result)
    code, out, error = call(bench_loader.main, imagenet, "--json")
    assert code == 0 and "measurements" not in out
    figures, lines = json.loads(out.splitlines()[-1]), error.splitlines()
    assert figures["cpu"] == 7 and figures["floor"] == 9
    assert len(lines) == 24 and lines[-1] == "loader: 24 of 25 measurements (96%), 0:00:00 left"


def test_the_loops_decode_only_as_many_images_as_they_need(imagenet, monkeypatch):
    folder, views, decoded = ImageFolder(imagenet / "train"), baseline_plan(8).views, []
    dataset, load = bench_loader.training_loader(folder, views, 32, 0, 0, augment_on="device").dataset, folder.load
    monkeypatch.setattr(folder, "load", lambda index: decoded.append(index) or load(index))
    monkeypatch.setattr(bench_loader, "LOOPED", 5)
    assert bench_loader.loop(dataset, "decode_only", 1e-9, 0) > 0 and len(set(decoded)) == len(decoded) == 5


def test_a_loop_takes_an_image_at_least(imagenet):
    assert bench_loader.rate_of_loops(ImageFolder(imagenet / "train"), baseline_plan(8), "floor", 1e-9, 1) > 0
