"""Checkpoints for the tools that compute features, and how these tools are started."""

import importlib
import os
from unittest import mock

import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from torchvision import models

from moco.builder import MoCo
from moco.engine.checkpoint_format import checkpoint_of
from tests.ranks import Program, quick_launches
from tests.tiny_net import ARCH

CLOSE = {"rtol": 1e-3, "atol": 3e-4}  # of features, which are of the order of 1, in batches of any size


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Paths of one network in three formats: `own`, `published` and `torchvision`; and `none`."""
    folder = tmp_path_factory.mktemp("checkpoints")
    model = MoCo(lambda num_classes: models.get_model(ARCH, num_classes=num_classes), dim=8, K=16, seed=3)
    with torch.no_grad():
        for module in model.modules():
            module.momentum = 1.0  # of batch normalisation, so that the features are of the order of 1
        model.encoder_q(torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(5)))
    own = checkpoint_of(1, model, torch.optim.SGD(model.parameters(), 0.1), {"arch": ARCH, "crop_size": 32}, step=0)
    published = {key: own[key] for key in ("epoch", "arch", "state_dict", "optimizer")}
    weights = {n: t for n, t in model.encoder_q.state_dict().items() if not n.startswith("fc.")}
    bare = models.get_model(ARCH)
    bare.load_state_dict(weights, strict=False)
    for name, content in (("own", own), ("published", published), ("torchvision", bare.state_dict())):
        torch.save(content, folder / name)
    return {name: str(folder / name) for name in ("own", "published", "torchvision")} | {"none": "none"}


@pytest.fixture
def encoder(checkpoints):
    """The network of the checkpoints, as torchvision knows it, without its `fc`; it computes one image at a time."""
    network = models.get_model(ARCH)
    network.load_state_dict(torch.load(checkpoints["torchvision"], weights_only=True))
    network.fc = torch.nn.Identity()
    return network.eval()


def _main(tool, words, prepare):
    torch.set_num_threads(1)
    if prepare:
        prepare()
    with quick_launches():
        importlib.import_module(f"moco.tools.{tool}").main(words)


@pytest.fixture
def run_tool():
    """Runs a tool as a program; returns its exit code, standard output and standard error.

    `prepare` is a module-level function that the program calls first.
    """

    def run(tool, *words, prepare=None):
        words = [os.fspath(word) if isinstance(word, os.PathLike) else str(word) for word in words]
        return Program(_main, tool, words, prepare).finish()

    return run


@pytest.fixture
def feature_of(encoder):
    """Computes the features of one image file, as an array; the size of its crop is 32 by default."""

    @torch.no_grad()
    def feature_of(path, size=32, network=encoder):
        with Image.open(path) as image:
            image = TF.center_crop(TF.resize(image.convert("RGB"), round(size * 256 / 224)), [size, size])
        x = TF.normalize(TF.to_tensor(image), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        return network(x[None])[0].numpy()

    return feature_of


@pytest.fixture
def refused(call):
    """Calls a tool with a bad command line, and checks that it refuses it in one line that holds `message`."""

    def refused(tool, words, message):
        module = importlib.import_module(f"moco.tools.{tool}")
        with mock.patch.object(module, "start", lambda *_: pytest.fail("it started")):
            code, out, error = call(module.main, *words)
        assert code == 2 and not out and error.count("\n") == 1, error
        assert error.startswith(f"python -m moco.tools.{tool}: error: ") and message in error

    return refused
