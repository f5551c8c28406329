"""What a run prints at its start, and its advice."""

import pytest
import torch

import main_moco
from moco.data import image_decoding
from moco.engine import startup_report
from moco.engine.launch_plan import Launch
from moco.engine.startup_report import batchnorm_report
from moco.engine.step_timer import StepTimer


@pytest.mark.parametrize(
    "waited, flags, advice",
    [
        (0.1, [], None),
        (0.5, [], "note: 50% of the time is spent waiting for data; try --augment-on device or more --workers"),
        (0.5, ["-j", "16"], "note: 50% of the time is spent waiting for data; try --augment-on device"),
        (0.3, ["--fast", "-j", "4"], "note: 30% of the time is spent waiting for data; try more --workers"),
        (0.3, ["--fast", "-j", "16"], "note: 30% of the time is spent waiting for data; try more CPU cores"),
    ],
)
def test_an_epoch_that_waited_gets_one_line_of_advice(waited, flags, advice, capsys):
    args = main_moco.build_parser().parse_args(["D", "-j", "8", *flags])
    args.augment_on = "device" if args.fast else "cpu"
    watch = StepTimer()
    watch.batch_time.update(1.0, 100)
    watch.data_time.update(waited, 100)
    startup_report.advise(watch, args.augment_on, args.workers < 16)
    assert capsys.readouterr().out == (f"{advice}\n" if advice else "")


def test_the_start_says_which_decoder_decodes(monkeypatch, capsys):
    monkeypatch.setattr(startup_report, "WHY_NO_FASTER", "; torchcodec is not installed")
    args = main_moco.build_parser().parse_args(["D", "--seed", "1"])
    args.run, args.fast = "12345678", None
    startup_report.report(args, Launch("alone"), torch.device("cpu"), (0, 0), 1)
    line = f"JPEG decoder: {image_decoding.DECODER.name}; torchcodec is not installed"
    assert capsys.readouterr().out.splitlines().count(line) == 1


def test_words():
    assert batchnorm_report(8, 1, 256) == "batch normalisation: 8 groups of 32 images"
    assert batchnorm_report(1, 1, 256).endswith(
        "1 group of 256 images; --bn-splits 8 would give groups of 32, as in the paper"
    )
    assert batchnorm_report(1, 4, 256).endswith("--bn-splits 2 would give groups of 32, as in the paper")
    assert batchnorm_report(1, 2, 16) == "batch normalisation: 2 groups of 8 images"  # nothing would make it 32
    assert batchnorm_report(1, 16, 256) == "batch normalisation: 16 groups of 16 images"
    assert batchnorm_report(8, 1, 256, earlier=32) == batchnorm_report(8, 1, 256)
    slow = batchnorm_report(8, 1, 256, slow=True)
    assert slow.endswith("starts two to three times as many GPU kernels; give --compile or --fast for more speed")
    assert batchnorm_report(1, 8, 256, slow=True) == batchnorm_report(1, 8, 256)  # no groups within a process
    note = "\nnote: before the resume it saw {} images at a time"
    assert batchnorm_report(8, 1, 256, earlier=256).endswith(note.format(256) + "; --bn-splits 1 would keep that")
    assert batchnorm_report(1, 2, 256, earlier=32).endswith(note.format(32) + "; --bn-splits 4 would keep that")
    assert batchnorm_report(1, 4, 256, earlier=128).endswith(note.format(128))  # fewer groups than processes
