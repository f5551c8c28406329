"""Data workers: the signals that they obey, and how they end."""

import os
import signal
import subprocess
from functools import partial

import pytest
from torch.utils.data import DataLoader, Dataset

from moco.data.worker_processes import STOP_SIGNALS, start_worker, stop_signals_held
from moco.loader import make_loader


class Numbers(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, i):
        return i


def first_batch():
    """Batches of one number each after the first, and the data worker that makes them."""
    batches = iter(make_loader(Numbers(), workers=1))
    next(batches)
    return batches, batches._workers[0]


def test_data_workers_pass_over_signals():
    batches, worker = first_batch()
    for number in STOP_SIGNALS:
        subprocess.run(["kill", f"-{int(number)}", str(worker.pid)], check=True)  # as others do
    for number in (signal.SIGINT, signal.SIGUSR1):
        os.kill(worker.pid, number)
    assert [int(x) for x in batches] == list(range(1, 40))


def test_data_workers_obey_their_parent():
    batches, worker = first_batch()
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        worker.terminate()
        worker.join(30)
        assert worker.exitcode == 0
        list(batches)


def test_signals_that_come_while_a_worker_starts_wait_until_it_is_ready():
    with stop_signals_held():
        batches = iter(make_loader(Numbers(), workers=1))
        for number in STOP_SIGNALS:
            subprocess.run(["kill", f"-{int(number)}", str(batches._workers[0].pid)], check=True)
    assert len(list(batches)) == 40


def test_a_data_worker_whose_parent_is_gone_does_not_begin(monkeypatch):
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        next(iter(DataLoader(Numbers(), num_workers=1, worker_init_fn=partial(start_worker, os.getpid() + 1))))
