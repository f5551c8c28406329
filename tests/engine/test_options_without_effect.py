"""Options that were given in vain are named."""

import pytest

import main_lincls
import main_moco
from moco.engine.options_without_effect import REASONS, TRAINING, notes


@pytest.mark.parametrize(
    "script, flags, alone, reasons",
    [
        (main_moco, "", True, []),
        (main_moco, "--asym-bn-group 4", True, ["--asym-bn-group has no effect without the design asym_bn"]),
        (main_moco, "--asym-bn-group 4 --enable-asym-bn", True, []),
        (main_moco, "--mini-crop-size 64", True, ["--mini-crop-size has no effect without the design multicrop"]),
        (main_moco, "--mini-crop-size 64 --enable-multicrop", True, []),
        (main_moco, "--epochs 2 --keep 2", True, ["--keep has no effect since the run has no more epochs than that"]),
        (main_moco, "--epochs 1 --keep 1", True, ["--keep has no effect since the run has no more epochs than that"]),
        (main_moco, "--epochs 3 --keep 2", True, []),
        (main_lincls, "--force", True, ["--force has no effect without a checkpoint to resume"]),
        (main_lincls, "--force --resume x", True, []),
        (main_lincls, "--timeout 5", True, ["--timeout has no effect since a run of one process has no watchdog"]),
        (main_lincls, "--timeout 5 --dist-backend gloo", False, []),
        (main_lincls, "--dist-backend gloo", True, ["--dist-backend has no effect with one process"]),
        (main_moco, "--deterministic", True, ["--deterministic has no effect without a GPU, since a CPU always"]),
        (main_lincls, "--epochs 3 --lars", True, []),
        (
            *(main_lincls, "--evaluate --resume x --epochs 3 --lars --tensorboard", True),
            [f"--{name} has no effect since --evaluate trains nothing" for name in ("epochs", "lars", "tensorboard")],
        ),
    ],
)
def test_each_option_in_vain_gets_one_line(script, flags, alone, reasons):
    args = script.build_parser().parse_args(["D", *flags.split()])
    given = {word.removeprefix("--").replace("-", "_") for word in flags.split() if word.startswith("--")}
    lines = notes(args, given, alone)
    assert len(lines) == len(reasons)
    assert all(line.startswith(f"note: {reason}") for line, reason in zip(lines, reasons, strict=True))


def test_every_name_is_that_of_an_option():
    known = {name for script in (main_moco, main_lincls) for name in vars(script.build_parser().parse_args(["D"]))}
    assert {*REASONS, *TRAINING} <= known
