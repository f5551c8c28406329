"""What a checkpoint holds: the published format."""

import functools

import pytest
import torch

from moco.builder import MoCo
from moco.engine.architectures import make_network
from moco.engine.checkpoint_atomic_write import save
from moco.engine.checkpoint_file_read import read
from moco.engine.checkpoint_format import checkpoint_of
from tests.tiny_net import ARCH

OPTIONS = {"arch": ARCH, "lr": 0.03, "seed": 3, "total_batch": 256}


def moco(arch=ARCH, dim=8, K=16, lr=0.03, momentum=0.9, stem="imagenet"):
    model = MoCo(functools.partial(make_network, arch, stem), dim, K)
    return model, torch.optim.SGD(model.parameters(), lr, momentum, weight_decay=1e-4)


def stepped(model, optimizer):
    im = [torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))]
    logits, _ = model(im, [], im, step=0)
    logits[0].square().mean().backward()
    optimizer.step()
    return checkpoint_of(5, model, optimizer, OPTIONS)


@pytest.fixture(scope="module")
def saved():
    torch.set_num_threads(1)
    return stepped(*moco())


def test_a_checkpoint_has_the_published_format(saved, tmp_path):
    save(saved, tmp_path / "c.pth.tar")
    assert [f.name for f in tmp_path.iterdir()] == ["c.pth.tar"]
    content = read(str(tmp_path / "c.pth.tar"))
    assert content["epoch"] == 5 and content["arch"] == ARCH
    names = set(content["state_dict"])
    assert all(name.startswith("module.") for name in names)
    some = {"module.queue", "module.queue_ptr", "module.encoder_q.conv1.0.weight", "module.encoder_k.fc.5.bias"}
    assert some <= names
    model, _ = moco()
    model.load_state_dict({n.removeprefix("module."): t for n, t in content["state_dict"].items()}, strict=True)
    # The optimizer counts all parameters in order; only the source's have a state.
    (group,) = content["optimizer"]["param_groups"]
    parameters = list(model.parameters())
    assert group["params"] == list(range(len(parameters)))
    assert set(content["optimizer"]["state"]) == {i for i, p in enumerate(parameters) if p.requires_grad}
