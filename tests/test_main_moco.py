"""main_moco.py as a program: every recipe of the README, exact resumes, a loss that falls."""

import json
import math
import os
import re
import socket
import subprocess
import sys

import pytest
import torch

import main_lincls
import main_moco
from moco.data.file_list import ImageFolder
from moco.data.sampler import EpochBatchSampler
from moco.engine.design_flags import PAPER_SIDES
from moco.engine.json_log import git_commit
from tests import readme
from tests.ranks import run_program, run_script
from tests.tiny_net import ARCH, use_tiny_net

ROOT = os.path.dirname(readme.README)
RECIPES = readme.commands("main_moco.py")
DESIGNS = {
    "--enable-multicrop": "MultiCrop",
    "--enable-scalemix": "ScaleMix",
    "--enable-asym": "AsymAug",
    "--enable-asym-bn": "AsymBN",
    "--enable-mean-encoding": "MeanEnc",
}


def designs_of(words):
    aliases = {"--enable-asymm-aug": "--enable-asym", "--enable-asym-aug": "--enable-asym"}
    return [name for flag, name in DESIGNS.items() if flag in [aliases.get(word, word) for word in words]]


def test_the_readme_has_every_recipe():
    seen = [tuple(designs_of(words)) for words in RECIPES]
    assert {(), *((name,) for name in DESIGNS.values()), tuple(DESIGNS.values())} <= set(seen)
    for words in RECIPES:
        main_moco.build_parser().parse_args(words)
    for words in readme.commands("main_lincls.py"):
        main_lincls.build_parser().parse_args(words)


@pytest.mark.parametrize("words", RECIPES[:7], ids=lambda words: "+".join(designs_of(words)) or "baseline")
def test_a_recipe_runs_and_its_checkpoint_is_probed(words, imagenet, tmp_path):
    arch = "shufflenet_v2_x0_5"
    tiny = {"moco-k": 60, "moco-dim": 8, "mini-crop-size": 16, "epochs": 1, "arch": arch}
    words, designs = readme.small(words, imagenet, 2, tmp_path, **tiny), designs_of(words)
    real = designs == ["MultiCrop"]  # once: as programs, and with the real network

    def run(script, words):
        if not real:
            return run_script(script, 2, words, tiny=True)
        code, log, error = run_program(f"{script}.py", *words, quick=script == "main_lincls")
        assert code == 0, error
        assert "Warning" not in error
        return log

    log = run("main_moco", words)
    assert f"designs: {', '.join(designs) or 'none'}" in log
    (plan,) = [line for line in log.splitlines() if line.startswith("source: ")]
    assert " | target: " in plan and ("6 x [16px" in plan) == ("MultiCrop" in designs)
    assert re.search(r"^seed: \d+$", log, flags=re.MULTILINE)
    factor = "2 " * ("MultiCrop" in designs)
    assert f"loss of a blind guess: {factor}ln(K + 1) = {(2 if factor else 1) * math.log(61):.4f}\n" in log
    assert "2 x cpu" in log
    pattern = (
        r"^Epoch: \[0\]\[(\d)/4\]\tTime +\S+ \( *\S+\)\tData +\S+ \( *\S+\)\tLoss (\S+) \(\S+\)\tAcc@1 .*\tAcc@5 .*"
    )
    steps = re.findall(pattern + r"\tLeft \d+:\d+:\d+\tWait +\d+%$", log, flags=re.MULTILINE)
    assert [step for step, _ in steps] == ["0", "1", "2", "3"]
    assert all(math.isfinite(float(loss)) for _, loss in steps)

    tag = main_moco.build_parser().parse_args(words).tag
    checkpoint = tmp_path / f"checkpoint_{tag}_0000.pth.tar"
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["epoch"] == 1 and saved["arch"] == arch and saved["processes"] == 2
    assert saved["state_dict"]["module.queue"].shape == (8, 60)

    (probe,) = readme.commands("main_lincls.py")
    probe = [str(checkpoint) if word.endswith("checkpoint__0099.pth.tar") else word for word in probe]
    probe = readme.small(probe, imagenet, 2, tmp_path, epochs=1, arch=arch)
    log = run("main_lincls", probe)
    assert f"pretrained: {336 if real else 6} tensors of '{checkpoint}'" in log  # all of the backbone's
    assert re.search(r"^ \* Acc@1 \d+\.\d+ Acc@5 \d+\.\d+", log, flags=re.MULTILINE)
    assert set(torch.load(tmp_path / "checkpoint.pth.tar", weights_only=True)) >= {"best_acc1", "state_dict", "epoch"}


