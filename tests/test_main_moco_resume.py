"""main_moco.py resumed: runs equal the uninterrupted one to the bit, flags are compared, damaged files skipped."""

import math
import re
import shutil

import pytest
import torch

import main_moco
from moco.engine.design_flags import PAPER_SIDES
from tests.gpu_checks import BOTH, OTHER
from tests.test_main_moco import all_designs
from tests.tiny_net import ARCH, use_tiny_net

SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "world, arch, designs",
    [
        *[(1, "tiny", PAPER_SIDES), (1, "tiny", BOTH), (2, "tiny", OTHER), (2, ARCH, PAPER_SIDES)],
        pytest.param(4, ARCH, PAPER_SIDES, marks=SLOW),
        pytest.param(1, "resnet18", PAPER_SIDES, marks=SLOW),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(world, arch, designs, imagenet, tmp_path):
    how = {"tiny": arch == "tiny", "designs": designs}
    more = [] if arch == "tiny" else ["-a", arch]
    all_designs(imagenet, tmp_path / "whole", world, "-j", "0", "--seed", "5", *more, **how)
    start = tmp_path / "whole" / "checkpoint__0000.pth.tar"
    all_designs(imagenet, tmp_path / "resumed", world, "-j", "4", "--resume", str(start), *more, **how)
    assert not (tmp_path / "resumed" / "checkpoint__0000.pth.tar").exists()
    a, b = (torch.load(tmp_path / run / "checkpoint__0002.pth.tar", weights_only=True) for run in ("whole", "resumed"))
    for name, tensor in a["state_dict"].items():
        assert torch.equal(tensor, b["state_dict"][name]), name
    for i, state in a["optimizer"]["state"].items():
        assert torch.equal(state["momentum_buffer"], b["optimizer"]["state"][i]["momentum_buffer"])
    assert a["options"] == b["options"] and a["options"]["seed"] == 5 and a["epoch"] == b["epoch"] == 3
    before = torch.load(start, weights_only=True)["state_dict"]
    assert not torch.equal(before["module.queue"], a["state_dict"]["module.queue"])


def test_a_run_resumed_by_fewer_processes_with_more_bn_groups_goes_on_as_it_would_have(imagenet, tmp_path):
    more = ["-j", "0", "--seed", "5", "--epochs", "2"]
    all_designs(imagenet, tmp_path / "two", 2, *more, tiny=True)
    start = str(tmp_path / "two" / "checkpoint__0000.pth.tar")
    log = all_designs(imagenet, tmp_path / "one", 1, *more, "--resume", start, "--bn-splits", "2", tiny=True)
    assert "batch normalisation: 2 groups" in log and "before the resume" not in log
    a, b = (torch.load(tmp_path / run / "checkpoint__0001.pth.tar", weights_only=True) for run in ("two", "one"))
    for name, tensor in a["state_dict"].items():
        torch.testing.assert_close(
            b["state_dict"][name], tensor, rtol=1e-3, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(
    "world, tiny", [(1, True), (2, True), pytest.param(1, False, marks=SLOW), pytest.param(2, False, marks=SLOW)]
)
def test_a_run_resumed_within_an_epoch_is_the_uninterrupted_one_to_the_bit(world, tiny, imagenet, tmp_path):
    """From the checkpoint after 2 of the second epoch's 4 steps, which --resume auto prefers to the first epoch's."""
    more = ["-a", ARCH, "-j", "0", "--seed", "5", "-b", "24", "--epochs", "2", "--save-every", "2"]
    all_designs(imagenet, tmp_path / "whole", world, *more, tiny=tiny)
    middle = torch.load(tmp_path / "whole" / "checkpoint__last.pth.tar", weights_only=True)
    assert (middle["epoch"], middle["step"]) == (1, 2)
    (tmp_path / "resumed").mkdir()
    shutil.copy(tmp_path / "whole" / "checkpoint__last.pth.tar", tmp_path / "resumed")
    shutil.copy(tmp_path / "whole" / "checkpoint__0000.pth.tar", tmp_path / "resumed")
    all_designs(imagenet, tmp_path / "resumed", world, *more, "--resume", "auto", "-j", "3", tiny=tiny)
    a, b = (torch.load(tmp_path / run / "checkpoint__0001.pth.tar", weights_only=True) for run in ("whole", "resumed"))
    for name, tensor in a["state_dict"].items():
        assert torch.equal(tensor, b["state_dict"][name]), name
        assert name.endswith(("queue_ptr", "tracked")) or not torch.equal(tensor, middle["state_dict"][name])
    assert a["step"] == b["step"] == 0 and a["epoch"] == b["epoch"] == 2


def test_resume_auto_passes_over_what_is_damaged_and_keep_removes_what_is_old(
    few_images, tmp_path, capsys, monkeypatch
):
    use_tiny_net(monkeypatch)

    def run(*more):
        words = ["-a", "resnet18", "--crop-size", "32", "-b", "12", "--moco-k", "64", "-j", "0", "--seed", "1"]
        main_moco.main([str(few_images), "--output-dir", str(tmp_path), "--resume", "auto", *words, *more])
        return capsys.readouterr().out

    shorter = [*("--epochs", "4"), "--keep", "2"]
    log = run(*shorter)
    assert f"resume: no checkpoint in {str(tmp_path)!r}; this run starts from the beginning" in log
    kept = ["checkpoint__0002.pth.tar", "checkpoint__0003.pth.tar"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".checkpoint_.lock", *kept, "log.jsonl"]
    newest = tmp_path / kept[1]
    undisturbed = torch.load(newest, weights_only=True)["state_dict"]
    assert "4 of 4 epochs are done" in run(*shorter)

    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 255  # one byte of a tensor: only the checksum tells
    newest.write_bytes(data)
    (tmp_path / "checkpoint__0007.pth.tar").write_bytes(data[:1000])
    (tmp_path / "checkpoint_other_0009.pth.tar").write_bytes(b"of another --tag")
    log = run(*shorter)
    assert re.search(r"warning: the checkpoint '.*0007.*' is cut short.*; it is skipped", log)
    assert re.search(r"warning: the checkpoint '.*0003.*' is damaged .*; it is skipped", log)
    assert "3 of 4 epochs are done" in log and "0009" not in log
    again = torch.load(newest, weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, again[name]) for name, tensor in undisturbed.items())


def test_a_resume_compares_the_flags(few_images, tmp_path, capsys, monkeypatch):
    use_tiny_net(monkeypatch)

    def run(*more):
        words = ["-a", "resnet18", "--crop-size", "32", "-b", "12", "--moco-k", "64", "-j", "0", "--seed", "1"]
        main_moco.main([str(few_images), "--output-dir", str(tmp_path), *words, "--epochs", "2", *more])
        return capsys.readouterr().out

    def refused(*more):
        with pytest.raises(SystemExit) as stop:
            run("--resume", str(tmp_path / "checkpoint__0000.pth.tar"), *more)
        assert stop.value.code == 2
        return capsys.readouterr().err

    run()
    assert "--lr is 0.5, but the checkpoint" in refused("--lr", "0.5")
    assert "--epochs is 3" in refused("--epochs", "3")
    assert "--seed is 2, but" in refused("--seed", "2")
    assert "--start-epoch is 0, but the checkpoint" in refused("--start-epoch", "0")
    assert "--design is mean_encoding:target, but the" in refused("--enable-mean-encoding")
    assert "--batch-size times the nodes is 24" in refused("-b", "24")
    assert "has the shape (128, 64)" in refused("--moco-k", "96", "--force")
    assert "--arch resnet18, not resnet34" in refused("-a", "resnet34", "--force")
    log = run("--resume", str(tmp_path / "checkpoint__0000.pth.tar"), "--lr", "0.5", "--force", "-p", "1")
    assert "1 of 2 epochs are done" in log and "Epoch: [1][1/2]" in log and "Epoch: [0]" not in log
    resumed = torch.load(tmp_path / "checkpoint__0001.pth.tar", weights_only=True)
    assert math.isclose(resumed["optimizer"]["param_groups"][0]["lr"], 0.5 * 0.5)  # half a cosine, half way
    two = torch.load(tmp_path / "checkpoint__0000.pth.tar", weights_only=True) | {"processes": 2}
    torch.save(two, tmp_path / "two.pth.tar")
    elsewhere = ["--resume", str(tmp_path / "two.pth.tar"), "--output-dir", str(tmp_path / "two")]
    log = run(*elsewhere)
    assert "batch normalisation: 1 group of 12 images\nnote: before the resume it saw 6 images at a time" in log
    assert "before the resume" not in run(*elsewhere, "--bn-splits", "2")
    assert "--bn-splits is 2, but the checkpoint" in refused("--bn-splits", "2")
    assert "--precision is bf16, but the checkpoint" in refused("--precision", "bf16")
    older = torch.load(tmp_path / "checkpoint__0000.pth.tar", weights_only=True)
    del older["options"]["design"]  # from when each design was a flag of its own
    older["options"] |= {"enable_asym_bn": True, "enable_multicrop": False}
    torch.save(older, tmp_path / "older.pth.tar")
    elsewhere = ["--resume", str(tmp_path / "older.pth.tar"), "--output-dir", str(tmp_path / "older")]
    assert "1 of 2 epochs are done" in run(*elsewhere, "--enable-asym-bn")
    assert "--design is none, but" in refused(*elsewhere)
    assert "was trained with asym_bn:target" in refused(*elsewhere, "--design", "asym_bn:both")
    log = run("--resume", str(tmp_path / "checkpoint__0001.pth.tar"), "--force")
    assert "2 of 2 epochs are done" in log and "Epoch: [" not in log


def test_a_published_checkpoint_is_taken_as_it_is(few_images, tmp_path, capsys, monkeypatch):
    use_tiny_net(monkeypatch)
    words = [str(few_images), "-a", "resnet18", "--crop-size", "32", "-b", "12", "--moco-k", "64", "-j", "0"]
    words += ["--output-dir", str(tmp_path), "--epochs", "2"]
    main_moco.main(words)
    saved = torch.load(tmp_path / "checkpoint__0000.pth.tar", weights_only=True)
    published = {key: saved[key] for key in ("epoch", "arch", "state_dict", "optimizer")}
    torch.save(published, tmp_path / "published.pth.tar", _use_new_zipfile_serialization=False)
    main_moco.main([*words, "--resume", str(tmp_path / "published.pth.tar"), "--lr", "0.1", "-p", "1"])
    assert "Epoch: [1][0/2]" in capsys.readouterr().out


def test_fp16_resumes_with_its_loss_scale(few_images, tmp_path, monkeypatch):
    use_tiny_net(monkeypatch)
    words = [
        str(few_images),
        "-a",
        "resnet18",
        "--crop-size",
        "32",
        "-b",
        "12",
        "--moco-k",
        "64",
        "-j",
        "0",
        "--seed",
        "1",
    ]
    words += ["--precision", "fp16", "--bn-splits", "2", "--epochs", "2"]
    main_moco.main([*words, "--output-dir", str(tmp_path / "whole")])
    start = tmp_path / "whole" / "checkpoint__0000.pth.tar"
    main_moco.main([*words, "--output-dir", str(tmp_path / "resumed"), "--resume", str(start)])
    a, b = (torch.load(tmp_path / run / "checkpoint__0001.pth.tar", weights_only=True) for run in ("whole", "resumed"))
    assert a["scaler"] == b["scaler"] and a["scaler"]["_growth_tracker"] > 0
    assert all(torch.equal(x, b["state_dict"][name]) for name, x in a["state_dict"].items())
    assert all(x.isfinite().all() and x.dtype != torch.float16 for x in a["state_dict"].values())
