"""What is read from log.jsonl: which runs it holds, where their steps lie, and what a resume replaces."""

import json

import numpy as np
import pytest

from moco.tools.internal import run_log
from moco.tools.internal.run_log import choose, read_log
from tests.tools.internal.written_log import CLASSIFICATION, PRETRAINING, begin, small_run, steps


def test_places_within_an_epoch(tmp_path):
    steps(begin(tmp_path / "a", "a1", **PRETRAINING), 1, (0, 2), loss=1.0)
    log = begin(tmp_path / "b", "b1", **CLASSIFICATION)
    steps(log, 1, (0, 2), loss=1.0)
    log.write("epoch", epoch=1, val_acc1=30.0)
    (pretraining,), (classification,) = read_log(str(tmp_path / "a")), read_log(str(tmp_path / "b" / "log.jsonl"))
    assert pretraining.curve("step", "loss")[0].tolist() == [1, 1.5]  # the incomplete fifth batch is left out
    assert classification.curve("step", "loss")[0].tolist() == [1, 1.4]
    assert np.array(classification.curve("epoch", "val_acc1")).tolist() == [[2], [30]]
    assert pretraining.pretraining and not classification.pretraining
    assert len(pretraining.curve("epoch", "knn_acc1")[0]) == 0


def test_a_resume_replaces_what_comes_after_it(tmp_path):
    log = begin(tmp_path, "a1", **PRETRAINING)
    steps(log, 0, range(4), loss=1.0)
    log.write("epoch", epoch=0, knn_acc1=10.0)
    steps(log, 1, range(4), loss=2.0)
    log.write("epoch", epoch=1, knn_acc1=20.0)
    steps(log, 2, range(2), loss=3.0)
    log = begin(tmp_path, "a1", place=(1, 2), **PRETRAINING)
    (run,) = read_log(str(tmp_path))
    assert run.curve("step", "loss")[1].tolist() == [1] * 4 + [2] * 4 + [3] * 2  # nothing is replaced yet
    steps(log, 1, (2, 3), loss=4.0)
    log.write("epoch", epoch=1, knn_acc1=30.0)
    (run,) = read_log(str(tmp_path))
    x, loss = run.curve("step", "loss")
    assert x.tolist() == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75]
    assert loss.tolist() == [1, 1, 1, 1, 2, 2, 4, 4]
    assert np.array(run.curve("epoch", "knn_acc1")).tolist() == [[1, 2], [10, 30]]
    assert run.resumes == [1.5]


def test_resumes_that_were_undone_are_forgotten(tmp_path):
    for place in ((1, 0), (3, 0), (3, 0), (2, 2)):
        log = begin(tmp_path, "a1", place=place, **PRETRAINING)
    steps(log, 2, (2,), loss=1.0)
    assert read_log(str(tmp_path))[0].resumes == [1, 2.5]


def test_images_per_second_are_those_of_all_nodes_at_that_time(tmp_path):
    steps(begin(tmp_path, "a1", **PRETRAINING), 0, (0,), seconds=0.5)
    log = begin(tmp_path, "a1", place=(0, 1), **{**PRETRAINING, "total_batch": 16})
    steps(log, 0, (1,), seconds=0.5)
    steps(log, 1, (0,), seconds=0.0)
    steps(log, 1, (1,), seconds="nan")
    x, rate = read_log(str(tmp_path))[0].curve("step", "images_per_second")
    assert x.tolist() == [0, 0.5, 1.5] and rate[:2].tolist() == [16, 32] and np.isnan(rate[2])


def test_runs_are_told_apart_and_the_newest_pretraining_is_chosen(tmp_path):
    small_run(tmp_path, "old")
    small_run(tmp_path, "new", epochs=1)
    steps(begin(tmp_path, "probe", **CLASSIFICATION), 0, range(5), loss=2.0)
    begin(tmp_path, "without a step", **PRETRAINING)
    runs = read_log(str(tmp_path))
    assert [(run.id, len(run.curve("step", "loss")[0])) for run in runs] == [("old", 8), ("new", 4), ("probe", 5)]
    assert [run.id for run in choose(runs)] == ["new"]
    assert [run.id for run in choose(runs, ["probe", "old", "unknown"])] == ["old", "probe"]
    assert [run.id for run in choose(runs, ["unknown"])] == ["new"]
    assert [run.id for run in choose(runs[2:])] == ["probe"]
    steps(begin(tmp_path, "old", place=(2, 0), **PRETRAINING), 2, (0,), loss=1.0)
    assert [run.id for run in choose(read_log(str(tmp_path)))] == ["old"]  # it was resumed after the other's start


