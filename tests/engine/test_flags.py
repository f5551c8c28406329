"""The flags, and everything that is refused at the door: one line, exit code 2, before any work."""

import math
import shutil

import pytest
import torch
from torch import nn
from torchvision import models

import main_lincls
import main_moco
from moco import launch, options, resume
from moco.engine.flags import Parser, architectures, number
from moco.engine.meters import Stopwatch

SCRIPTS = {"moco": main_moco, "lincls": main_lincls}


def has_fc_and_returns_a_tensor(model, size=224):
    return isinstance(getattr(model, "fc", None), nn.Linear) and isinstance(
        model.train()(torch.empty(2, 3, size, size)), torch.Tensor
    )


def test_architectures_are_those_with_an_fc_that_return_one_tensor():
    """Among all of torchvision's classifiers, tried in training mode."""
    fitting, regnets = [], []
    for name in models.list_models(module=models):
        faster = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        if name.startswith("regnet"):  # can't be built on the meta device; all are of one class
            regnets.append(name)
            continue
        with torch.device("meta"):
            if has_fc_and_returns_a_tensor(models.get_model(name, **faster), 299 if name == "inception_v3" else 224):
                fitting.append(name)
    assert has_fc_and_returns_a_tensor(models.regnet_x_400mf(), 32)
    assert has_fc_and_returns_a_tensor(models.regnet_y_400mf(), 32)
    assert architectures() == sorted(fitting + regnets)


@pytest.mark.parametrize("kind, text", [(int, "3"), (float, "0.5"), (float, "1e-3"), (int, "0"), (float, "1")])
def test_numbers_that_pass(kind, text):
    assert number(kind, 0, 3)(text) == kind(text)


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "3.5", "1e400", "9" * 400, "", "x", "1.5.2"])
def test_numbers_that_do_not(text):
    with pytest.raises(Exception, match="is not an integer >= 0 and <= 3"):
        number(int, 0, 3)(text)
    if text != "3.5":
        with pytest.raises(Exception, match="is not a finite number > 0"):
            number(float, 0, exclusive=True)(text)
    with pytest.raises(Exception, match="> 0"):
        number(float, 0, exclusive=True)("0")


DEFAULTS = {
    "data": "D",
    "arch": "resnet50",
    "workers": 32,
    "start_epoch": None,
    "momentum": 0.9,
    "print_freq": 10,
    "resume": None,
    "world_size": 1,
    "rank": 0,
    "dist_url": None,
    "dist_backend": None,
    "seed": None,
    "gpu": None,
    "multiprocessing_distributed": False,
    "crop_size": 224,
    "output_dir": ".",
    "nproc": None,
}
MOCO_DEFAULTS = {
    **{"epochs": 100, "batch_size": 256, "lr": 0.03, "weight_decay": 1e-4, "moco_dim": 128, "moco_k": 65536},
    **{"moco_m": 0.999, "moco_t": 0.2, "tag": "", "mini_crop_size": 96, "asym_bn_group": 8},
    "bn_splits": 1,
}
LINCLS_DEFAULTS = {
    **{"epochs": 90, "batch_size": 4096, "lr": 0.1, "weight_decay": 0.0, "evaluate": False, "pretrained": None},
    "lars": False,
}


@pytest.mark.parametrize("script, more", [("moco", MOCO_DEFAULTS), ("lincls", LINCLS_DEFAULTS)])
def test_defaults_are_mocos(script, more):
    args = vars(SCRIPTS[script].build_parser().parse_args(["D"]))
    for name, value in {**DEFAULTS, **more}.items():
        assert args[name] == value, name


