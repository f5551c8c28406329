"""The GPU report: what it refuses, how it continues, parts that hang or crash, its tables; and all of it, small."""

import json
import os
import signal
import sys
import time

import pytest

import main_lincls
import main_moco
from moco.benchmarks import gpu_report
from moco.benchmarks.internal.gpu_report_job import PartFailed, PartSkipped
from moco.benchmarks.internal.gpu_report_parts import PARTS, Part, steady
from moco.benchmarks.internal.gpu_report_tables import markdown
from tests.ranks import Program, alive

MACHINE = {"device": "NVIDIA H100 80GB HBM3", "gpus": 1, "gpu_gb": 85.0, "torch": "2.14.1", "driver": "570.1"}
MACHINE |= {"cpu": "AMD EPYC, 16 cores", "memory_gb": 135.0, "commit": "abc", "fast": "--fast"}
MACHINE["step_flags"] = "--compile --precision bf16"


@pytest.fixture
def call_report(monkeypatch, tmp_path, call):
    """Calls the command with parts of a test, a dict from name to function; returns its exit code and output."""
    monkeypatch.setattr(gpu_report.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_report, "machine", lambda out, small: MACHINE)

    def call_report(parts, *flags):
        monkeypatch.setattr(gpu_report, "PARTS", {name: Part(1, function) for name, function in parts.items()})
        code, *printed = call(gpu_report.main, "--out", tmp_path, *flags)
        return code, "".join(printed)

    return call_report


def parts_of(folder):
    """The entries of the parts in the report of a folder."""
    return json.loads((folder / "report.json").read_text())["parts"]


def python(code):
    """A part that runs Python code in a process."""
    return lambda job: job.run("-c", code)


def test_a_second_call_continues(call_report, tmp_path):
    calls, broken = [], [True]

    def part(name, error=None):
        def function(job):
            calls.append(name)
            job.figures["calls"] = len(calls)
            if error and broken:
                raise error

        return function

    errors = {"a": PartFailed("no luck"), "b": None, "c": PartSkipped("no such thing"), "d": None}
    parts = {name: part(name, error) for name, error in errors.items()}
    code, out = call_report(parts, "--only", "[a-c]")
    assert code == 1 and calls == ["a", "b", "c"] and "a: failed after 0 s (no luck)" in out
    assert "gpu_report: 1 of 3 parts, 0:00:02 left; now: b, about 1 s\n" in out
    for row in ("| `a` | failed | no luck |", "| `c` | skipped | no such thing |", "| `d` | not run yet | |"):
        assert row in (tmp_path / "report.md").read_text()
    broken.clear()
    assert call_report(parts)[0] == 0 and calls == ["a", "b", "c", "d", "a"]  # what has failed comes last
    results = parts_of(tmp_path)
    assert [results[name]["status"] for name in "abcd"] == ["done", "done", "skipped", "done"]
    assert results["b"]["figures"] == {"calls": 2}
    assert "nothing is left to do" in call_report(parts)[1] and len(calls) == 5


def test_a_failure_is_not_forgotten_when_the_time_is_over(call_report, tmp_path):
    def fails(job):
        raise PartFailed("no luck")

    assert call_report({"a": fails})[0] == 1
    code, out = call_report({"a": fails}, "--minutes", "1e-9")
    assert code == 1 and "a: did not fit" in out and parts_of(tmp_path)["a"]["reason"] == "no luck"


def test_what_does_not_fit_is_listed_and_left_to_the_next_call(call_report, tmp_path):
    parts = {"a": python("print(1)"), "b": python("print(2)")}
    assert call_report(parts, "--minutes", "1e-9")[0] == 0
    for part in parts_of(tmp_path).values():
        assert part["status"] == "did not fit" and part["reason"] == "0 s were left, and it takes about 1 s"
    assert call_report(parts)[0] == 0
    assert [part["status"] for part in parts_of(tmp_path).values()] == ["done", "done"]
    assert parts_of(tmp_path)["b"]["commands"] == ["python -c 'print(2)'"]


@pytest.mark.slow
def test_a_part_that_hangs_is_killed_with_its_children(call_report, tmp_path):
    hang = f"""
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))
time.sleep(600)
"""
    code, _ = call_report({"hang": python(hang), "next": python("print(1)")}, "--minutes", "0.1")
    results = parts_of(tmp_path)
    assert code == 1 and results["hang"]["status"] == "failed" and results["next"]["status"] == "done"
    assert results["hang"]["reason"] == "it was killed after 3 s, half of --minutes; give more --minutes"
    assert not (tmp_path / "work").exists()
    group = int((tmp_path / "pid").read_text())
    until(lambda: not alive(group))


