"""The study as a program: which runs it starts, what it does after a failure, what it refuses; and a real one."""

import importlib.util
import json
import os
import re
import shlex
import signal

import pytest
import torch

from moco.engine.checkpoint_format import CheckpointError
from moco.tools import fake_imagenet, study
from moco.tools.internal.study_programs import ProgramFailed
from moco.tools.internal.study_runs import paper_runs
from moco.tools.internal.study_stages import path_of
from tests.tiny_net import use_tiny_net
from tests.tools.internal.study_parts import FLAGS

TWO = ["--runs", "baseline", "multicrop:target"]


@pytest.fixture
def work(monkeypatch):
    """Stubs of the stages: `performed` lists those that were performed, `errors` says which of them raise what."""
    performed, errors = [], {}

    def perform(study, run, seed, stage):
        performed.append((run, seed, stage))
        if (run, stage) in errors:
            raise errors[run, stage]
        path = path_of(study, run, seed, stage)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        figures = {"knn_acc1": 1.0, "regression_acc1": 2.0} if stage == "evaluation" else {}
        with open(path, "w") as file:
            json.dump({"figures": figures}, file)

    use_tiny_net(monkeypatch)
    monkeypatch.setattr(study, "perform", perform)
    return performed, errors


@pytest.fixture
def started(monkeypatch, work):
    """The command lines of the runs that the study starts; they are done in this process."""
    commands = []

    def code_of(words):
        commands.append(words)
        assert words[:2] == ["-m", "moco.tools.study"]
        try:
            study.main(words[2:])
        except SystemExit as stop:
            return stop.code
        return 0

    monkeypatch.setattr(
        study, "run_at_once", lambda commands, gpus: {title: code_of(words) for title, words in commands.items()}
    )
    return commands


def test_each_run_is_started_once_and_finished_ones_are_not_repeated(imagenet, tmp_path, work, started, call):
    performed, _ = work
    words = [imagenet, "--out", tmp_path, *TWO, "multicrop:target", "--seeds", 0, 1, "--", *FLAGS]
    code, out, error = call(study.main, *words)
    assert (code, error) == (0, "") and out.startswith("study: 4 runs, of which 0 are finished already\n")
    base, other = ("pretraining", "evaluation", "variance"), ("pretraining", "evaluation")
    assert performed == [
        (run, seed, stage)
        for seed in (0, 1)
        for run, stages in (("baseline", base), ("random", ["evaluation"]), ("multicrop:target", other))
        for stage in stages
    ]
    assert started[1] == [
        *("-m", "moco.tools.study", str(imagenet), "--out", str(tmp_path), "--runs", "multicrop:target"),
        *("--seeds", "0", "--", *FLAGS),
    ]
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 6
    assert "| `multicrop:target` | 2 | 2.0 ± 0.0 |" in (tmp_path / "table.md").read_text()
    performed.clear()
    (tmp_path / "baseline" / "seed1" / "variance.json").unlink()  # as if an earlier version had finished this run
    code, out, _ = call(study.main, *words)
    assert code == 0 and "study: 4 runs, of which 3 are finished already\n" in out
    assert performed == [("baseline", 1, "variance")] and len(started) == 5


@pytest.mark.parametrize(
    "failure, line",
    [
        (ProgramFailed("code 3 of x"), "code 3 of x\n"),
        (CheckpointError("no file y"), "no file y\n"),
        (SystemExit(1), "see above\n"),
        (KeyError("z"), r"\nTraceback (.*\n)*KeyError: 'z'\n\n"),
    ],
)
def test_a_failed_run_is_reported_and_the_rest_goes_on(failure, line, imagenet, tmp_path, work, started, call):
    performed, errors = work
    errors["baseline", "pretraining"] = failure
    words = [imagenet, "--out", tmp_path, *TWO, "--", *FLAGS]
    code, out, error = call(study.main, *words)
    again = "the same command tries again\n"
    alone = "failed: pretraining of baseline with seed 0\n"
    first, rest = (
        f"error: baseline, seed 0, pretraining: {line}",
        f"{alone}failed: baseline with seed 0 (code 1); {again}",
    )
    assert code == 1 and re.fullmatch(first + re.escape(rest), error)
    runs = [(run, stage) for run, _, stage in performed]
    assert runs[:2] == [("baseline", "pretraining"), ("random", "evaluation")]
    assert runs[2:] == [("multicrop:target", "pretraining"), ("multicrop:target", "evaluation")]
    assert "2 results" in out.splitlines()[-2] or "2 results" in out.splitlines()[-1]
    errors.clear()
    performed.clear()
    assert call(study.main, *words)[0] == 0
    assert [(run, stage) for run, _, stage in performed] == [
        ("baseline", stage) for stage in ("pretraining", "evaluation", "variance")
    ]


def test_a_failed_stage_stops_only_what_needs_it(imagenet, tmp_path, work, call):
    performed, errors = work
    errors["baseline", "evaluation"] = errors["random", "lincls"] = ProgramFailed("x")
    code, _, error = call(study.main, imagenet, "--out", tmp_path, "--lincls", "--", *FLAGS)
    assert code == 1 and error.count("error: ") == 2
    assert "failed: evaluation of baseline with seed 0, lincls of random with seed 0" in error
    assert [stage for run, _, stage in performed] == [
        *("pretraining", "evaluation", "lincls", "variance"),
        *("evaluation", "lincls"),
    ]


def test_a_signal_ends_a_run_without_a_report(imagenet, tmp_path, work, call, monkeypatch):
    monkeypatch.setattr(study, "perform", lambda *_: signal.raise_signal(signal.SIGTERM))
    code, _, error = call(study.main, imagenet, "--out", tmp_path, "--runs", "multicrop", "--", *FLAGS)
    assert (code, error) == (143, "stopped by SIGTERM\n") and not (tmp_path / "results.jsonl").exists()


