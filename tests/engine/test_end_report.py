"""The end of a run in words; the command that comes next can be run as it stands."""

import re
import shlex
import time

import pytest

import main_lincls
import main_moco
from moco.engine.end_report import finished, linear_classification


def arguments(*words):
    return main_moco.build_parser().parse_args(["/data/image net", *words])


@pytest.mark.parametrize("epochs, words", [(1, "1 epoch in 0:01:30;"), (3, "3 epochs in 0:01:30;")])
def test_how_long_it_took(epochs, words):
    line = finished(arguments(), time.monotonic() - 90, epochs, "out/c.pth.tar")
    assert line == f"finished: {words} last checkpoint: 'out/c.pth.tar'"
    line = finished(arguments("--resume", "x"), time.monotonic() - 90, epochs, "out/c.pth.tar")
    assert f"{words[:-1]} since the resume;" in line


@pytest.mark.parametrize(
    "flags", ["", "-a resnet18 --crop-size 96 --multiprocessing-distributed --output-dir runs/x/"]
)
def test_the_next_command_is_one_of_main_lincls(flags):
    pretraining = arguments(*flags.split())
    command = linear_classification(pretraining, "runs/c 1.pth.tar").removeprefix("next, linear classification: ")
    python, script, *words = shlex.split(command)
    assert (python, script) == ("python", "main_lincls.py")
    args = main_lincls.build_parser().parse_args(words)
    assert (args.pretrained, args.data, args.lars) == ("runs/c 1.pth.tar", "/data/image net", True)
    same = ("arch", "crop_size", "multiprocessing_distributed")
    assert all(getattr(args, name) == getattr(pretraining, name) for name in same)
    assert re.fullmatch(r"(\.|runs/x)/lincls", args.output_dir)
