"""The demo, with fewer images and epochs."""

import math

import pytest

from moco.tools import demo


@pytest.mark.slow
def test_the_demo_runs_to_its_summary(tmp_path, capfd):
    first, last, top1 = demo.demo(str(tmp_path), epochs=2, probe_epochs=1, images=8)
    out = capfd.readouterr().out
    commands = [line for line in out.splitlines() if line.startswith("$ python ")]
    assert [command.split()[2] for command in commands] == ["-m", "main_moco.py", "main_lincls.py"]
    assert "--lars" in commands[2] and sum(word.startswith("--enable") for word in commands[1].split()) == 3
    summary = out.split("Summary")[1]
    assert f"{math.log(demo.K + 1):.3f}" in summary and f"{first:.3f}" in summary and f"{last:.3f}" in summary
    assert f"{top1:.1f} %" in summary and "chance: 8.3 %" in summary and str(tmp_path) in summary
    files = {"imagenet", "checkpoint__0001.pth.tar", "checkpoint.pth.tar", "model_best.pth.tar", "log.jsonl"}
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")} == files


@pytest.mark.parametrize("place", ["file", "file/x", ""])
def test_a_file_is_no_folder_to_work_in(place, tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr(demo, "demo", lambda folder: pytest.fail("it worked"))
    code, out, error = call(demo.main, "--dir", place)
    assert code == 2 and not out and error.count("\n") == 1 and f"--dir: {place!r}" in error


def test_losses_are_read_from_the_log():
    log = "x\nEpoch: [0][0/9]\tTime 1 (1)\tLoss 5.0e+00 (5.1e+00)\tAcc\nepoch 0 ended: mean loss 4.5000, Acc@1 1.00\n"
    assert demo.epoch_losses(log + "epoch 12 ended: mean loss 2.0000, Acc@1 3.00\n") == {0: 4.5, 12: 2.0}
