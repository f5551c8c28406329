"""The documents are true: links lead somewhere, commands exist, and code in them runs."""

import glob
import importlib.util
import os
import re

import pytest
import torch
from torch import nn
from torchvision import models

from moco import counter_based_rng
from moco.builder import MoCo
from moco.engine.checkpoint_format import checkpoint_of
from tests import readme
from tests.tiny_net import TinyNet

DOCUMENTS = [
    path
    for pattern in ("*.md", "moco/**/*.md", ".github/**/*.md")
    for path in glob.glob(os.path.join(readme.ROOT, pattern), recursive=True)
]


def text_of(path):
    with open(path) as file:
        return file.read()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: os.path.relpath(path, readme.ROOT))
def test_links_lead_somewhere_and_commands_exist(path):
    text = text_of(path)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        file, _, section = target.partition("#")
        other = os.path.normpath(os.path.join(os.path.dirname(path), file)) if file else path
        assert os.path.exists(other), target
        titles = (
            [
                re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-")
                for t in re.findall(r"^#+ (.*)", text_of(other), re.M)
            ]
            if section
            else []
        )
        assert not section or section in titles, target
    for module in re.findall(r"python -m (moco[\w.]+)", text):
        assert module.endswith(".NAME") or importlib.util.find_spec(module), module


def test_the_result_is_loaded_as_the_readme_says(tmp_path):
    (code,) = readme.blocks("python")
    model = MoCo(lambda num_classes: models.resnet18(num_classes=num_classes), dim=8, K=16, seed=3)
    path = str(tmp_path / "c.pth.tar")
    torch.save(checkpoint_of(1, model, torch.optim.SGD(model.parameters(), 0.1), {"arch": "resnet18"}), path)
    code = code.replace("runs/multicrop/checkpoint__0099.pth.tar", path).replace("resnet50", "resnet18")
    names = {}
    exec(code, names)
    theirs = model.encoder_q.state_dict()
    for name, tensor in names["model"].state_dict().items():
        assert name.startswith("fc.") or torch.equal(tensor, theirs[name]), name


CUTMIX, CALL, PREDICTOR = readme.blocks("python", readme.MAP)


def test_the_worked_example_of_cutmix(monkeypatch):
    monkeypatch.setattr(counter_based_rng, "CUTMIX", 5, raising=False)
    names = {}
    exec(CUTMIX, names)
    images = torch.rand(4, 3, 9, 9)
    boxes = set()
    for step in range(8):
        mixed = names["cutmix"](images, 7, step)
        assert torch.equal(mixed, names["cutmix"](images, 7, step))
        changed = [
            (y, x) for y in range(9) for x in range(9) if not torch.equal(mixed[0, :, y, x], images[0, :, y, x])
        ]
        for y, x in changed:
            assert torch.equal(mixed[:, :, y, x], images.roll(1, 0)[:, :, y, x])
        boxes.add(tuple(changed))
    assert len(boxes) > 4  # each step has a box of its own
    assert "cutmix(x, args.seed, step) for x in views[0]" in CALL


def with_predictor(**kwargs):
    names = {}
    exec(PREDICTOR, names)
    return names["MoCoWithPredictor"](TinyNet, 8, K=32, seed=3, **kwargs)


def test_the_worked_example_of_a_predictor():
    """Its batch normalisation keeps views and groups apart, as a loop over them does."""
    model, other = with_predictor(bn_splits=2), with_predictor(bn_splits=2)
    views = [torch.randn(4, 3, 12, 12) for _ in range(3)]
    together = model.encode_queries(views)
    for view, q in zip(views, together, strict=True):
        torch.testing.assert_close(q, other.encode_queries([view])[0])
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, other.state_dict()[name], msg=name)
    logits, _ = model(views[:1], views[1:], views[:1])
    sum(x.sum() for x in logits).backward()
    assert all(p.grad is not None for p in model.predictor.parameters())


def test_a_plain_batch_normalisation_in_a_head_is_refused():
    model = with_predictor()
    model.predictor = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    with pytest.raises(TypeError, match=r"layer 'predictor\.1' is a BatchNorm1d; call split_batchnorm"):
        model.encode_queries([torch.randn(4, 3, 12, 12)])


def test_a_head_that_the_target_lacks_is_refused():
    model = MoCo(TinyNet, dim=8, K=32)
    model.encoder_q.fc.append(nn.Linear(8, 8))
    with pytest.raises(RuntimeError):
        model.update_momentum_encoder()
