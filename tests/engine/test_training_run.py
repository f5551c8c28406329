"""One process of a run: what is said if a data worker dies."""

import os
import signal
from contextlib import nullcontext

import pytest
from torch.utils.data import DataLoader, Dataset

import main_moco
from moco.engine import training_run, watchdog
from tests.ranks import run_ranks, script_in_rank


@pytest.fixture
def train_in_a_run(monkeypatch):
    """Calls `train` as a process of a run does, without setting up the run."""
    monkeypatch.setattr(training_run, "Run", lambda *args: nullcontext())
    return lambda train: training_run._one_process(None, train, None, None, None, ())


class Dying(Dataset):
    """Images whose second one ends the data worker."""

    def __init__(self, number):
        self.number = number

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 1:
            os.kill(os.getpid(), self.number)
        return index


@pytest.mark.parametrize(
    "number, said",
    [
        (signal.SIGKILL, "a data worker was killed, probably because the memory was full; give fewer --workers"),
        (signal.SIGBUS, r"a data worker ran out of shared memory: enlarge /dev/shm .*--shm-size"),
    ],
)
def test_the_cause_of_a_data_workers_death_is_said(number, said, train_in_a_run):
    with pytest.raises(RuntimeError, match=said):
        train_in_a_run(lambda _: list(DataLoader(Dying(number), num_workers=1)))


def test_other_errors_stay_what_they_are(train_in_a_run):
    others = [
        "Caught OSError in DataLoader worker process 0: can't decode '/data/torch_1/x.jpg': No space left on device",
        "out of resource: shared memory, Required: 131072, Hardware limit: 101376",
        "can't write '/scratch/torch_2/c': No space left on device",
    ]
    for error in (KeyError("x"), *map(RuntimeError, others)):

        def train(_, error=error):
            raise error

        with pytest.raises(type(error)) as seen:
            train_in_a_run(train)
        assert seen.value is error


def stages_of_a_start(words):
    stages = []
    watchdog.at_start = stages.append
    script_in_rank(main_moco, words, tiny=True)
    return stages


def test_the_watchdog_is_told_of_every_stage_of_the_start(imagenet, tmp_path):
    words = [str(imagenet), "-a", "resnet18", "--crop-size", "24", "-b", "24", "--moco-k", "64", "--epochs", "1"]
    stages = run_ranks(stages_of_a_start, 2, [*words, "--seed", "1", "--output-dir", str(tmp_path)])
    assert stages == [list(watchdog.STAGES[1:])] * 2  # the process group, stage 0, is made before