@pytest.mark.slow
def test_linear_classification_starts_processes_that_import_everything(imagenet, tmp_path):
    words = ["-a", "shufflenet_v2_x0_5", "--crop-size", "32", "-b", "48", "--epochs", "1", "-j", "0", "--nproc", "2"]
    words += ["--pretrained", "none", "--output-dir", tmp_path, imagenet]
    code, log, error = run_program("main_lincls.py", *words)
    assert code == 0 and "2 x cpu" in log and log.count("Epoch: [0][0/2]") == 1, error


@pytest.mark.slow
def test_torchrun_starts_it(imagenet, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    small = ["-a", "resnet18", "--crop-size", "32", "-b", "48", "--moco-k", "64", "--epochs", "1", "-j", "0"]
    command = [*torchrun, "main_moco.py", *small, "--output-dir", str(tmp_path), str(imagenet)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT, env=env)
    assert result.returncode == 0, result.stderr
    assert "2 x cpu" in result.stdout and result.stdout.count("Epoch: [0][0/2]") == 1
    seed = int(re.search(r"^seed: (\d+)$", result.stdout, flags=re.MULTILINE)[1])
    saved = torch.load(tmp_path / "checkpoint__0000.pth.tar", weights_only=True)
    assert saved["options"]["seed"] == seed


def all_designs(imagenet, output_dir, world, *more, tiny=False, designs=PAPER_SIDES):
    """Runs main_moco.py with all `designs` on `world` processes; returns what it printed."""
    words = ["-a", "resnet18", "--crop-size", "32", "--mini-crop-size", "16", "-b", "48", "--moco-k", "100"]
    words += ["--epochs", "3", "--moco-m", "0.9", "--output-dir", str(output_dir), str(imagenet), *more]
    words += [word for design in designs for word in ("--design", design)]
    return run_script("main_moco", world, words, tiny)


def test_a_loss_that_is_not_finite_ends_the_run_and_overwrites_nothing(imagenet, tmp_path, capsys, monkeypatch):
    use_tiny_net(monkeypatch)
    step, seen = main_moco.train_step, []

    def breaking(*args):
        loss, *accuracies = step(*args)
        seen.append(args[5])
        return (loss * math.nan if args[5] == 5 else loss), *accuracies

    monkeypatch.setattr(main_moco, "train_step", breaking)
    words = [str(imagenet), "-a", "resnet18", "--crop-size", "32", "-b", "24", "--moco-k", "64", "-j", "0", "-p", "10"]
    words += ["--epochs", "3", "--save-every", "1", "--seed", "2", "--output-dir", str(tmp_path)]
    with pytest.raises(SystemExit) as stop:
        main_moco.main(words)
    assert stop.value.code == 1
    assert seen == [0, 1, 2, 3, 4, 5]  # found before the checkpoint of the step that broke
    message, *names = capsys.readouterr().err.splitlines()
    last = str(tmp_path / "checkpoint__last.pth.tar")
    assert (
        f"rank 0 is not finite in step 1 of epoch 1, at learning rate 0.0225; last good checkpoint: {last}" in message
    )
    order = EpochBatchSampler(96, 24, seed=2)
    order.epoch = 1
    folder = ImageFolder(imagenet / "train")
    assert [name.strip() for name in names] == [folder.path(i) for _, i in list(order)[1]]
    saved = torch.load(last, weights_only=True)
    assert (saved["epoch"], saved["step"]) == (1, 1)


def test_the_log_says_what_ran_and_goes_on_after_a_resume(imagenet, tmp_path, monkeypatch):
    use_tiny_net(monkeypatch)
    words = [str(imagenet), "-a", "resnet18", "--crop-size", "32", "-b", "24", "--moco-k", "64", "-j", "0", "-p", "2"]
    words += ["--epochs", "2", "--seed", "2", "--output-dir", str(tmp_path)]
    main_moco.main(words)
    main_moco.main([*words, "--resume", str(tmp_path / "checkpoint__0000.pth.tar")])
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    epoch = ["step", "step", "epoch"]
    assert [line["kind"] for line in lines] == ["start", *epoch, *epoch, "resume", *epoch]
    start, resume = lines[0], lines[7]
    assert start["seed"] == resume["seed"] == 2
    assert start["processes"] == [{"host": socket.gethostname(), "device": "cpu"}]
    assert start["argv"] == sys.argv and start["options"]["batch_size"] == 24 and resume["place"] == [1, 0]
    assert start["versions"]["torch"] == torch.__version__ and start["versions"]["PIL"]
    assert start["git"] == git_commit()  # None where this is no clone
    assert [(line["epoch"], line["step"]) for line in lines if line["kind"] == "step"] == [
        *((0, 0), (0, 2), (1, 0), (1, 2), (1, 0), (1, 2))
    ]
    before, after = lines[4:7], lines[8:11]
    for a, b in zip(before, after, strict=True):
        assert a["loss"] == b["loss"] and a["acc5"] == b["acc5"]  # the same second epoch
    assert math.isclose(after[2]["lr"], 0.015) and lines[0]["time"] < lines[-1]["time"]


def test_the_fast_path_trains_and_counts_as_another_run(imagenet, tmp_path, capsys, monkeypatch):
    use_tiny_net(monkeypatch)
    words = [str(imagenet), "-a", "resnet18", "--crop-size", "32", "--mini-crop-size", "16", "-b", "48", "--seed", "1"]
    words += [word for word in RECIPES[6] if word.startswith("--enable")] + ["--moco-k", "64", "--epochs", "2"]
    logs = []
    for run in ("a", "b"):
        main_moco.main(
            [*words, "--fast", "-p", "1", "-j", "2" if run == "a" else "0", "--output-dir", str(tmp_path / run)]
        )
        logs.append(re.findall(r"Loss (\S+)", capsys.readouterr().out))
    assert len(logs[0]) == 4 and logs[0] == logs[1]  # whatever the number of workers
    start = str(tmp_path / "a" / "checkpoint__0000.pth.tar")
    with pytest.raises(SystemExit):
        main_moco.main([*words, "--resume", start, "--output-dir", str(tmp_path)])
    assert "--augment-on is cpu, but the checkpoint" in capsys.readouterr().err
    main_moco.main([*words, "--resume", start, "--fast", "-j", "0", "--output-dir", str(tmp_path / "b")])
    a, b = (torch.load(tmp_path / run / "checkpoint__0001.pth.tar", weights_only=True) for run in ("a", "b"))
    assert all(torch.equal(x, b["state_dict"][name]) for name, x in a["state_dict"].items())


@pytest.mark.slow
def test_bn_groups_train_as_processes_do(imagenet, tmp_path):
    """4 devices, spread over processes in three ways: an epoch of all designs, from the flags to the checkpoint."""
    states, common = [], ["--seed", "5", "--epochs", "1", "-j", "0"]
    for world in (4, 2, 1):
        more = ["-a", ARCH, "--bn-splits", str(4 // world), "--asym-bn-group", "2", *common]
        log = all_designs(imagenet, tmp_path / str(world), world, *more)
        assert "batch normalisation: 4 groups of 12 images\n" in log
        states.append(torch.load(tmp_path / str(world) / "checkpoint__0000.pth.tar", weights_only=True)["state_dict"])
    for state in states[1:]:
        for name, tensor in states[0].items():
            torch.testing.assert_close(state[name], tensor, rtol=1e-3, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
    all_designs(imagenet, tmp_path / "other", 1, "-a", ARCH, *common)
    other = torch.load(tmp_path / "other" / "checkpoint__0000.pth.tar", weights_only=True)["state_dict"]
    assert (other["module.queue"] - states[0]["module.queue"]).abs().max() > 0.05  # one group is another experiment


@pytest.mark.slow
def test_a_broken_image_stops_the_run_and_is_named(imagenet, tmp_path):
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    source = ImageFolder(imagenet / "train")
    for i in range(8):
        with open(source.path(i), "rb") as file:
            (folder / f"{i}.jpg").write_bytes(file.read() if i != 5 else b"broken")
    words = [tmp_path, "-a", "resnet18", "--crop-size", "32", "-b", "8", "--moco-k", "8", "--nproc", "2"]
    code, _, error = run_program("main_moco.py", *words, "--output-dir", tmp_path)
    assert code == 1
    assert f"can't decode the image '{folder}/5.jpg'" in error