def test_flags_stand_before_or_after_the_folder_and_have_mocos_short_forms():
    parse = main_moco.build_parser().parse_args
    flags = ["--enable-multicrop", "--enable-scalemix", "--enable-asymm-aug", "--enable-asym-bn"]
    flags += ["--enable-mean-encoding", "-a", "resnet18", "-j", "3", "-b", "8", "--wd", "0.1", "-p", "2"]
    before, after = parse([*flags, "D"]), parse(["D", *flags])
    assert before == after == parse(["D", *(f.replace("asymm", "asym") for f in flags)])
    assert before.enable_asym_aug and before.weight_decay == 0.1 and before.workers == 3
    long = ["--arch", "resnet18", "--workers", "3", "--batch-size", "8", "--weight-decay", "0.1", "--print-freq", "2"]
    assert parse(["D", *flags[:5], *long]) == before
    assert parse(["D", "--learning-rate", "2"]).lr == 2
    assert main_lincls.build_parser().parse_args(["D", "-e"]).evaluate


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_complete(script, capsys):
    parser = SCRIPTS[script].build_parser()
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(action.help for action in parser._actions)
    assert all(name in text for name in architectures()) and "googlenet" not in text
    assert "None" not in text and "False" not in text and "(default: 0.9)" in text


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """Runs a script on a bad command line and returns its one line."""

    def no_work(*args):
        raise AssertionError("started to work")

    monkeypatch.setattr(launch, "run", no_work)
    monkeypatch.chdir(tmp_path)

    def run(script, *argv):
        with pytest.raises(SystemExit) as stop:
            SCRIPTS[script].main([str(word) for word in argv])
        out, err = capsys.readouterr()
        assert stop.value.code == 2 and out == ""
        assert err.count("\n") == 1 and "Traceback" not in err
        assert not list(tmp_path.glob("*.tar"))
        return err

    return run


BAD_NUMBERS = [
    *[("--lr", x) for x in ("nan", "inf", "-1", "x")],
    *[("--moco-t", x) for x in ("0", "-0.2", "nan")],
    *[("--moco-m", x) for x in ("-0.1", "1.1", "nan")],
    *[("--momentum", x) for x in ("-1", "2", "inf")],
    *[("--wd", x) for x in ("-1", "nan")],
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
        (("--no-such-flag",), "unrecognized arguments: --no-such-flag"),
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
        (("--tag", "x" * 201), "200 bytes at most"),
        (("--moco-k", str(10**15)), "do not fit into the memory"),
        (("--epochs", "3", "--start-epoch", "3"), "--start-epoch 3 leaves nothing"),
        (("--resume", "nowhere.pth.tar"), "no checkpoint 'nowhere.pth.tar'"),
    ],
)
def test_what_main_moco_refuses(refused, imagenet, flags, message):
    assert message in refused("moco", imagenet, *SMALL, *flags)


@pytest.mark.parametrize(
    "flags, message",
    [
        ((), "no --pretrained and no --resume"),
        (("--pretrained", "nowhere.pth.tar"), "no checkpoint 'nowhere.pth.tar'"),
        (("--pretrained", "none", "--resume", "nowhere.pth.tar"), "no checkpoint 'nowhere.pth.tar'"),
        (("--pretrained", "none", "-e"), "--evaluate needs --resume"),
        (("--pretrained", "none", "-b", "97"), "fewer than one batch of 97"),
    ],
)
def test_what_main_lincls_refuses(refused, imagenet, flags, message):
    assert message in refused("lincls", imagenet, *SMALL, *flags)


