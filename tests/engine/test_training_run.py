"""One process of a run: what it tells the watchdog."""

import main_moco
from moco.engine import watchdog
from tests.ranks import run_ranks, script_in_rank


def stages_of_a_start(words):
    stages = []
    watchdog.at_start = stages.append
    script_in_rank(main_moco, words, tiny=True)
    return stages


def test_the_watchdog_is_told_of_every_stage_of_the_start(imagenet, tmp_path):
    words = [str(imagenet), "-a", "resnet18", "--crop-size", "24", "-b", "24", "--moco-k", "64", "--epochs", "1"]
    stages = run_ranks(stages_of_a_start, 2, [*words, "--seed", "1", "--output-dir", str(tmp_path)])
    assert stages == [list(watchdog.STAGES[1:])] * 2  # the process group, stage 0, is made before