def test_a_stopped_study_says_how_it_goes_on(imagenet, tmp_path, call, monkeypatch):
    monkeypatch.setattr(study, "run_at_once", lambda *_: signal.raise_signal(signal.SIGINT))
    code, _, error = call(study.main, imagenet, "--out", tmp_path, *TWO, "--", *FLAGS)
    assert code == 143 and error == "stopped by SIGINT\nthe study is not complete; the same command continues it\n"


def test_the_checks_see_the_gpus_of_a_run(imagenet, tmp_path, call, monkeypatch):
    def seen(*_):
        raise ValueError(f"GPUs {os.environ['CUDA_VISIBLE_DEVICES']}")

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6,7,8")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(study, "open_study", seen)
    assert "GPUs 5,6\n" in call(study.main, imagenet, "--out", tmp_path, "--jobs", 2)[2]


def test_commands_for_an_array_of_jobs(tmp_path, monkeypatch, work, started, call, imagenet):
    monkeypatch.chdir(tmp_path)
    more = ["--labelled", imagenet, "--folds", 5, "--lincls=--lars --epochs 2"]
    words = [imagenet, "--out", "my study", *more, "--preset", "paper", "--seeds", 3, 4, "--print-commands"]
    code, out, error = call(study.main, *words, "--", *FLAGS)
    assert (code, error) == (0, "") and not started and not os.listdir(tmp_path)
    lines = [shlex.split(line) for line in out.splitlines()]
    own = [imagenet, "--out", tmp_path / "my study", "--labelled", imagenet, "--folds", 5]
    start = ["python", "-m", "moco.tools.study", *map(str, own), "--lincls=--lars --epochs 2", "--runs"]
    assert lines == [[*start, name, "--seeds", str(seed), "--", *FLAGS] for seed in (3, 4) for name in paper_runs()]
    assert "--variance-every 2" in call(study.main, *words, "--", "--epochs", 2)[1]  # each run measures it at its end
    args = study.build_parser().parse_args(lines[0][3 : lines[0].index("--")])  # it is a command of this program
    assert (args.runs, args.seeds, args.folds, args.lincls) == (["baseline"], [3], 5, ["--lars", "--epochs", "2"])


@pytest.mark.parametrize(
    "words, message",
    [
        (["--runs", "moco"], "argument --runs: the run 'moco' is neither baseline nor designs that are joined by +"),
        (["--runs", "baseline", "--preset", "paper"], "not allowed with argument"),
        (["--folds", "1"], "argument --folds: '1' is not an integer >= 2"),
        (["--lincls='--lars"], """argument --lincls: "'--lars" has a quotation mark without a second one; add it"""),
        (["--lincls", "--lars"], "--lars is a flag of main_lincls.py (give it like --lincls='--lars')\n"),
        (["-a", "resnet18"], "-a is a flag of main_moco.py (give it after --) and a flag of main_lincls.py (give it"),
        (["--moco-k", "8"], "--moco-k is a flag of main_moco.py (give it after --)\n"),
        (["--sede", "1"], "unknown flag --sede; did you mean --seeds?"),
        (["--labelled", "nowhere", "--", *FLAGS], "nowhere"),
        (["--", "--seed", "1"], "--seed of main_moco.py is set by the study for each run; give --seeds"),
        (["--print-commands", "--", "-b"], "the flags of main_moco.py: error: argument -b/--batch-size: expected"),
        (
            ["--print-commands", "--lincls=--resume x", "--", *FLAGS],
            "--resume of main_lincls.py is set by the study for each run; leave",
        ),
    ],
)
def test_what_it_refuses(words, message, imagenet, tmp_path, work, started, call):
    code, out, error = call(study.main, imagenet, "--out", tmp_path / "out", *words)
    assert code == 2 and not out and error.count("\n") == 1 and message in error, error
    assert not started and not work[0] and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_real_study(tmp_path, call):
    fake_imagenet.make(tmp_path / "images", train=2, val=1, size=40)
    flags = [*FLAGS, "-a", "shufflenet_v2_x0_5", "-b", "12", "--bn-splits", "2"]
    words = [tmp_path / "images", "--out", tmp_path, *TWO, "--jobs", 2, "--", *flags]
    code, _, error = call(study.main, *words)
    assert code == 0, error
    results = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["run"] for line in results] == ["random", "baseline", "multicrop:target"]
    for line in results:
        assert 0 <= line["knn_acc1"] <= line["knn_acc5"] <= 100 and 0 <= line["regression_acc1"] <= 100
    _, base, other = results
    recipes = {name: one["variance"] for name, one in base["variances"].items()}
    assert len(recipes) == 8 and all(0 < value < 100 for value in recipes.values())
    assert recipes["asym_bn"] != recipes["baseline"]  # there are two batch-norm groups
    assert base["variance_source"] == base["variance_target"] == recipes["baseline"]
    assert other["variance_source"] == recipes["multicrop_full"]
    assert other["variance_target"] == pytest.approx((recipes["multicrop_full"] + recipes["multicrop_small"]) / 2)
    with open(tmp_path / "multicrop-target" / "seed0" / "log.jsonl") as file:
        assert json.loads(file.readline())["options"]["design"] == ["multicrop:target"]
    picture = importlib.util.find_spec("matplotlib") is not None
    assert (tmp_path / "study.png").exists() == picture
    assert call(study.main, *words)[1].startswith("study: 2 runs, of which 2 are finished already\n")
