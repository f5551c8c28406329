"""The programs of a study: their output, their exit codes, how many run at once, with what, and how they end."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from moco.engine.preemption import Stopped
from moco.engine.stop_signals_raise import stop_signals_raise
from moco.tools.internal import study_programs
from moco.tools.internal.study_programs import ProgramFailed, Programs, gpu_shares, run_at_once, run_program, share
from tests.readme import ROOT

# A program that says that it has started, and takes part in a queue: it waits until all those beside it have started.
MEET = """
import os, sys, time
folder, name, others = sys.argv[1], sys.argv[2], sys.argv[3:]
open(os.path.join(folder, name), "w").write(f"{os.environ.get('GPU')} {sorted(os.sched_getaffinity(0))}")
end = time.monotonic() + 30
while not all(os.path.exists(os.path.join(folder, other)) for other in others):
    assert time.monotonic() < end
    time.sleep(0.01)
sys.exit(int(name))
"""
GPUS = [{"GPU": "a"}, {"GPU": "b"}]
LINGER = """
import signal, sys, time
file = open(sys.argv[1], "a", buffering=1)  # it stays open, since an exception would get lost while it is closed
signal.signal(signal.SIGTERM, lambda *_: (file.write("ended\\n"), sys.exit(143)))
file.write("began\\n")
time.sleep(60)
"""


def test_the_output_goes_to_the_log_and_a_failure_names_it(tmp_path, monkeypatch):
    log = tmp_path / "x.log"
    monkeypatch.chdir(tmp_path)  # paths that the user gives are relative to it
    monkeypatch.setenv("PYTHONPATH", "mine")
    run_program(["-c", "import os, moco; print(os.getcwd(), os.environ['PYTHONPATH'])"], str(log))
    with pytest.raises(ProgramFailed) as error:
        run_program(["-c", "import sys; print('a', file=sys.stderr); sys.exit('it broke')"], str(log))
    assert log.read_text().splitlines() == [f"{tmp_path} {ROOT}:mine", "a", "it broke"]
    assert str(error.value).startswith("code 1 of `python -c 'import sys; ")
    assert str(error.value).endswith(f"`; its log '{log}' ends with: it broke")
    with pytest.raises(ProgramFailed, match="code 3 of `python -c 'exit"):
        run_program(["-c", "exit(3)"], str(tmp_path / "empty.log"))


def test_so_many_run_at_once_with_their_shares_and_the_codes_are_in_order(tmp_path, capsys):
    others = {0: "1", 1: "0", 2: "3", 3: "2", 4: ""}  # 0 and 1 must be there at once, and so must 2 and 3
    commands = {f"nr. {n}": ["-c", MEET, str(tmp_path), str(n), *other] for n, other in others.items()}
    assert list(run_at_once(commands, GPUS).items()) == [(f"nr. {n}", n) for n in range(5)]
    assert capsys.readouterr().out.splitlines() == [f"run {n + 1} of 5 starts: nr. {n}" for n in range(5)]
    cores = sorted(os.sched_getaffinity(0))
    shares = [f"{gpu['GPU']} {share(cores, slot, 2)}" for slot, gpu in enumerate(GPUS)]
    found = [(tmp_path / str(n)).read_text() for n in others]
    assert sorted(found[:2]) == sorted(found[2:4]) == shares and found[4] in shares
    assert run_at_once({}, GPUS) == {}


def test_no_more_run_at_once(monkeypatch):
    running, most = [], []

    class Process:
        polls, returncode = 0, 0

        def poll(self):
            self.polls += 1
            return running.remove(self) or 0 if self.polls == 2 else None

    def start(self, words, env):
        running.append(Process())
        most.append(len(running))
        return running[-1]

    monkeypatch.setattr(Programs, "start", start)
    monkeypatch.setattr(study_programs, "PAUSE", 0)
    assert run_at_once(dict.fromkeys(range(7)), [{}] * 3) == dict.fromkeys(range(7), 0) and max(most) == 3


def test_a_signal_during_the_start_ends_the_program_too(monkeypatch, capsys):
    class Popen(subprocess.Popen):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    with pytest.raises(Stopped), stop_signals_raise(), Programs() as programs:
        programs.start(["-c", "import time; time.sleep(60)"])
    assert programs.started[0].returncode == -signal.SIGTERM


def test_a_signal_ends_the_programs_and_waits_for_them(tmp_path, capsys):
    files = [tmp_path / "0", tmp_path / "1"]

    def stop_when_all_have_begun():
        end = time.monotonic() + 30
        while not all(file.exists() and file.read_text() for file in files) and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop_when_all_have_begun)
    with pytest.raises(Stopped) as stop, stop_signals_raise():
        thread.start()
        run_at_once({file: ["-c", LINGER, str(file)] for file in files}, GPUS)
    thread.join()
    assert stop.value.code == 143 and capsys.readouterr().err == "stopped by SIGTERM\n"
    assert [file.read_text() for file in files] == ["began\nended\n"] * 2


def test_programs_that_still_run_at_the_end_are_ended():
    with Programs() as programs:
        process = programs.start(["-c", "import time; time.sleep(60)"])
    assert process.returncode == -signal.SIGTERM and process.args[0] == sys.executable


@pytest.mark.parametrize(
    "visible, jobs, expected",
    [
        (None, 2, ["0,1", "2,3"]),
        ("5,7,2,1", 2, ["5,7", "2,1"]),
        ("5,7,2,1", 3, ["5", "7", "2"]),
        ("GPU-a,GPU-b", 3, ["GPU-a", "GPU-b", "GPU-a"]),  # more programs than GPUs
        (None, 1, [None]),
    ],
)
def test_shares_of_gpus(visible, jobs, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(visible.split(",")) if visible else 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [one.get("CUDA_VISIBLE_DEVICES") for one in gpu_shares(jobs)] == expected


def test_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert gpu_shares(2) == [{}, {}]