def until(condition):
    """Waits until `condition()` is true; fails after two minutes."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_part_that_crashes_is_listed_with_its_output(call_report, tmp_path):
    crash = "for i in range(30): print(f'line {i}')\nraise ValueError('too bad')"
    code, _ = call_report({"crash": python(crash), "bug": lambda job: {}["figure"], "last": python("print(1)")})
    results = parts_of(tmp_path)
    assert code == 1 and results["last"]["status"] == "done"
    assert results["crash"]["reason"] == "exit code 1 instead of 0: ValueError: too bad"
    assert len(results["crash"]["output"]) == 20 and results["bug"]["reason"] == "KeyError: 'figure'"
    text = (tmp_path / "report.md").read_text()
    assert "The end of the output of `crash`; `crash.log` has all of it:" in text and "line 29\n" in text
    assert "line 0\n" in (tmp_path / "crash.log").read_text()


@pytest.mark.parametrize(
    "flags, earlier, message",
    [
        (["--only", "a", "x*"], None, "--only 'x*' is no part; give some of a"),
        (["--minutes", "0"], None, "'0' is not a finite number > 0"),
        (["--small"], {}, "has a report without --small, this call is with it; give another folder"),
        ([], {"small": True}, "has a report with --small, this call is without it; give another folder"),
        ([], {"machine": {**MACHINE, "gpus": 2}}, "gpus was 2 there and is 1 here; give another folder"),
        ([], "{", "report.json' is damaged; remove it, or give another --out"),
        ([], "[]", "report.json' is damaged; remove it, or give another --out"),
    ],
)
def test_what_it_refuses(flags, earlier, message, call_report, tmp_path):
    if isinstance(earlier, dict):
        earlier = json.dumps({"small": False, "commits": [], "parts": {}, "machine": MACHINE, **earlier})
    if earlier:
        (tmp_path / "report.json").write_text(earlier)
    code, error = call_report({"a": lambda job: pytest.fail("it worked")}, *flags)
    assert code == 2 and error.count("\n") == 1 and message in error


def test_it_refuses_a_file_as_folder_and_a_machine_without_a_gpu(call_report, tmp_path, call, monkeypatch):
    (tmp_path / "file").touch()
    code, _, error = call(gpu_report.main, "--out", tmp_path / "file")
    assert code == 2 and "is no folder; give a folder, which may be a new one" in error
    (tmp_path / "work").mkdir()
    code, error = call_report({})
    assert code == 2 and "has a folder 'work', but no report; give another" in error and (tmp_path / "work").exists()
    monkeypatch.setattr(gpu_report.torch.cuda, "is_available", lambda: False)
    code, error = call_report({})
    assert code == 2 and error.endswith("give --small to try it on the CPU\n") and error.count("\n") == 1


class Words:
    """A Job of a machine with a GPU that only collects the commands' words."""

    def __init__(self, out):
        self.out = self.work = str(out)
        self.small, self.machine, self.figures, self.words = False, {**MACHINE, "gpus": 2}, {}, []
        os.makedirs(out / "images")

    def run(self, *words):
        self.words = [str(word) for word in words]
        raise PartSkipped("the words are known")

    start = result_of = run

    def lines(self):
        return []


