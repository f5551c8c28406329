"""Processes on one node: signals are passed on, and if one dies, all end."""

import contextlib
import multiprocessing.resource_tracker
import multiprocessing.util
import os
import signal
import subprocess
import sys
import time
import types

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from moco.data.image_reading import BadImageError
from moco.data.worker_processes import STOP_SIGNALS
from moco.distributed import RanksDiffer
from moco.engine import launch_processes
from moco.engine.early_signals import EXIT_CODE
from moco.engine.launch_plan import Launch
from moco.engine.launch_processes import start_processes
from moco.engine.preemption import Stopped
from tests.ranks import Program, gone, quick_launches


def worker(device, how):
    dist.barrier()
    if how == "live":
        if dist.get_rank() == 0:
            print("together", flush=True)
        time.sleep(1000)
    if how == "stop":  # and the signal's copy from the launcher comes late
        multiprocessing.util.Finalize(None, os.kill, (os.getpid(), signal.SIGINT), exitpriority=1)
        raise Stopped(EXIT_CODE)
    if how == "hang":
        if dist.get_rank() == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1000)
    if dist.get_rank() == 1:
        if how == "raise":
            raise RuntimeError("the second one fails")
        os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(torch.zeros(1))
    time.sleep(1000)


def launched(how):
    with quick_launches():
        start_processes(worker, Launch("spawn", local=3, backend="gloo"), how)


