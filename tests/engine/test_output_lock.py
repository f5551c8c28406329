"""Two live runs of one script and tag in one folder: the second is refused; locks end with their process."""

import multiprocessing
import os
import signal
import time

import pytest

from moco.engine import output_lock
from moco.engine.checkpoint_names import CheckpointNames
from moco.engine.output_lock import OutputInUse, holder_of, lock_output, lock_output_in_rank_0, unlock_output


@pytest.fixture
def names(tmp_path):
    yield CheckpointNames(str(tmp_path), "checkpoint_", numbered=True)
    unlock_output()


class Holder:
    """Another process that holds the lock; `data_worker` lives on as its forked child."""

    def __init__(self, names, lock, fork=False):
        self.ours, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("fork").Process(target=self._hold, args=(names, lock, fork, theirs))
        self.process.start()
        self.child = self.ours.recv()

    @staticmethod
    def _hold(names, lock, fork, pipe):
        output_lock._descriptors.clear()
        lock(names, "12345678") if lock is lock_output else lock(names)
        child = os.fork() if fork else 0
        if fork and child == 0:
            time.sleep(60)
            os._exit(0)
        pipe.send(child)
        time.sleep(60)

    def kill(self):
        self.process.kill()
        self.process.join()


@pytest.mark.parametrize("lock", [lock_output, lock_output_in_rank_0])
def test_a_live_run_refuses_a_second_one_and_a_dead_one_does_not(lock, names, monkeypatch, capsys):
    """Whether the process that was started holds the lock, or rank 0 after the death of that process."""
    if lock is lock_output_in_rank_0:
        lock_output(names, "12345678")
        unlock_output()
    holder = Holder(names, lock, fork=True)
    monkeypatch.setattr(output_lock, "WAIT", 0.2)
    try:
        assert "run 12345678 (process " in holder_of(names)
        with pytest.raises(ValueError, match=r"run 12345678 \(process \d+ on .*give another --output-dir or.*--tag"):
            lock_output(names, "87654321")
        assert "waiting up to 0.2 s for run 12345678" in capsys.readouterr().out
        with pytest.raises(OutputInUse, match="run 12345678"):
            lock_output_in_rank_0(names) if lock is lock_output_in_rank_0 else lock_output(names, "87654321")
        other = CheckpointNames(names.folder, "checkpoint_t", numbered=True)  # another --tag
        lock_output(other, "87654321")
    finally:
        holder.kill()
    lock_output(names, "87654321")  # though the forked child of the dead process lives
    os.kill(holder.child, signal.SIGKILL)
    assert holder_of(names) is None


def test_a_run_waits_for_one_that_is_just_ending(names, capsys):
    holder = Holder(names, lock_output)
    capsys.readouterr()
    output_lock.time = type("Clock", (), {"monotonic": time.monotonic, "sleep": lambda _: holder.kill()})
    try:
        lock_output(names, "87654321")
    finally:
        output_lock.time = time
    assert "waiting up to 10 s for run 12345678" in capsys.readouterr().out
    with open(names.lock_file()) as file:
        assert file.read().startswith(f"run 87654321 (process {os.getpid()} on ")


def test_the_launcher_leaves_rank_0_its_byte(names):
    lock_output(names, "87654321")
    holder = Holder(names, lock_output_in_rank_0)
    unlock_output()  # the launcher dies first
    try:
        assert holder_of(names) is not None
    finally:
        holder.kill()


def test_without_a_lock_file_nothing_is_created_unless_wanted(names, tmp_path, capsys):
    lock_output(names, "87654321", create=False)
    assert capsys.readouterr().out == ""  # it has nothing to lock
    assert holder_of(names) is None and not list(tmp_path.iterdir())
    lock_output(names, "87654321")
    assert [path.name for path in tmp_path.iterdir()] == [".checkpoint_.lock"]


def test_a_file_system_without_locks_gets_a_note(names, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(output_lock.fcntl, "lockf", refuse)
    lock_output(names, "87654321")
    assert capsys.readouterr().out == (
        "note: this file system has no locks (No locks available); let only one run write into a folder\n"
    )
    lock_output(names, "87654321", create=False)
    lock_output_in_rank_0(names)
    assert capsys.readouterr().out == ""  # it was said once
