"""The flags of both scripts: names, defaults, the help."""

import pytest

import main_lincls
import main_moco
from moco.engine.architectures import architectures

SCRIPTS = {"moco": main_moco, "lincls": main_lincls}


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
    **{"moco_m": 0.999, "moco_t": 0.2, "tag": "", "mini_crop_size": None, "asym_bn_group": 8},
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
    assert before.design[2] == "asym_aug:source" and before.weight_decay == 0.1 and before.workers == 3
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