def launched_in_the_background(really):
    """With SIGINT ignored, as for a background job of a shell script; `really`: its processes import everything."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.nullcontext() if really else quick_launches():
        start_processes(worker, Launch("spawn", local=2, backend="gloo"), "live")


def print_compile_threads():
    launch_processes.cores = lambda: 12
    launch_processes.share_cores(4)
    import torch._inductor.config as compiler

    print(compiler.compile_threads)


def test_processes_that_compile_share_the_cores():
    assert Program(print_compile_threads).finish()[:2] == (0, "3\n")


@pytest.mark.slow
def test_a_user_may_choose_the_threads_of_the_compiler():
    lines = "from tests.engine.test_launch_processes import print_compile_threads as p; p()"
    env = {**os.environ, "PYTHONPATH": os.getcwd(), "TORCHINDUCTOR_COMPILE_THREADS": "5"}
    assert subprocess.check_output([sys.executable, "-c", lines], env=env, text=True) == "5\n"


@pytest.mark.parametrize("really", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_when_the_launcher_is_killed_all_end(really):
    """Also where SIGINT is ignored, as for a job that a shell script put into the background."""
    program = Program(launched_in_the_background, really)
    assert program.stdout.readline() == "together\n"
    os.kill(program.pid, signal.SIGKILL)
    program.wait()
    assert gone(program.pid)


def test_a_signal_to_the_launcher_is_passed_on():
    """To processes that have nothing to save yet, and end by it."""
    program = Program(launched, "live")
    assert program.stdout.readline() == "together\n"
    os.kill(program.pid, signal.SIGINT)
    assert program.wait(30) == EXIT_CODE
    assert program.stdout.read() == "stopped by SIGINT; no training step was running, so nothing is lost\n"
    assert gone(program.pid)


def test_a_copy_of_the_signal_does_no_harm_to_a_process_that_leaves():
    assert Program(launched, "stop").finish() == (EXIT_CODE, "", "")


@pytest.mark.parametrize(
    "how, said",
    [("raise", "rank 1: Traceback"), ("kill", "rank 1 was ended by SIGKILL"), ("hang", "rank 0 was ended by SIGKILL")],
)
def test_when_one_dies_all_end(how, said):
    program = Program(launched, how)
    code, _, stderr = program.finish()
    assert code == 1
    assert said in stderr
    assert stderr.count("Traceback") == (how == "raise")  # none of those that only lost their connection
    if how == "raise":
        assert "the second one fails" in stderr
    assert gone(program.pid)


def test_one_process_says_a_known_cause_in_one_line(call):
    def worker(device, error):
        raise error

    def main(_):
        launch_processes.start_processes(worker, Launch("alone"), error)

    error = BadImageError("can't decode the image 'x'; repair or remove it")
    assert call(main) == (1, "", f"error: {error}\n")
    error = KeyError("a bug")
    with pytest.raises(KeyError, match="a bug"):
        main([])


LOST = RuntimeError("Connection closed by peer [127.0.0.1]:1")


@pytest.mark.parametrize(
    "error, local_rank, lost, silent",
    [
        (RanksDiffer("--lr is 1 on rank 0"), 0, 0, False),  # the first process of each node speaks
        (FloatingPointError("the loss of rank 1 is not finite"), 1, 0, True),
        (BadImageError("can't decode"), 1, 0, False),
        (KeyError("a bug"), 1, 1, False),
        (LOST, 0, 1, True),  # because a process of this node died
        (LOST, 0, 0, False),
        (LOST, 0, None, False),  # with torchrun
    ],
)
def test_only_the_process_with_the_cause_speaks(error, local_rank, lost, silent, monkeypatch):
    monkeypatch.setattr(launch_processes, "MOMENT", 0.1)
    shared = lost if lost is None else mp.get_context("spawn").RawValue("b", lost)
    assert launch_processes._another_speaks(error, local_rank, shared) == silent


def supervised(*functions):
    """Forks one process per function and supervises them; returns its exit code and those of the processes."""
    lost = mp.get_context("spawn").RawValue("b", 0)
    processes = [mp.get_context("fork").Process(target=function) for function in functions]
    for process in processes:
        process.start()
    code = launch_processes._supervise(processes, [], lost, 0)
    return code, [process.exitcode for process in processes]


def sleep():
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    time.sleep(20)


def test_a_signal_to_one_process_that_does_not_listen_yet_ends_all(capfd):
    def signalled():
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGUSR1)

    codes = supervised(sleep, signalled)
    assert codes == (EXIT_CODE, [-signal.SIGUSR1] * 2)
    assert capfd.readouterr().out == "stopped by SIGUSR1; no training step was running, so nothing is lost\n"


def test_a_signal_that_only_the_first_process_listens_for_is_reported_once(capfd):
    def signalled():
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)

    codes = supervised(lambda: sys.exit(EXIT_CODE), signalled)
    assert codes == (EXIT_CODE, [EXIT_CODE, -signal.SIGINT]) and capfd.readouterr() == ("", "")


def test_a_failure_between_two_looks_is_not_missed():
    """The only process still runs when the launcher looks for a failure, and has failed when it looks for the end."""
    reader, writer = os.pipe()
    os.close(writer)
    codes = iter([None, None])
    kind = type("Ending", (), {"sentinel": reader, "exitcode": property(lambda _: next(codes, 1))})
    lost = mp.get_context("spawn").RawValue("b", 0)
    assert launch_processes._supervise([kind()], [], lost, 0) == 1
    os.close(reader)


def test_a_paused_process_is_ended_soon_unless_rank_0_may_still_write(monkeypatch, capfd):
    monkeypatch.setattr(launch_processes, "PATIENCE", 0.3)

    def stopped():
        sys.exit(EXIT_CODE)

    codes = supervised(stopped, lambda: os.kill(os.getpid(), signal.SIGSTOP))
    assert codes == (EXIT_CODE, [EXIT_CODE, -signal.SIGKILL])
    codes = supervised(lambda: time.sleep(0.6), stopped)
    assert codes == (EXIT_CODE, [0, EXIT_CODE])
    monkeypatch.setattr(launch_processes, "PATIENCE_WITH_RANK_0", 0.3)
    assert supervised(sleep, stopped) == (EXIT_CODE, [-signal.SIGKILL, EXIT_CODE])
    assert capfd.readouterr() == ("", "")


def test_signals_wait_while_a_process_imports_the_script(monkeypatch):
    """It starts with signals blocked, and dies of a signal that came meanwhile when it begins its work."""
    calls = []

    def start(*_, **__):
        calls.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))
        return types.SimpleNamespace(processes=[])

    monkeypatch.setattr(mp, "start_processes", start)
    # The start of Python's resource tracker unblocks signals, so it must come first.
    monkeypatch.setattr(multiprocessing.resource_tracker, "ensure_running", lambda: calls.append("tracker"))
    launch_processes.start_processes(None, Launch("spawn", backend="gloo"))
    assert calls == ["tracker", set(STOP_SIGNALS)] and not signal.pthread_sigmask(signal.SIG_BLOCK, [])

    def rank():
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        os.kill(os.getpid(), signal.SIGINT)
        launch_processes._join_group(0, None, Launch("spawn", backend="gloo"), 5, None, None, os.getppid(), ())

    process = mp.get_context("fork").Process(target=rank)
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGINT


def orphaned(folder):
    launch_processes.rendezvous = lambda *_: print("it met the others")
    launch_processes._join_group(0, worker, Launch("spawn", local=2), 5, folder, None, os.getppid() + 1, ("live",))


def test_a_process_whose_launcher_is_gone_does_not_begin(tmp_path):
    """The launcher's lock on the output folder is free by then, so another run may have begun."""
    folder = tmp_path / "of multiprocessing" / "of the launcher"
    folder.mkdir(parents=True)
    assert Program(orphaned, str(folder)).finish()[:2] == (1, "")
    assert not folder.exists()