def test_figures_that_are_not_finite_are_gaps(tmp_path):
    log = begin(tmp_path, "a1", **PRETRAINING)
    for step, loss in enumerate((1.0, float("nan"), float("-inf"), None, 2)):
        log.write("step", epoch=0, step=step, loss=loss)
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"kind": "step", "run": "a1", "epoch": 1, "step": 1, "loss": 1' + 400 * "0" + "}\n")
    loss = read_log(str(tmp_path))[0].curve("step", "loss")[1]
    assert loss[[0, 4]].tolist() == [1, 2] and np.isnan(loss[[1, 2, 3, 5]]).all()


@pytest.mark.parametrize(
    "line",
    [
        '{"kind": "step", "run": "a1", "epoch": 0, "st',
        "",
        "[1, 2]",
        "7",
        "\0\xff",
        "[" * 99999,
        '{"time": 3}',
        '{"kind": "epoch", "run": "a1", "epoch": "one"}',
        '{"kind": "step", "run": "a1", "epoch": 0, "step": -1}',
        '{"kind": "step", "run": "a1", "epoch": 0, "step": 1.5}',
        '{"kind": "step", "run": ["a1"], "epoch": 0, "step": 0}',
        '{"kind": "step", "run": "not started", "epoch": 0, "step": 0, "loss": 1}',
        '{"kind": "stop", "run": "a1", "signal": "SIGTERM"}',
        '{"kind": "resume", "run": "a1", "place": [0, 2]}',
        '{"kind": "resume", "run": "a1", "place": [0, 2], "options": {"images": 35, "total_batch": 0}}',
        '{"kind": "resume", "run": "a1", "place": [0, 2], "options": {"images": 7, "total_batch": 8}}',
        '{"kind": "resume", "run": "a1", "place": [0, 2], "options": {"images": 35, "total_batch": 8, "moco_k": "x"}}',
        '{"kind": "resume", "run": "a1", "place": [0], "options": {"images": 35, "total_batch": 8}}',
    ],
)
def test_torn_and_foreign_lines_are_skipped(line, tmp_path):
    path = small_run(tmp_path, "a1") / "log.jsonl"
    with open(path, "r+") as file:
        first, *rest = file.read().splitlines()
        file.seek(0)
        file.write("\n".join([line, first, line, *rest, line]))
    (run,) = read_log(str(tmp_path))
    assert run.options == PRETRAINING and not run.resumes
    assert len(run.curve("step", "loss")[0]) == 8 and len(run.curve("epoch", "loss")[0]) == 2


def test_a_log_that_can_not_be_read_is_named(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(5, "Input/output error")

    small_run(tmp_path, "a1")
    monkeypatch.setattr(run_log, "open", fail, raising=False)
    with pytest.raises(ValueError, match=r"^can't read '.*/log\.jsonl': Input/output error$"):
        run_log.read_log(str(tmp_path))


def test_what_is_no_log_is_named(tmp_path):
    empty, other = tmp_path / "log.jsonl", tmp_path / "other.txt"
    for path in (tmp_path, tmp_path / "nowhere", empty):
        with pytest.raises(ValueError, match="is no file; give the --output-dir of a run"):
            read_log(str(path))
    empty.touch()
    other.write_bytes(bytes(range(256)))
    for path, name in ((tmp_path, empty), (other, other)):
        with pytest.raises(ValueError) as error:
            read_log(str(path))
        assert str(error.value).startswith(f"{str(name)!r} has no figures of a run")
    begin(tmp_path, "a1", **PRETRAINING)
    assert json.loads(empty.read_text())["kind"] == "start"
    with pytest.raises(ValueError, match="has no figures of a run; give"):
        read_log(str(tmp_path))
