"""The documents are true: links lead somewhere, commands exist, and code in them runs."""

import functools
import glob
import importlib
import importlib.util
import os
import re
import shlex

import pytest
import torch
from torch import nn

from moco import counter_based_rng
from moco.builder import MoCo
from moco.engine.architectures import IMAGENET, make_network
from moco.engine.checkpoint_format import checkpoint_of
from tests import readme
from tests.tiny_net import ARCH, TinyNet
from tests.tools.internal.written_log import small_run

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


def tool_commands():
    """The commands of the README's part on using the result: (tool, words, lines of output below it)."""
    (block,) = [block for block in readme.blocks("bash") if "moco.tools.knn" in block]
    found = re.findall(r"^python -m moco\.tools\.(\w+) (.*)\n((?:#  ?\S.*\n)+)", block.replace("\\\n", ""), re.M)
    return [(tool, shlex.split(words), [line[2:] for line in output.splitlines()]) for tool, words, output in found]


def without_numbers(text):
    """A text in which every number and every file name is the same, so that outputs of two runs can be compared."""
    return re.sub(r"[\d,.]*\d", "N", re.sub(r"[\w/.-]+\.(png|npz|pth)\b", "FILE", text))


def trained(arch, path):
    """Writes a checkpoint of a network to `path`; returns the model."""
    model = MoCo(functools.partial(make_network, arch, IMAGENET), dim=8, K=16, seed=3)
    options = {"arch": arch, "crop_size": 32}
    torch.save(checkpoint_of(1, model, torch.optim.SGD(model.parameters(), 0.1), options), path)
    return model


def test_the_result_is_used_as_the_readme_says(tmp_path, imagenet, call, monkeypatch):
    """Each command runs and says what the README shows, and the Python code loads what was exported."""
    monkeypatch.chdir(tmp_path)
    model, _ = trained("resnet18", "exported"), trained(ARCH, "encoder")
    (tmp_path / "runs").mkdir()
    for run in ("baseline", "multicrop"):
        small_run(tmp_path / "runs" / run, run)
    places = {"/path/to/imagenet": str(imagenet), "/path/to/images": str(imagenet / "val")}
    tools = []
    for tool, words, output in tool_commands():
        if tool == "plot" and not importlib.util.find_spec("matplotlib"):
            continue
        path = "exported" if tool == "export" else "encoder"
        words = [path if word.endswith(".pth.tar") else places.get(word, word) for word in words]
        words += ["-j", "0"] if tool in ("knn", "extract", "neighbours") else []
        code, out, error = call(importlib.import_module(f"moco.tools.{tool}").main, *words)
        assert code == 0, error
        assert set(map(without_numbers, output)) <= set(without_numbers(out).splitlines()), out
        tools.append(tool)
    assert {*tools, "plot"} == {"knn", "extract", "neighbours", "plot", "export"}
    (code,) = readme.blocks("python")
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
    assert "cutmix(images[0], args.seed, step)" in CALL


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
