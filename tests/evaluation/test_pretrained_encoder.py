"""Opening a checkpoint as an encoder: what the file says is followed, what does not fit is refused."""

import pytest
import torch
from torchvision import models

from moco.builder import MoCo
from moco.engine.checkpoint_format import CheckpointError, checkpoint_of
from moco.engine.pretrained_backbone import SOURCE, TARGET
from moco.evaluation.pretrained_encoder import open_encoder
from tests.tiny_net import ARCH, WIDTH


@pytest.fixture(scope="module")
def model():
    model = MoCo(lambda num_classes: models.get_model(ARCH, num_classes=num_classes), dim=8, K=16, seed=3, bn_splits=2)
    with torch.no_grad():
        for p in model.encoder_k.parameters():
            p.mul_(1.5)  # so that the two encoders differ
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 2)
    return model.eval()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("saved") / "c.pth.tar")
    options = {"arch": ARCH, "crop_size": 40}
    torch.save(checkpoint_of(1, model, torch.optim.SGD(model.parameters(), 0.1), options), path)
    return path


@pytest.mark.parametrize("name", [SOURCE, TARGET])
@pytest.mark.parametrize("projected", [False, True])
def test_the_features_are_those_of_the_model(saved, model, projected, name):
    encoder, images = open_encoder(saved, projected=projected, encoder=name), torch.randn(2, 3, 40, 40)
    theirs, seen = getattr(model, name), []
    hook = theirs.fc.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    output = theirs(images)
    hook.remove()
    expected = output if projected else seen[0]
    assert torch.equal(encoder.network(images), expected.detach()) and expected.shape == (2, encoder.dim)
    assert (encoder.arch, encoder.crop_size) == (ARCH, 40) and not encoder.network.training
    assert encoder.tensors == len(theirs.state_dict()) - (0 if projected else len(theirs.fc.state_dict()))
    assert not any(p.requires_grad for p in encoder.network.parameters())


def test_flags_overrule_the_file(saved):
    assert open_encoder(saved, crop_size=64).crop_size == 64
    with pytest.raises(CheckpointError, match=f"is of --arch {ARCH}, not resnet18"):
        open_encoder(saved, arch="resnet18")


def test_a_file_that_says_nothing_of_itself(tmp_path, model):
    """Bare weights: the network is recognised by its tensors."""
    path = str(tmp_path / "bare.pth")
    torch.save({n: t for n, t in model.encoder_q.state_dict().items() if not n.startswith("fc.")}, path)
    encoder = open_encoder(path)
    assert (encoder.arch, encoder.crop_size, encoder.dim) == (ARCH, 224, WIDTH)
    with pytest.raises(CheckpointError, match="has no projector; give a checkpoint"):
        open_encoder(path, projected=True)
    with pytest.raises(CheckpointError, match="has no target encoder; give a checkpoint"):
        open_encoder(path, encoder=TARGET)
    torch.save({"conv.weight": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match="is of an unknown network; give --arch"):
        open_encoder(path)
    torch.save({"arch": "vit", "state_dict": {"conv.weight": torch.ones(1)}}, path)
    with pytest.raises(CheckpointError, match="is of an unknown network 'vit'; give --arch"):
        open_encoder(path)


def test_another_projector_is_refused(saved, tmp_path):
    checkpoint = torch.load(saved, weights_only=True)
    del checkpoint["state_dict"]["module.encoder_q.fc.3.bias"]
    torch.save(checkpoint, path := str(tmp_path / "c.pth"))
    with pytest.raises(CheckpointError, match=r"lacks .*fc\.3\.bias; its projector is not that of main_moco.py"):
        open_encoder(path, projected=True)


def test_random_weights_repeat_by_their_seed():
    images, state = torch.randn(1, 3, 32, 32), torch.get_rng_state()
    first, again, other = (open_encoder("none", ARCH, 32, seed=seed).network(images) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other) and torch.equal(state, torch.get_rng_state())
    assert open_encoder("none", ARCH, projected=True).dim == 128
