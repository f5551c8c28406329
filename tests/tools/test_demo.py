"""The demo, with fewer images and epochs."""

import importlib.util
import math

import pytest

from moco.tools import demo


@pytest.mark.slow
def test_the_demo_runs_to_its_summary(tmp_path, capfd):
    figures = demo.demo(str(tmp_path), epochs=2, images=8, val=2)
    out = capfd.readouterr().out
    commands = [line.split()[2] for line in out.splitlines() if line.startswith("$ python ")]
    plots = importlib.util.find_spec("matplotlib") is not None
    assert " ".join(commands) == f"-m main_moco.py -m main_lincls.py main_lincls.py -m {'-m ' * plots}-m -c"
    assert "missing_keys=['fc.weight', 'fc.bias'], unexpected_keys=[]" in out  # the export is loaded
    summary = out.split("Summary")[1]
    assert all(f"{value:.1f} %" in summary for value in (*figures["knn"], *figures["linear"], 100 / 12))
    assert f"{math.log(demo.K + 1):.3f}" in summary and f"{figures['last_loss']:.3f}" in summary
    files = {"imagenet", "checkpoint__0001.pth.tar", "checkpoint__last.pth.tar", "log.jsonl", "random"}
    files |= {"checkpoint.pth.tar", "model_best.pth.tar", "neighbours.png", "backbone.pth"}
    files |= {"curves.png"} if plots else set()
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")} == files


@pytest.mark.parametrize("place", ["file", "file/x", ""])
def test_a_file_is_no_folder_to_work_in(place, tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr(demo, "demo", lambda folder: pytest.fail("it worked"))
    code, out, error = call(demo.main, "--dir", place)
    assert code == 2 and not out and error.count("\n") == 1 and f"--dir: {place!r}" in error


def test_figures_are_read_from_the_output_of_the_programs():
    log = "x\nEpoch: [0][0/9]\tTime 1 (1)\tLoss 5.0e+00 (5.1e+00)\tAcc\nepoch 0 ended: mean loss 4.5000, Acc@1 1.00\n"
    assert demo.epoch_losses(log + "epoch 12 ended: mean loss 2.0000, Acc@1 3.00\n") == {0: 4.5, 12: 2.0}
    assert demo.best_accuracy(" * Acc@1 3.500 Acc@5 9.000\n * Acc@1 12.250 Acc@5 9.0\n * Acc@1 4.0 A\n") == 12.25
