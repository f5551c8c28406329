"""Signals before the first step: one line and exit code 143, also while torch is being imported."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

import main_moco
from moco.data.worker_processes import STOP_SIGNALS
from moco.engine.early_signals import EXIT_CODE, exit_on_signals
from tests.tiny_net import use_tiny_net

LINE = "stopped by {}; no training step was running, so nothing is lost\n"


@pytest.mark.parametrize("script, number", [("main_moco.py", "SIGUSR1"), ("main_lincls.py", "SIGINT")])
def test_a_signal_while_torch_is_imported(script, number, tmp_path):
    """A package named torch signals its own process, and then hides the exception that a handler might raise."""
    lines = ("import os, signal, time", "try:", f"  os.kill(os.getpid(), signal.{number})", "  time.sleep(30)")
    (tmp_path / "torch.py").write_text("\n".join([*lines, "except BaseException:", "  pass", "1 / 0"]))
    run = subprocess.run(
        [sys.executable, script], env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert (run.returncode, run.stdout, run.stderr) == (EXIT_CODE, LINE.format(number), "")


def ended(function):
    """Calls a function in a forked process after `exit_on_signals`; returns its exit code."""
    if (child := os.fork()) == 0:
        try:
            exit_on_signals()
            function()
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("number", STOP_SIGNALS)
@pytest.mark.parametrize("rank", ["0", "1"])
def test_one_process_speaks_and_all_end(number, rank, monkeypatch, capfd):
    monkeypatch.setenv("RANK", rank)  # as torchrun sets it
    assert ended(lambda: os.kill(os.getpid(), number)) == EXIT_CODE
    assert capfd.readouterr().out == LINE.format(signal.Signals(number).name) * (rank == "0")


def test_a_signal_before_the_first_step(imagenet, tmp_path, monkeypatch, capfd):
    use_tiny_net(monkeypatch)
    monkeypatch.setattr(main_moco, "training_loader", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    words = [str(imagenet), "-a", "resnet18", "--crop-size", "24", "-b", "24", "--moco-k", "64", "-j", "0"]
    assert ended(lambda: main_moco.main([*words, "--output-dir", str(tmp_path)])) == EXIT_CODE
    out, err = capfd.readouterr()
    assert out.startswith("images: 96 of 12 classes") and out.endswith(LINE.format("SIGTERM")) and err == ""


def test_a_signal_ends_the_data_workers_too():
    reader, writer = os.pipe()

    def work():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(5)
        os.write(writer, b"still here")

    def main():
        multiprocessing.get_context("fork").Process(target=work).start()
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)

    assert ended(main) == EXIT_CODE
    os.close(writer)
    assert os.read(reader, 100) == b""  # every process that held the pipe has ended
    os.close(reader)
