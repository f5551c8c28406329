"""Which options a checkpoint stores."""

import math

import main_moco
from moco.engine.result_changing_options import result_options
from moco.engine.startup_checks import parse_and_check
from tests.engine.test_startup_checks import SMALL


def test_only_flags_that_change_results_are_stored(imagenet, tmp_path):
    parser = main_moco.build_parser()
    argv = [str(imagenet), *SMALL, "--output-dir", str(tmp_path), "--moco-k", "16", "--enable-asym-bn", "--nproc", "2"]
    args, launch, (_, folder) = parse_and_check(parser, main_moco.prepare, argv)
    stored = result_options(args)
    assert set(stored) == {
        *("arch", "stem", "recipe", "epochs", "lr", "momentum", "weight_decay", "seed", "crop_size", "total_batch"),
        *("moco_dim", "moco_k", "moco_m", "moco_t", "images", "asym_bn_group", "design"),
        *("augment_on", "precision", "compile", "bn_splits", "deterministic"),
    }
    assert stored["design"] == ["asym_bn:target"]
    assert stored["total_batch"] == 8 and stored["images"] == len(folder) == 96 and launch.local == 2
    assert math.isfinite(stored["seed"])
    # A flag of a design that is off changes nothing.
    args.design = ["multicrop:both"]
    assert {"mini_crop_size"} == set(result_options(args)) - set(stored)
    assert "asym_bn_group" not in result_options(args)
