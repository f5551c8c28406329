"""Everything that is refused before any work is done: one line, exit code 2."""

import shutil
import sys

import pytest
import torch
from torchvision import models

from moco.engine import training_run
from tests.engine.test_shared_flags import SCRIPTS


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """Runs a script on a bad command line and returns its one line."""

    def no_work(*args):
        raise AssertionError("started to work")

    monkeypatch.setattr(training_run, "start_processes", no_work)
    monkeypatch.chdir(tmp_path)

    def run_script(script, *argv):
        with pytest.raises(SystemExit) as stop:
            SCRIPTS[script].main([str(word) for word in argv])
        out, err = capsys.readouterr()
        assert stop.value.code == 2 and out == ""
        assert err.count("\n") == 1 and "Traceback" not in err
        assert not list(tmp_path.glob("*.tar"))
        return err

    return run_script


BAD_NUMBERS = [
    *[("--lr", x) for x in ("nan", "inf", "-inf", "-1", "x", "1e31")],
    *[("--moco-t", x) for x in ("0", "-0.2", "nan")],
    *[("--moco-m", x) for x in ("-0.1", "1.1", "nan")],
    *[("--momentum", x) for x in ("-1", "2", "inf")],
    *[("--wd", x) for x in ("-1", "nan", "1e31")],
    *[("--timeout", x) for x in ("0", "1e7")],
    *[(flag, x) for flag in ("--epochs", "-b", "--moco-k", "--moco-dim", "--crop-size") for x in ("0", "-3", "1.5")],
    *[(flag, "0") for flag in ("--mini-crop-size", "--asym-bn-group", "--nproc", "--world-size", "-p")],
    *[(flag, "-1") for flag in ("-j", "--seed", "--rank", "--gpu", "--start-epoch")],
]


@pytest.mark.parametrize("flag, value", BAD_NUMBERS)
def test_numbers_out_of_range(refused, imagenet, flag, value):
    line = refused("moco", imagenet, flag, value)
    assert f"{flag}" in line and repr(value) in line


SMALL = ("-a", "resnet18", "-b", "8", "--crop-size", "32")


@pytest.mark.parametrize(
    "flags, message",
    [
        (("-a", "resnet19"), "invalid choice: 'resnet19'"),
        (("-a", "googlenet"), "invalid choice: 'googlenet'"),
        (("--no-such-flag",), "unknown flag --no-such-flag"),
        (
            ("--nproc", "3"),
            "each of the 3 processes of this node the same number of images, 2 at least; give 6",
        ),
        (
            ("--nproc", "16", "-b", "8"),
            "each of the 16 processes of this node the same number of images, 2 at least; give 32",
        ),
        (("--nproc", "8"), "2 at least; give 16"),
        (("--moco-k", "7"), "--moco-k 7 is smaller than a batch of 8"),
        (("-b", "97", "--moco-k", "100"), "has 96 images, fewer than one batch of 97"),
        (("--world-size", "20", "--dist-url", "tcp://localhost:1"), "96 images, fewer than one batch of 160"),
        (("--enable-asym-bn", "--asym-bn-group", "3", "--nproc", "4"), "give one of 1, 2, 4"),
        (("--gpu", "0"), "leave the flag out to run on the CPU"),
        (("--dist-backend", "nccl", "--nproc", "2"), "nccl needs a GPU"),
        (("--rank", "1"), "--rank 1 is out of range"),
        (("--tag", "a/b"), "--tag 'a/b'"),
        (("--tag", "x" * 201), "at most 200 bytes"),
        (("--moco-k", str(10**15)), "do not fit into the memory"),
        (("--epochs", "3", "--start-epoch", "3"), "--start-epoch 3 must be smaller than --epochs 3"),
        (("--resume", "nowhere.pth.tar"), "no checkpoint 'nowhere.pth.tar'"),
        (("--resume", ""), "--resume is empty; give a file or auto"),
        (("-b", "1"), "--batch-size 1 is too small; give 2 or more"),
        (("--output-dir", "x" * 300), "File name too long; give another"),
        (("--dist-url", "file:///nowhere/file", "--nproc", "2"), "must name a file in an existing folder"),
    ],
)
def test_what_main_moco_refuses(refused, imagenet, flags, message):
    assert message in refused("moco", imagenet, *SMALL, *flags)


@pytest.mark.parametrize(
    "flags, message",
    [
        ((), "a backbone is needed; give --pretrained FILE"),
        (("--pretrained", "nowhere.pth.tar"), "no checkpoint 'nowhere.pth.tar'"),
        (("--pretrained", "none", "--resume", "nowhere.pth.tar"), "no checkpoint 'nowhere.pth.tar'"),
        (("--pretrained", "none", "-e"), "--evaluate needs --resume"),
        (("--pretrained", "none", "-b", "200", "--nproc", "100"), "96 images, fewer than one batch of 200"),
    ],
)
def test_what_main_lincls_refuses(refused, imagenet, flags, message):
    assert message in refused("lincls", imagenet, *SMALL, *flags)


def test_folders_and_files_that_can_not_serve(refused, imagenet, tmp_path):
    assert "no folder" in refused("moco", tmp_path / "nowhere")
    (tmp_path / "empty" / "train").mkdir(parents=True)
    assert "no images in" in refused("moco", tmp_path / "empty")
    shutil.copytree(imagenet, tmp_path / "odd")
    shutil.rmtree(tmp_path / "odd" / "val" / "disk_dots")
    assert "'disk_dots' is only in one" in refused("lincls", tmp_path / "odd", *SMALL, "--pretrained", "none")
    shutil.rmtree(tmp_path / "odd" / "val")
    assert "no folder" in refused("lincls", tmp_path / "odd", *SMALL, "--pretrained", "none")
    (tmp_path / "file").write_text("")
    assert "can't be made" in refused("moco", imagenet, *SMALL, "--output-dir", tmp_path / "file" / "out")
    for place in ("val", "train/disk_dots/runs"):
        assert "among the images; give a" in refused("moco", imagenet, *SMALL, "--output-dir", imagenet / place)
    torch.save(models.resnet34().state_dict(), tmp_path / "resnet34.pth")
    assert "is of --arch resnet34, not resnet18" in refused("lincls", imagenet, *SMALL, "--pretrained", "resnet34.pth")
    assert "has no 'epoch'" in refused("moco", imagenet, *SMALL, "--resume", "resnet34.pth")
    for odd in ({"state_dict": [1]}, {"state_dict": {0: torch.zeros(1)}}, {"options": [1]}, {0: torch.zeros(1)}):
        torch.save(odd, tmp_path / "odd.pth")
        refused("moco", imagenet, *SMALL, "--resume", "odd.pth")
        refused("lincls", imagenet, *SMALL, "--pretrained", "odd.pth")


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_package_for_tensorboard_may_be_missing(refused, imagenet, script, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    line = refused(script, imagenet, *SMALL, "--tensorboard")
    assert "--tensorboard needs the package tensorboard, and its import fails (" in line
    assert line.endswith("); pip install tensorboard, or leave the flag out\n")


def test_workers_are_the_nodes_and_end_at_its_cores(monkeypatch):
    monkeypatch.setattr(training_run, "cores", lambda: 16)
    for asked, local, each in ((32, 8, 2), (32, 1, 16), (4, 8, 1), (0, 8, 0), (10, 4, 3)):
        assert training_run.workers_per_process(asked, local) == each
