"""Backbones from any MoCo-style file."""

import pytest
import torch
from torchvision import models

from moco.engine.checkpoint_format import CheckpointError
from moco.engine.pretrained_backbone import backbone_for
from tests.engine.test_checkpoint_format import moco, stepped


@pytest.fixture(scope="module")
def saved():
    torch.set_num_threads(1)
    return stepped(*moco())


def backbone_files(saved):
    """Kind of file to its content, all of the same source encoder."""
    state = saved["state_dict"]
    source = {n.removeprefix("module.encoder_q."): t for n, t in state.items() if n.startswith("module.encoder_q.")}
    bare = {n: t for n, t in source.items() if not n.startswith("fc.")}
    return {
        "ours": saved,
        "without module.": {"state_dict": {n.removeprefix("module."): t for n, t in state.items()}},
        "a state dict alone": state,
        "a bare backbone": bare,
        "a classifier": {"state_dict": {**bare, "fc.weight": torch.zeros(9, 512), "fc.bias": torch.zeros(9)}},
        "module. and bare": {"state_dict": {f"module.{n}": t for n, t in bare.items()}},
        "old, without counters": {n: t for n, t in bare.items() if not n.endswith("num_batches_tracked")},
    }


def test_a_backbone_is_found_in_any_moco_style_file(saved):
    kinds = backbone_files(saved)
    for kind, content in kinds.items():
        model = models.resnet18(num_classes=7)
        found = backbone_for(model, content, "c.pth", "resnet18")
        assert len(found) == (120 if kind != "old, without counters" else 100), kind
        model.load_state_dict(found, strict=False)
        for name, tensor in model.state_dict().items():
            if not name.startswith("fc.") and not name.endswith("num_batches_tracked"):
                assert torch.equal(tensor, saved["state_dict"][f"module.encoder_q.{name}"]), (kind, name)


def test_a_backbone_that_does_not_fit_is_refused(saved):
    bare = backbone_files(saved)["a bare backbone"]

    def refused(content, match, arch="resnet18"):
        model = models.get_model(arch)
        before = {n: t.clone() for n, t in model.state_dict().items()}
        with pytest.raises(CheckpointError, match=match):
            backbone_for(model, content, "c.pth", arch)
        assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())

    refused({"state_dict": {}}, "holds no tensors")
    refused({"epoch": 3}, "holds no tensors")
    refused({"something.weight": torch.zeros(1)}, "matches no tensor")
    refused({n: t for n, t in bare.items() if n != "layer3.0.conv1.weight"}, r"lacks the backbone's layer3\.0\.conv1")
    # Every tensor of ResNet-18 fits into a ResNet-34, and the other way round some are left over.
    refused(bare, r"lacks the backbone's layer1\.2.*--arch resnet34", arch="resnet34")
    refused(models.resnet34().state_dict(), r"has layer1\.2\..*, which the backbone lacks")
    refused(models.resnet50().state_dict(), "resnet18")
    refused({**bare, "conv1.weight": torch.zeros(64, 1, 7, 7)}, r"conv1\.weight of shape \(64, 1, 7, 7\)")
