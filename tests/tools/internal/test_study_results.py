"""What a study writes: results.jsonl from the files of the stages, and which other files can be written."""

import json
import os
import re
import sys
from types import SimpleNamespace

import pytest

from moco.tools.internal.study_results import write_results
from moco.tools.internal.study_table import table
from tests import readme

SETTINGS = {"pretraining": {"lr": 0.03}, "evaluation": {"train": 9}}
RECIPES = (
    "baseline",
    "multicrop_small",
    "multicrop_full",
    "scalemix",
    "stronger",
    "weaker",
    "mean_encoding",
    "asym_bn",
)
VARIANCES = {name: {"variance": 4.0 + place, "standard_error": 0.1} for place, name in enumerate(RECIPES)}


def stage(out, folder, name, **figures):
    """Writes the result of a stage."""
    (out / folder).mkdir(parents=True, exist_ok=True)
    (out / folder / f"{name}.json").write_text(json.dumps({"figures": figures, "seconds": 1.5, "git": "c0ffee"}))


@pytest.fixture
def out(tmp_path):
    """The folder of a study: some runs, one that is not evaluated yet, and folders of others."""
    (tmp_path / "study.json").write_text(json.dumps(SETTINGS))
    stage(tmp_path, "multicrop-target/seed0", "evaluation", knn_acc1=40.0, regression_acc1=50.0)
    stage(tmp_path, "multicrop+asym_bn/seed0", "evaluation", knn_acc1=41.0, regression_acc1=51.0)
    for seed in (10, 2, 0):
        stage(tmp_path, f"baseline/seed{seed}", "pretraining", loss=3.0)
        stage(tmp_path, f"baseline/seed{seed}", "evaluation", knn_acc1=42.0, regression_acc1=52.0 + seed)
    stage(tmp_path, "baseline/seed0", "lincls", linear_acc1=60.0)
    stage(tmp_path, "baseline/seed0", "variance", variances=VARIANCES)
    stage(tmp_path, "random/seed0", "evaluation", knn_acc1=20.0, regression_acc1=30.0)
    stage(tmp_path, "scalemix/seed0", "pretraining", loss=3.0)
    stage(tmp_path, "my-notes/seed0", "evaluation")
    stage(tmp_path, "scalemix/seeds", "evaluation")
    return tmp_path


def results_of(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_results(out):
    assert write_results(SimpleNamespace(out=str(out)))[0].endswith(f" in '{out}': 6 results")
    results = results_of(out)
    runs = [("random", 0), ("baseline", 0), ("baseline", 2), ("baseline", 10), ("multicrop:target", 0)]
    assert [(line["run"], line["seed"]) for line in results] == [*runs, ("multicrop+asym_bn", 0)]
    about = {"seconds": 1.5, "git": "c0ffee"}
    assert results[1] == {
        **{"run": "baseline", "designs": {}, "seed": 0, "loss": 3.0, "linear_acc1": 60.0},
        **{"knn_acc1": 42.0, "regression_acc1": 52.0, "variances": VARIANCES},
        **{"variance_source": 4.0, "variance_target": 4.0, "settings": SETTINGS},
        "stages": dict.fromkeys(("pretraining", "evaluation", "lincls", "variance"), about),
    }
    assert results[4]["designs"] == {"multicrop": "target"}
    assert (results[4]["variance_source"], results[4]["variance_target"]) == (6.0, (6.0 + 5.0) / 2)
    for line in (results[0], results[2], results[5]):  # the random encoder; not measured; two designs
        assert "variance_source" not in line
    assert (out / "table.md").read_text() == table(results)
    first = (out / "results.jsonl").read_bytes()
    write_results(SimpleNamespace(out=str(out)))
    assert (out / "results.jsonl").read_bytes() == first


def test_the_document_names_every_key(out):
    """Of a run that has all stages, with MultiCrop on both sides and images that are broken."""
    own = {f"own_variance_{side}": 1.0 for side in ("source", "target", "source_small", "target_small")}
    stage(out, "baseline/seed0", "pretraining", loss=3.0, **own)
    found = {"knn_acc1": 40.0, "knn_acc5": 60.0, "regression_acc1": 50.0, "left_out": 2}
    stage(out, "baseline/seed0", "evaluation", **found)
    write_results(SimpleNamespace(out=str(out)))
    with open(os.path.join(readme.ROOT, "moco", "evaluation", "README.md")) as file:
        table = file.read().split("| key in `results.jsonl` |")[1].split("\n\n")[0]
    keys = [key for row in table.splitlines()[2:] for key in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(keys) == sorted(results_of(out)[1])


def test_the_picture_and_why_there_is_none(out, monkeypatch):
    study, files = SimpleNamespace(out=str(out)), f"in '{out}': 6 results"
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "matplotlib", None)
        without.setitem(sys.modules, "matplotlib.style", None)
        without.delitem(sys.modules, "moco.tools.internal.study_figure", raising=False)
        note = "note: study.png was not drawn: it needs the package matplotlib; pip install matplotlib"
        assert write_results(study) == [f"wrote results.jsonl, table.md {files}", note]
    pytest.importorskip("matplotlib")
    assert write_results(study) == [f"wrote results.jsonl, table.md, study.png {files}"]
    assert (out / "study.png").read_bytes().startswith(b"\x89PNG")
    (out / "baseline" / "seed0" / "variance.json").unlink()
    note = "note: study.png was not drawn: it needs a run with a design, and the finished baseline of the same seed"
    assert write_results(study) == [f"wrote results.jsonl, table.md {files}", note]
