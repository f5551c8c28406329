"""The validation: how many graphs a compiled network needs for it. Its accuracy is tested with main_lincls.py."""

import pytest
import torch

import main_lincls
from moco.engine import speed_flags
from tests.tiny_net import use_tiny_net


@pytest.fixture
def graphs(monkeypatch):
    """Makes --compile count graphs instead of compiling them; returns a list with the gradient mode of each."""
    seen, compile = [], torch.nn.Module.compile

    def count(graph, _):
        seen.append(torch.is_grad_enabled())
        return graph.forward

    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: compile(self, backend=count, **how))
    monkeypatch.setattr(speed_flags, "check_compiler", lambda _: None)
    use_tiny_net(monkeypatch)
    torch.compiler.reset()
    yield seen
    torch.compiler.reset()


def words(imagenet, folder, *more):
    """36 validation images in batches of 16, so that the last one is short."""
    small = ["--pretrained", "none", "-a", "resnet18", "--crop-size", "24", "-b", "16", "-j", "0", "--compile"]
    return [str(imagenet), *small, "--epochs", "2", "--seed", "2", "--output-dir", str(folder), *more]


def test_the_validation_needs_no_graph_of_its_own(imagenet, tmp_path, graphs, call):
    code, out, _ = call(main_lincls.main, *words(imagenet, tmp_path))
    assert code == 0 and graphs == [True]
    accuracies = [line for line in out.splitlines() if line.startswith(" * ")]
    model, data = str(tmp_path / "checkpoint.pth.tar"), str(tmp_path)
    graphs.clear()
    torch.compiler.reset()
    code, out, _ = call(main_lincls.main, *words(imagenet, data, "--evaluate", "--resume", model))
    assert code == 0 and len(graphs) == 1
    code, plain, _ = call(main_lincls.main, *words(imagenet, data, "--evaluate", "--resume", model, "--no-compile"))
    assert accuracies[-1] == out.splitlines()[-1] == plain.splitlines()[-1]


def test_evaluate_makes_no_graph_for_training(imagenet, tmp_path, monkeypatch, call):
    """Nothing requires a gradient, and the network is not wrapped for several processes."""
    use_tiny_net(monkeypatch)
    plain = [word for word in words(imagenet, tmp_path) if word != "--compile"]
    assert call(main_lincls.main, *plain)[0] == 0
    validate, seen = main_lincls.validate, []

    def spy(model, *args, **how):
        seen.extend(p.requires_grad for p in model.parameters())
        return validate(model, *args, **how)

    monkeypatch.setattr(main_lincls, "validate", spy)
    monkeypatch.setattr("moco.engine.training_run.data_parallel", None)  # must not be called
    assert call(main_lincls.main, *plain, "--evaluate", "--resume", tmp_path / "checkpoint.pth.tar")[0] == 0
    assert seen and not any(seen)
