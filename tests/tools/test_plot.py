"""The command that draws the curves: of real runs, and what it refuses."""

import sys
from types import SimpleNamespace

import pytest
from PIL import Image

import main_lincls
import main_moco
from moco.tools import plot
from moco.tools.internal.run_log import read_log
from tests.tiny_net import use_tiny_net
from tests.tools.internal.written_log import PRETRAINING, begin, small_run


def test_runs_of_both_scripts_in_one_folder(imagenet, tmp_path, monkeypatch, call):
    figure = pytest.importorskip("matplotlib.figure")
    from moco.tools.internal import curve_figure

    folder, drawn = tmp_path / "both", []
    words = [imagenet, "-a", "resnet18", "--crop-size", "32", "-b", "24", "-j", "0", "-p", "2", "--output-dir", folder]
    for script, more in ((main_moco, ["--moco-k", "64"]), (main_lincls, ["--pretrained", "none"])):
        use_tiny_net(monkeypatch)
        assert call(script.main, *words, *more, "--epochs", "1", "--seed", "1")[0] == 0
    draw = curve_figure.draw
    monkeypatch.setattr(curve_figure, "draw", lambda *args: drawn.append(draw(*args)) or figure.Figure((1, 1)))
    pretraining, probe = (run.id for run in read_log(str(folder)))
    for ids, other in (
        ([], f"{probe} (linear classification)"),
        (["--id", probe], f"{pretraining} (pretraining)"),
        (["--id", pretraining, "--id", probe], None),
    ):
        out = tmp_path / "x.png"
        note = f"note: '{folder}/log.jsonl' also has {other}; --id draws it\n" if other else ""
        assert call(plot.main, folder, *ids, "--out", out) == (0, f"{note}wrote {out}\n", "")
    counts = [[len(axis.lines) for axis in figure.axes] for figure in drawn]
    assert counts == [
        [2, 1, 0, 1, 1, 2, 1, 1, 0],  # the loss has the blind guess, too
        [1, 1, 1, 0, 1, 0, 1, 1, 0],
        [3, 2, 1, 1, 2, 2, 2, 2, 0],
    ]


def test_the_file_and_its_formats(tmp_path, monkeypatch, call):
    figure = pytest.importorskip("matplotlib.figure")
    from moco.tools.internal import curve_figure

    small_run(tmp_path, "a1", tag="\u540d $x_$")
    for name, start in (("x.png", b"\x89PNG"), ("x.pdf", b"%PDF"), ("x.SVG", b"<?xml")):
        out = tmp_path / name
        assert call(plot.main, tmp_path / "log.jsonl", "--out", out) == (0, f"wrote {out}\n", "")
        assert out.read_bytes().startswith(start)
        monkeypatch.setattr(curve_figure, "draw", lambda *args: figure.Figure((1, 1)))  # once is enough
    assert Image.open(tmp_path / "x.png").size == (1200, 900)


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "RUN is missing; give the output folder"),
        (["nowhere"], "'nowhere' is no file; give the --output-dir of a run, or its log.jsonl"),
        ([".", "empty"], "'empty/log.jsonl' is no file"),
        (["new"], "'new/log.jsonl' has no figures of a run"),
        ([".", "--id", "b7"], "--id 'b7' is in no log; the logs have a1"),
        ([".", "--out", "x.jpg"], "give a name that ends in .png or .pdf or .svg"),
        ([".", "--out", "no/x.png"], "'no' is no folder; make it first"),
    ],
)
def test_what_it_refuses(words, message, tmp_path, monkeypatch, call):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    small_run(tmp_path, "a1")
    (tmp_path / "empty").mkdir()
    begin(tmp_path / "new", "a2", **PRETRAINING)
    code, out, error = call(plot.main, *words)
    assert code == 2 and not out and error.count("\n") == 1 and message in error
    assert not (tmp_path / "curves.png").exists()


def test_a_full_disk(tmp_path, monkeypatch, call):
    pytest.importorskip("matplotlib")
    from moco.tools.internal import curve_figure

    def fail(*_):
        raise OSError(28, "No space left on device")

    small_run(tmp_path, "a1")
    monkeypatch.setattr(curve_figure, "draw", fail)
    code, out, error = call(plot.main, tmp_path, "--out", "x.svg")
    line = "python -m moco.tools.plot: error: can't write 'x.svg': No space left on device\n"
    assert (code, out, error) == (2, "", line)


def test_without_matplotlib(tmp_path, monkeypatch, call):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.style", raising=False)
    code, out, error = call(plot.main, small_run(tmp_path, "a1"))
    line = "python -m moco.tools.plot: error: the plot needs the package matplotlib; pip install matplotlib\n"
    assert (code, out, error) == (2, "", line)


def test_names_tell_runs_apart():
    paths = ["r/a/log.jsonl", "r/b/log.jsonl", "r/b/log.jsonl", "r/b/x/log.jsonl", "r/c/x/log.jsonl"]
    runs = [SimpleNamespace(path=path, id=f"id{i}", options={"tag": ""}) for i, path in enumerate(paths)]
    assert plot.names_of(runs) == ["a", "b, run id1", "b, run id2", "b/x", "c/x"]
    runs[0].options["tag"] = "long"
    assert plot.names_of(runs[:1]) == ["long"]
