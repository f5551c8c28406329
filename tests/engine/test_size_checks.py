"""Sizes of the views: the small ones follow the others, the network can encode them, the memory can hold them."""

import pytest
import torch
from torch import nn
from torchvision import models

from moco.asymmetry.multicrop import multicrop_plan
from moco.engine import size_checks, training_run
from moco.engine.architectures import make_network
from moco.engine.size_checks import check_memory, check_views, settle_mini_size, total_stride
from moco.views.augmentation_recipes import View, baseline_plan
from tests.engine.test_shared_flags import SCRIPTS
from tests.tiny_net import TinyNet

GB = 10**9


def test_the_small_views_follow_the_crop_size():
    assert [settle_mini_size(None, size, True) for size in (224, 112, 32, 18)] == [96, 48, 14, 8]
    assert settle_mini_size(20, 32, True) == 20 and settle_mini_size(300, 224, False) == 300
    with pytest.raises(ValueError, match=r"--mini-crop-size 96 must be smaller than --crop-size 32, since .*; give a"):
        settle_mini_size(96, 32, True)
    with pytest.raises(ValueError, match="--mini-crop-size 1 must be smaller than --crop-size 1"):
        settle_mini_size(None, 1, True)


@pytest.mark.parametrize("arch", ["resnet18", "regnet_y_400mf", "shufflenet_v2_x0_5"])
def test_the_total_stride_is_that_of_the_last_convolution(arch):
    sides, network = [], models.get_model(arch).eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, x, y: sides.append(y.shape[-1]))
    with torch.no_grad():
        network(torch.zeros(1, 3, 64, 64))
    assert total_stride(arch) == 64 // sides[-1] == 32


def test_the_small_stem_takes_smaller_views():
    sides, network = [], make_network("resnet18", "small").eval()
    network.layer4.register_forward_hook(lambda module, x, y: sides.append(y.shape[-1]))
    with torch.no_grad():
        network(torch.zeros(1, 3, 64, 64))
    assert total_stride("resnet18", "small") == 64 // sides[-1] == 8
    check_views((View(8), View(2)), "resnet18", 8, 1, stem="small")
    with pytest.raises(
        ValueError, match=r"-size 1 is too small for resnet18 --stem small, whose .* 8 pix.* give 2 or"
    ):
        check_views((View(1),), "resnet18", 8, 1, stem="small")


def test_views_that_the_network_reduces_to_nothing_are_refused(monkeypatch):
    for sizes in ((8,), (32, 8), (63, 9)):
        check_views(tuple(map(View, sizes)), "resnet18", 8, 1)
    with pytest.raises(
        ValueError, match=r"--crop-size 7 is too small for resnet18, whose .* 32 pixels to 1; .* give 8 or"
    ):
        check_views((View(7), View(7)), "resnet18", 8, 1)
    with pytest.raises(ValueError, match="--mini-crop-size 7 is too small for regnet_x_400mf"):
        check_views((View(32), View(7)), "regnet_x_400mf", 8, 1)
    monkeypatch.setattr(models, "get_model", lambda arch, num_classes: TinyNet(num_classes))
    check_views((View(1),), "a network of stride 2", 8, 1)
    monkeypatch.setattr(models, "get_model", None)  # not callable
    check_views((View(224), View(96)), "the views of the paper need no network", 8, 1)


def test_views_are_counted_to_the_byte(monkeypatch):
    views = multicrop_plan(baseline_plan(100), 10).views
    need = 5 * 4 * (2 * 3 * 100 * 100 + 6 * 3 * 10 * 10)
    monkeypatch.setattr(size_checks, "memory", lambda: need)
    check_memory(views, 5, 4, "less")
    with pytest.raises(ValueError, match=r"views of 100 and 10 pixels for 5 images need .*-size, or fewer --images$"):
        check_memory(views, 5, 4, "fewer --images", need - 1)


def test_a_batch_must_fit_into_each_processs_share(monkeypatch):
    monkeypatch.setattr(size_checks, "memory", lambda: 8 * GB)
    views = (View(1000), View(1000), View(500))
    size = 12 * (1000**2 + 1000**2 + 500**2)  # bytes per image
    check_views(views, "resnet18", 8 * GB // size, 1)
    with pytest.raises(ValueError, match=r"views of 1000 and 500 pixels for 297 images need 8.0 GB, .* 8.0 GB"):
        check_views(views, "resnet18", 8 * GB // size + 1, 1)
    with pytest.raises(ValueError, match=r"for 150 images need 4.0 GB, .* 4.0 GB of memory"):  # two processes share it
        check_views(views, "resnet18", 300, 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    asked = []
    properties = type("Properties", (), {"total_memory": 2 * GB})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda gpu: asked.append(gpu) or properties)
    with pytest.raises(ValueError, match=r"for 150 images need 4.0 GB, .* 2.0 GB"):  # each has a GPU of its own
        check_views(views, "resnet18", 300, 2)
    check_views(views, "resnet18", 64, 1, gpu=3)
    assert asked == [0, 3]


@pytest.mark.parametrize(
    "script, flags, message",
    [
        ("moco", ["--crop-size", "6"], "--crop-size 6 is too small for resnet18"),
        ("moco", ["--crop-size", "1", "--stem", "small"], "--crop-size 1 is too small for resnet18 --stem small"),
        ("moco", ["--stem", "small", "-a", "regnet_y_400mf"], "--stem small changes only ResNets, not regnet_y_400mf"),
        ("lincls", ["--crop-size", "1", "--stem", "small", "--pretrained", "none"], "too small for resnet18 --stem"),
        ("moco", ["--crop-size", "100000"], "views of 100000 pixels for 8 images need 1,920.0 GB"),
        ("moco", ["--crop-size", "16", "--enable-multicrop"], "--mini-crop-size 7 is too small"),
        ("moco", ["--crop-size", "32", "--enable-multicrop", "--mini-crop-size", "32"], "must be smaller than"),
        ("lincls", ["--crop-size", "6", "--pretrained", "none"], "--crop-size 6 is too small for resnet18"),
        ("lincls", ["--crop-size", "100000", "--pretrained", "none"], "for 8 images need 960.0 GB"),
    ],
)
def test_the_scripts_refuse_such_sizes_before_any_work(script, flags, message, call, imagenet, tmp_path):
    words = [imagenet, "-a", "resnet18", "-b", "8", "--output-dir", tmp_path / "out", *flags]
    code, out, error = call(SCRIPTS[script].main, *words)
    assert (code, out) == (2, "") and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_default_is_stored_as_a_number(imagenet, tmp_path, monkeypatch, capsys):
    started = []
    monkeypatch.setattr(training_run, "start_processes", lambda *args, **_: started.append(args[3]))
    words = [str(imagenet), "-a", "resnet18", "-b", "8", "--crop-size", "32", "--output-dir", str(tmp_path)]
    SCRIPTS["moco"].main([*words, "--enable-multicrop"])
    assert started[0].mini_crop_size == 14
    assert [view.size for view in SCRIPTS["moco"].view_plan(started[0]).mini] == [14] * 6
    SCRIPTS["moco"].main(words)
    assert "--mini-crop-size" not in capsys.readouterr().out  # it was not given, so no note says that it has no effect
