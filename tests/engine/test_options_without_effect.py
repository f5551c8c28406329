"""Options that were given in vain are named."""

import pytest

import main_lincls
import main_moco
from moco.engine.options_without_effect import notes


@pytest.mark.parametrize(
    "script, flags, world, reasons",
    [
        (main_moco, "", 1, []),
        (main_moco, "--asym-bn-group 4", 1, ["--asym-bn-group has no effect without --enable-asym-bn"]),
        (main_moco, "--asym-bn-group 4 --enable-asym-bn", 1, []),
        (main_moco, "--mini-crop-size 64", 1, ["--mini-crop-size has no effect without --enable-multicrop"]),
        (main_moco, "--mini-crop-size 64 --enable-multicrop", 1, []),
        (main_moco, "--epochs 2 --keep 2", 1, ["--keep has no effect since the run has no more epochs than that"]),
        (main_moco, "--epochs 1 --keep 1", 1, ["--keep has no effect since the run has no more epochs than that"]),
        (main_moco, "--epochs 3 --keep 2", 1, []),
        (main_moco, "--save-every 4", 1, ["--save-every has no effect since an epoch has no more steps than that"]),
        (main_lincls, "--save-every 3", 1, []),
        (main_lincls, "--force", 1, ["--force has no effect without a checkpoint to resume"]),
        (main_lincls, "--force --resume x", 1, []),
        (main_lincls, "--timeout 5", 1, ["--timeout has no effect with one process, which nobody watches"]),
        (main_lincls, "--timeout 5 --dist-backend gloo", 2, []),
        (main_lincls, "--dist-backend gloo", 1, ["--dist-backend has no effect with one process"]),
        (main_moco, "--deterministic", 1, ["--deterministic has no effect without a GPU, since a CPU always repeats"]),
    ],
)
def test_each_option_in_vain_gets_one_line(script, flags, world, reasons):
    args = script.build_parser().parse_args(["D", *flags.split()])
    args.images, args.total_batch = 96, 24
    given = {word.removeprefix("--").replace("-", "_") for word in flags.split() if word.startswith("--")}
    lines = notes(args, given, world)
    assert len(lines) == len(reasons)
    assert all(line.startswith(f"note: {reason}") for line, reason in zip(lines, reasons, strict=True))
