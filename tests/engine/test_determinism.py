"""--deterministic: what it sets, what it changes, and how it goes with a resume."""

import os

import pytest
import torch

import main_moco
from moco.engine.design_flags import PAPER_SIDES
from moco.engine.determinism import set_determinism
from tests.tiny_net import use_tiny_net


@pytest.fixture
def plain(monkeypatch):
    """Sets everything back after the test."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield
    set_determinism(False)


def words(imagenet, folder, *more):
    small = ["-a", "resnet18", "--crop-size", "24", "-b", "24", "--moco-k", "64", "-j", "0", "--epochs", "1"]
    return [str(imagenet), *small, "--seed", "2", "--save-every", "2", "--output-dir", str(folder), *more]


def test_a_run_is_repeatable_with_it_and_the_same_on_a_cpu(imagenet, tmp_path, monkeypatch, plain):
    use_tiny_net(monkeypatch)
    seen, train_step = [], main_moco.train_step

    def spy(*args):
        seen.append((torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark))
        return train_step(*args)

    monkeypatch.setattr(main_moco, "train_step", spy)
    states = []
    for name, flags in (("plain", []), ("deterministic", ["--deterministic"])):
        main_moco.main(words(imagenet, tmp_path / name, *flags))
        saved = torch.load(tmp_path / name / "checkpoint__0000.pth.tar", weights_only=True)
        assert saved["options"]["deterministic"] == bool(flags)
        states.append(saved["state_dict"])
    assert seen == [(False, True)] * 4 + [(True, False)] * 4
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_a_resume_may_change_it_and_says_so(imagenet, tmp_path, monkeypatch, plain, call):
    use_tiny_net(monkeypatch)
    assert call(main_moco.main, *words(imagenet, tmp_path))[0] == 0
    code, out, _ = call(main_moco.main, *words(imagenet, tmp_path, "--resume", "auto", "--deterministic"))
    assert code == 0 and "before the resume" not in out  # on a CPU every run can be repeated
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    code, out, _ = call(main_moco.main, *words(imagenet, tmp_path, "--resume", "auto", "--deterministic"))
    assert code == 0 and "note: --deterministic is on, but was off before the resume" in out
    code, out, _ = call(main_moco.main, *words(imagenet, tmp_path, "--resume", "auto"))
    assert code == 0 and "note: --deterministic" not in out


def test_compiled_kernels_are_not_chosen_by_their_time(plain):
    set_determinism(True)
    assert torch._inductor.config.deterministic
    set_determinism(False)
    assert not torch._inductor.config.deterministic


@pytest.mark.gpu
@pytest.mark.parametrize("flags", [[], ["--augment-on", "device", "--precision", "bf16"], ["--fast"]])
def test_on_a_gpu_a_resumed_run_repeats_the_whole_one(flags, imagenet, tmp_path, call, plain):
    designs = [word for design in PAPER_SIDES for word in ("--design", design)]
    flags = [*flags, *designs, "--mini-crop-size", "16", "--deterministic"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert call(main_moco.main, *words(imagenet, whole, *flags))[0] == 0
    resumed.mkdir()
    (whole / "checkpoint__last.pth.tar").rename(resumed / "checkpoint__last.pth.tar")
    assert call(main_moco.main, *words(imagenet, resumed, *flags, "--resume", "auto"))[0] == 0
    a, b = (torch.load(d / "checkpoint__0000.pth.tar", weights_only=True)["state_dict"] for d in (whole, resumed))
    assert all(torch.equal(tensor, b[name]) for name, tensor in a.items())