@pytest.mark.parametrize("name", list(PARTS))
def test_the_scripts_accept_the_commands(name, tmp_path):
    job = Words(tmp_path)
    with pytest.raises(PartSkipped, match="the words are known"):
        PARTS[name].function(job)
    words = job.words
    if name == "tests":
        assert words[:4] == ["-m", "pytest", "-m", "gpu"]
    elif name == "lincls":
        assert main_lincls.build_parser().parse_args(words[1:]).pretrained == "none"
    elif name.startswith("step"):
        words = [word for word in words[2:] if word not in ("--json", "--skip-splits")]
        place = words.index("--seconds")
        del words[place : place + 2]
        args = main_moco.build_parser().parse_args([".", *words])
        designs, batch = args.design, int(name.rpartition("-")[2])
        assert len(designs) == {"baseline": 0, "all": 5}.get(name.split("-")[1], 1)
        assert (args.batch_size, args.bn_splits) == (batch, batch // 32) and args.compile and args.precision == "bf16"
    else:
        args = main_moco.build_parser().parse_args(words[words.index("-b") :])
        assert args.batch_size in (256, 32) and args.crop_size == 224


def test_the_steady_speed_leaves_out_the_start_of_the_epoch():
    """The start takes 10 s, with a wait of 8 s; then each step of 4 images takes 2 s, with a wait of 0.5 s."""
    lines = [{"step": 0, "time": 110.0, "seconds": 10.0, "wait": 0.8}]
    lines += [
        {"step": i, "time": 110.0 + 2 * i, "seconds": 2.0, "wait": (8 + i / 2) / (10 + 2 * i)} for i in range(1, 9)
    ]
    figures = steady(lines, 4)
    assert figures["images_per_s"] == pytest.approx(2) and figures["wait"] == pytest.approx(0.25)
    assert figures["steps"] == 5


def part(**figures):
    return {"status": "done", "reason": "", "seconds": 20.0, "commands": ["python x.py"], "figures": figures}


def test_the_tables_of_a_report():
    row = {"ours": 1234.0, "original": 617.0, "ours_over_original": 2.0, "cost": 1.0, "memory_gb": 9.87, "hours": 28.8}
    row |= {"product_tflops": 500.0, "of_product": 0.25, "cost_of_splits": 1.021}
    epochs = [{"resident": 5e9, "reserved": x * 1e9, "allocated": 2e10} for x in (30, 31, 31, 31, 32)]
    figures = {
        "tests": {"passed": 7},
        "step-baseline-256": row,
        "step-multicrop-256": row | {"cost": 1.83, "cost_of_splits": None},
        "augmentation": {"256": {"batch": 256, "ms": {"baseline": 20.7, "all": 64.0}}},
        "memory": {"epochs": epochs, "kind": "reserved", "growth": 0.032, "flat": False},
        "run": {"images_per_s": 1100.0, "wait": 0.031, "workers": 16, "steps": 100, "batch": 256},
        "preemption": {"steps_before": 4, "steps": 45, "difference": 0.0012, "flags": []},
        "lincls": {"val_acc1": 12.5, "pretrained": True, "wait": 0.5},
    }
    report = {"small": False, "machine": MACHINE, "commits": ["abc", "def"], "date": "2030-01-01"}
    report |= {"names": list(PARTS), "parts": {name: part(**x) for name, x in figures.items()}}
    report["parts"]["nccl"] = part() | {"status": "skipped", "reason": "Duplicate GPU | detected"}
    text = markdown(report)
    assert text.startswith(
        "# GPU report\n\nHardware: 1 x NVIDIA H100 80GB HBM3 with 85 GB, AMD EPYC, 16 cores, 135 GB"
    )
    assert "torch 2.14.1, driver 570.1." in text and "Commit: abc, def. Date: 2030-01-01." in text
    with open(os.path.join(os.path.dirname(gpu_report.__file__), "README.md")) as file:
        readme = file.read()
    header = (
        "| designs | ours, images/s | the original's, images/s | ours / original | cost | peak memory | hours for 100 "
    )
    assert header in text and header in readme
    for line in (
        "| baseline | 1,234 | 617 | 2 | 1 | 9.87 GB | 28.8 |",
        "| MultiCrop | 1,234 | 617 | 2 | 1.83 | 9.87 GB | 28.8 |",
        "| all five | not measured yet | | | | | |",
        "With `--bn-splits`, the step takes 1.02 times as long as without.",
        "| baseline | 256 | 20.7 | 0.0809 | 207 | 10.0 % |",
        "| all five | 256 | 64 | 0.25 | - | not measured yet |",
        "| peak reserved, GB | 30 | 31 | 31 | 31 | 32 |",
        "After epoch 2 the reserved memory grew by 3.2 %; it is NOT flat.",
        "| tests marked `gpu` | 7 passed |",
        "1,100 images/s, `Wait` 3.1 %; 16 workers, 100 steps of 256",
        "stopped after 4 of 45 steps and resumed: weights and momentum differ by up to 0.0012",
        "top-1 12.5 % on 12 classes after an epoch on the network of the run above, `Wait` 50.0 %",
        "| `nccl` | skipped | Duplicate GPU \\| detected |",
    ):
        assert line in text, line
    assert "`step-all-256`" in text.partition("## What is not done")[2]
    assert markdown(report | {"small": True}).startswith("**A try-out with --small")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a part dies with the report only on Linux")
def test_small_runs_whole_after_it_was_killed(tmp_path):
    words = ["--small", "--out", str(tmp_path)]
    process = Program(gpu_report.main, words)
    until(lambda: (tmp_path / "run.log").exists() and "Epoch" in (tmp_path / "run.log").read_text())
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = parts_of(tmp_path)
    assert before["memory"]["status"] == "done" and "run" not in before
    code, out, error = Program(gpu_report.main, words).finish(600)
    assert code == 0, out + error
    after = parts_of(tmp_path)
    assert list(after) == list(PARTS) and {name: after[name] for name in before} == before
    done = {name for name, x in after.items() if x["status"] == "done"}
    steps = {f"step-{designs}-{batch}" for designs in ("baseline", "all") for batch in (256, 32)}
    assert done == {"augmentation", "memory", "run", "preemption", "lincls", *steps}
    assert {x["status"] for name, x in after.items() if name not in done} == {"skipped"}
    assert after["preemption"]["figures"]["difference"] == 0
    assert (tmp_path / "report.md").read_text().startswith("**A try-out with --small")
