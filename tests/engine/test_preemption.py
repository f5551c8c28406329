"""Signals that ask a run to stop: agreement, one checkpoint, exit code 143, and the run that goes on from there."""

import os
import signal
import threading
import time

import pytest
import torch
import torch.distributed as dist

import main_lincls
import main_moco
from moco.data.worker_processes import STOP_SIGNALS
from moco.engine import checkpoint_atomic_write, preemption
from moco.engine.preemption import EXIT_CODE, StopListener, signal_name
from tests.ranks import Program, run_ranks, script_in_rank
from tests.tiny_net import use_tiny_net


def noticed(stop):
    """Waits until the listener has read a signal."""
    deadline = time.monotonic() + 30
    while not stop.number and time.monotonic() < deadline:
        time.sleep(0.01)


def signal_at(step, number, victim=0):
    """One of the ranks signals itself after `step` of 20 steps; returns after which step all stop."""
    with StopListener(steps=3) as stop:
        for i in range(20):
            if dist.is_initialized() and dist.get_rank() == victim and i == step:
                os.kill(os.getpid(), number)
                noticed(stop)
            if stop.asked():
                assert stop.asked()  # it stays so
                return i, stop.number


@pytest.mark.parametrize("world, victim", [(2, 0), (2, 1), (4, 3)])
def test_all_ranks_stop_after_the_same_step_whoever_was_signalled(world, victim):
    everywhere = run_ranks(signal_at, world, 7, signal.SIGUSR1, victim)
    ((stopped, number),) = set(everywhere)
    assert number == signal.SIGUSR1 and 7 <= stopped <= 7 + 3  # within the interval


def test_nobody_stops_without_a_signal():
    assert run_ranks(signal_at, 2, 99, signal.SIGTERM, 0) == [None, None]


@pytest.mark.gpu
def test_notes_are_compared_over_nccl(tmp_path):
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/m", rank=0, world_size=1)
    try:
        with StopListener(steps=1) as stop:
            assert not stop.asked()
            os.kill(os.getpid(), signal.SIGTERM)
            noticed(stop)
            assert stop.asked()
    finally:
        dist.destroy_process_group()


def test_steps_between_comparisons_follow_their_duration():
    stop = StopListener(steps=10)
    assert stop._steps_to_next(0.0) == 1  # nothing is known yet
    stop.compared, stop.steps_since = 100.0, 4
    assert stop._steps_to_next(100.4) == 10  # fast steps: the print interval
    assert stop._steps_to_next(108.0) == 2  # 2 s each: within INTERVAL
    assert stop._steps_to_next(160.0) == 1


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_alone_the_first_signal_is_noted_and_the_handlers_come_back(number, capsys):
    before = [signal.getsignal(n) for n in STOP_SIGNALS]
    with StopListener(steps=10) as stop:
        assert not stop.asked()
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # the same one, come another way
        noticed(stop)
        assert stop.asked() and stop.number == number
    assert [signal.getsignal(n) for n in STOP_SIGNALS] == before
    assert f"{signal_name(number)}: the run saves a checkpoint after one of the next steps" in capsys.readouterr().out


ECHO = 0.3


def stuck(temporary, store):
    preemption.ECHO = ECHO
    open(temporary, "w").close()
    checkpoint_atomic_write._temporaries.add(temporary)
    store = dist.FileStore(store, 2)
    with preemption.StopListener(steps=1):
        print("listening", flush=True)
        store.get("what nobody sets")  # where no signal's handler runs


def test_a_second_signal_ends_a_process_that_hangs_and_leaves_no_half_written_file(tmp_path):
    program = Program(stuck, str(tmp_path / "c.tmp"), str(tmp_path / "store"))
    assert program.stdout.readline() == "listening\n"
    os.kill(program.pid, signal.SIGTERM)
    assert "ends it at once" in program.stdout.readline()
    assert program.wait(ECHO + 0.3) is None
    os.kill(program.pid, signal.SIGTERM)
    assert program.wait(30) == EXIT_CODE
    assert not (tmp_path / "c.tmp").exists()


def interrupt(number):
    """Signals this process, in which a script runs, and waits until its listener has read it."""
    (listener,) = [thread for thread in threading.enumerate() if thread.name == "signals"]
    os.kill(os.getpid(), number)
    noticed(listener._target.__self__)


def moco_words(images, folder):
    words = [str(images), "-a", "resnet18", "--crop-size", "32", "-b", "6", "--moco-k", "16", "-j", "0", "-p", "2"]
    return [*words, "--epochs", "3", "--seed", "2", "--output-dir", str(folder)]