def test_folders_and_files_that_can_not_serve(refused, imagenet, tmp_path):
    assert "no folder" in refused("moco", tmp_path / "nowhere")
    (tmp_path / "empty" / "train").mkdir(parents=True)
    assert "no class folders" in refused("moco", tmp_path / "empty")
    shutil.copytree(imagenet, tmp_path / "odd")
    shutil.rmtree(tmp_path / "odd" / "val" / "disk_dots")
    assert "'disk_dots' is only in one" in refused("lincls", tmp_path / "odd", *SMALL, "--pretrained", "none")
    shutil.rmtree(tmp_path / "odd" / "val")
    assert "no folder" in refused("lincls", tmp_path / "odd", *SMALL, "--pretrained", "none")
    (tmp_path / "file").write_text("")
    assert "can't be made" in refused("moco", imagenet, *SMALL, "--output-dir", tmp_path / "file" / "out")
    torch.save(models.resnet34().state_dict(), tmp_path / "resnet34.pth")
    assert "which the backbone lacks" in refused("lincls", imagenet, *SMALL, "--pretrained", "resnet34.pth")
    assert "has no 'epoch'" in refused("moco", imagenet, *SMALL, "--resume", "resnet34.pth")
    for odd in ({"state_dict": [1]}, {"state_dict": {0: torch.zeros(1)}}, {"options": [1]}, {0: torch.zeros(1)}):
        torch.save(odd, tmp_path / "odd.pth")
        refused("moco", imagenet, *SMALL, "--resume", "odd.pth")
        refused("lincls", imagenet, *SMALL, "--pretrained", "odd.pth")


def test_an_error_is_said_once_a_node(monkeypatch, capsys):
    for local_rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        with pytest.raises(SystemExit):
            Parser(prog="p").error("two\nlines")
        assert capsys.readouterr().err == "p: error: two lines\n" * lines


def test_workers_are_the_nodes_and_end_at_its_cores(monkeypatch):
    monkeypatch.setattr(options, "cores", lambda: 16)
    for asked, local, each in ((32, 8, 2), (32, 1, 16), (4, 8, 1), (0, 8, 0), (10, 4, 3)):
        args = main_moco.build_parser().parse_args(["D", "-j", str(asked)])
        assert options.workers_a_process(args, launch.Launch("spawn", local=local)) == each


@pytest.mark.parametrize(
    "waited, flags, advice",
    [
        (0.1, [], None),
        (0.5, [], "note: 50% of the time goes into waiting for data; try --augment-on device or more --workers"),
        (0.5, ["-j", "16"], "note: 50% of the time goes into waiting for data; try --augment-on device"),
        (0.3, ["--fast", "-j", "4"], "note: 30% of the time goes into waiting for data; try more --workers"),
        (0.3, ["--fast", "-j", "16"], "note: 30% of the time goes into waiting for data; try more CPU cores"),
    ],
)
def test_an_epoch_that_waited_gets_one_line_of_advice(waited, flags, advice, monkeypatch, capsys):
    monkeypatch.setattr(options, "cores", lambda: 16)
    args = main_moco.build_parser().parse_args(["D", "-j", "8", *flags])
    args.augment_on = "device" if args.fast else "cpu"
    watch = Stopwatch()
    watch.batch_time.update(1.0, 100)
    watch.data_time.update(waited, 100)
    options.advise(watch, args)
    assert capsys.readouterr().out == (f"{advice}\n" if advice else "")


def test_only_flags_that_change_results_are_stored(imagenet, tmp_path):
    parser = main_moco.build_parser()
    argv = [str(imagenet), *SMALL, "--output-dir", str(tmp_path), "--moco-k", "16", "--enable-asym-bn", "--nproc", "2"]
    args, run, folder = options.parse(parser, main_moco.prepare, argv)
    stored = resume.result_options(args)
    assert set(stored) == {
        *("arch", "epochs", "lr", "momentum", "weight_decay", "seed", "crop_size", "total_batch"),
        *("moco_dim", "moco_k", "moco_m", "moco_t", "images", "asym_bn_group", "enable_multicrop", "enable_scalemix"),
        *("augment_on", "precision", "compile", "bn_splits"),
        *("enable_asym_aug", "enable_asym_bn", "enable_mean_encoding"),
    }
    assert stored["total_batch"] == 8 and stored["images"] == len(folder) == 96 and run.local == 2
    assert math.isfinite(stored["seed"])
    # A flag of a design that is off changes nothing.
    args.enable_asym_bn, args.enable_multicrop = False, True
    assert {"mini_crop_size"} == set(resume.result_options(args)) - set(stored)
    assert "asym_bn_group" not in resume.result_options(args)
