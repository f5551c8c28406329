"""The end of a run in words; the command that comes next can be run as it stands."""

import re
import shlex
import time

import pytest

import main_lincls
import main_moco
from moco.engine.end_report import finished, knn_classification, linear_classification
from moco.engine.launch_plan import Launch


def arguments(*words):
    return main_moco.build_parser().parse_args(["/data/image net", *words])


def test_how_long_it_took():
    line = finished(arguments("--epochs", "1"), time.monotonic() - 90, "out/c.pth.tar")
    assert line == "finished: 1 epoch, 0:01:30 after the start; last checkpoint: 'out/c.pth.tar'"
    line = finished(arguments("--resume", "x"), time.monotonic() - 3600, "c")
    assert line.startswith("finished: 100 epochs, 1:00:00 after the resume;")


@pytest.mark.parametrize(
    "mode, flags, start",
    [
        ("alone", "", "python main_lincls.py"),
        ("spawn", "--nproc 3 -a resnet18 --crop-size 96 --output-dir runs/x/", "python main_lincls.py"),
        ("spawn", "--multiprocessing-distributed", "python main_lincls.py"),
        ("torchrun", "-a resnet18", "torchrun --nproc-per-node 3 main_lincls.py"),
    ],
)
def test_the_next_command_is_one_of_main_lincls(mode, flags, start, tmp_path):
    data = tmp_path / "image net"
    pretraining = main_moco.build_parser().parse_args([str(data), *flags.split()])
    assert linear_classification(pretraining, Launch(mode, local=3), "c") is None  # there are no validation images
    (data / "val").mkdir(parents=True)
    pretraining.images = 200_000
    line = linear_classification(pretraining, Launch(mode, local=3), "runs/c 1.pth.tar")
    command = line.removeprefix("next, linear classification: ")
    assert command.startswith(f"{start} --lars ")
    args = main_lincls.build_parser().parse_args(shlex.split(command.removeprefix(start)))
    assert (args.pretrained, args.data, args.lars) == ("runs/c 1.pth.tar", str(data), True)
    pretraining.images -= 1
    assert "--lars" not in linear_classification(pretraining, Launch(mode, local=3), "c")
    same = ("arch", "crop_size", "multiprocessing_distributed", "nproc")
    assert all(getattr(args, name) == getattr(pretraining, name) for name in same)
    assert re.fullmatch(r"(\.|runs/x)/lincls", args.output_dir)


def test_knn_classification_comes_next_if_there_are_validation_images_and_it_is_not_done(imagenet, tmp_path):
    def line(data, *words):
        return knn_classification(main_moco.build_parser().parse_args([str(data), *words]), None, "c 1.pth.tar")

    command = f"python -m moco.tools.knn 'c 1.pth.tar' {imagenet}"
    assert line(imagenet) == f"next, kNN classification (takes minutes): {command}"
    assert line(imagenet, "--knn-every", "1") is None and line(tmp_path) is None