def tiny(monkeypatch):
    use_tiny_net(monkeypatch)


def equal(a, b):
    a, b = (torch.load(path, weights_only=True)["state_dict"] for path in (a, b))
    return all(torch.equal(tensor, b[name]) for name, tensor in a.items())


@pytest.mark.parametrize("step, place", [(5, (1, 2)), (7, (2, 0))], ids=["within an epoch", "at its end"])
def test_a_run_that_was_stopped_goes_on_to_the_same_end(step, place, few_images, tmp_path, monkeypatch, capsys):
    tiny(monkeypatch)
    main_moco.main(moco_words(few_images, tmp_path / "whole"))
    train_step = main_moco.train_step

    def stopping(*args):
        if args[5] == step:
            interrupt(signal.SIGTERM)
        return train_step(*args)

    monkeypatch.setattr(main_moco, "train_step", stopping)
    with pytest.raises(SystemExit) as stop:
        main_moco.main(moco_words(few_images, tmp_path / "stopped"))
    assert stop.value.code == EXIT_CODE
    name = "checkpoint__last.pth.tar" if place[1] else "checkpoint__0001.pth.tar"
    path = tmp_path / "stopped" / name
    saved = torch.load(path, weights_only=True)
    assert (saved["epoch"], saved["step"]) == place
    assert f"stopped by SIGTERM; {str(path)!r} is written" in capsys.readouterr().out
    monkeypatch.setattr(main_moco, "train_step", train_step)
    main_moco.main([*moco_words(few_images, tmp_path / "stopped"), "--resume", "auto"])
    assert equal(*(tmp_path / run / "checkpoint__0002.pth.tar" for run in ("whole", "stopped")))
    assert '"kind": "stop"' in (tmp_path / "stopped" / "log.jsonl").read_text()


def test_a_signal_in_the_last_step_of_all_lets_the_run_end(few_images, tmp_path, monkeypatch):
    tiny(monkeypatch)
    train_step = main_moco.train_step

    def stopping(*args):
        if args[5] == 11:
            interrupt(signal.SIGTERM)
        return train_step(*args)

    monkeypatch.setattr(main_moco, "train_step", stopping)
    main_moco.main(moco_words(few_images, tmp_path))
    assert torch.load(tmp_path / "checkpoint__0002.pth.tar", weights_only=True)["epoch"] == 3


def lincls_words(images, folder):
    words = [str(images), "--pretrained", "none", "-a", "resnet18", "--crop-size", "32", "-b", "6", "-j", "0"]
    return [*words, "--epochs", "2", "--seed", "2", "-p", "1", "--output-dir", str(folder)]


def probe_stopped_in_validation(few_images, folder):
    """One rank is signalled in the second epoch's first validation step; returns the exit code."""
    steps, cross_entropy = [], main_lincls.F.cross_entropy

    def stopping(output, target, **how):
        steps.append(bool(how))  # whether it is one of validation
        if sum(steps) == 3 and steps[-1] and dist.get_rank() == 1:  # 2 a validation
            interrupt(signal.SIGUSR1)
        return cross_entropy(output, target, **how)

    main_lincls.F.cross_entropy = stopping
    try:
        script_in_rank(main_lincls, lincls_words(few_images, folder), tiny=True)
    except SystemExit as stop:
        return stop.code
    finally:
        main_lincls.F.cross_entropy = cross_entropy


def probe(words):
    script_in_rank(main_lincls, words, tiny=True)


def test_linear_classification_that_was_stopped_in_validation_goes_on_to_the_same_end(few_images, tmp_path):
    run_ranks(probe, 2, lincls_words(few_images, tmp_path / "whole"))
    assert run_ranks(probe_stopped_in_validation, 2, few_images, tmp_path / "stopped") == [EXIT_CODE] * 2
    saved = torch.load(tmp_path / "stopped" / "checkpoint_last.pth.tar", weights_only=True)
    assert (saved["epoch"], saved["step"]) == (1, 4)
    run_ranks(probe, 2, [*lincls_words(few_images, tmp_path / "stopped"), "--resume", "auto"])
    assert equal(*(tmp_path / run / "checkpoint.pth.tar" for run in ("whole", "stopped")))
    best = [torch.load(tmp_path / run / "checkpoint.pth.tar", weights_only=True) for run in ("whole", "stopped")]
    assert best[0]["best_acc1"] == best[1]["best_acc1"]
