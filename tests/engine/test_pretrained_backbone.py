"""Backbones from any MoCo-style file."""

import pytest
import torch
from torchvision import models

from moco.engine.architectures import architectures, make_network
from moco.engine.checkpoint_format import CheckpointError, checkpoint_of
from moco.engine.pretrained_backbone import architecture_of, backbone_for, shapes_of, shapes_of_architecture, stem_of
from tests.engine.test_checkpoint_format import OPTIONS, moco

pytestmark = pytest.mark.usefixtures("zero_weights")


@pytest.fixture
def saved(zero_weights):
    model, optimizer = moco("resnet18")
    with torch.no_grad():
        for i, tensor in enumerate(model.state_dict().values()):
            tensor.fill_(i)  # so that each is another one
    return checkpoint_of(5, model, optimizer, {**OPTIONS, "arch": "resnet18"})


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
    networks = {arch: models.get_model(arch) for arch in ("resnet18", "resnet34")}
    before = {n: t.clone() for n, t in networks["resnet18"].state_dict().items()}

    def refused(content, match, arch="resnet18"):
        with pytest.raises(CheckpointError, match=match):
            backbone_for(networks[arch], content, "c.pth", arch)

    refused({}, "holds no tensors under 'state_dict'; its keys are none$")
    refused({"state_dict": {}}, "holds no tensors")
    refused({"epoch": 3, "model": {"conv1.weight": torch.zeros(1)}}, "no tensors .* its keys are 'epoch', 'model'$")
    refused(
        {"something.weight": torch.zeros(1)},
        r"backbone: its names are like something.weight, not like conv1.weight; is it of --arch resnet18\?$",
    )
    refused({n: t for n, t in bare.items() if n != "layer3.0.conv1.weight"}, r"lacks the backbone's layer3\.0\.conv1")
    refused({**bare, "layer5.weight": torch.zeros(1)}, r"has layer5\.weight, which the backbone lacks; is it of")
    refused({**bare, "conv1.weight": torch.zeros(64, 1, 7, 7)}, r"conv1\.weight of shape \(64, 1, 7, 7\)")
    # Every tensor of ResNet-18 fits into a ResNet-34, and the other way round some are left over.
    refused(bare, "is of --arch resnet18, not resnet34; give --arch resnet18$", arch="resnet34")
    refused(networks["resnet34"].state_dict(), "is of --arch resnet34, not resnet18")
    refused({"state_dict": bare, "arch": "resnet18"}, "is of --arch resnet18, not resnet34", arch="resnet34")
    refused(
        {"state_dict": bare, "arch": "vit\n"}, r"is of the architecture 'vit\\n', not of resnet34$", arch="resnet34"
    )
    refused(
        {"state_dict": {"conv1.weight": bare["conv1.weight"]}, "arch": "resnet18"},
        r"'c\.pth' of --arch resnet18 lacks the backbone's bn1\.bias$",
    )
    assert all(torch.equal(before[n], t) for n, t in networks["resnet18"].state_dict().items())


def test_a_stem_that_does_not_fit_is_named(saved):
    bare = {n: t for n, t in make_network("resnet18", "small").state_dict().items() if not n.startswith("fc.")}
    small, networks = make_network("resnet18", "small"), (models.resnet18(), models.resnet34())
    assert len(backbone_for(small, bare, "c.pth", "resnet18")) == 120

    def refused(model, arch, content, message):
        with pytest.raises(CheckpointError) as error:
            backbone_for(model, content, "c.pth", arch)
        assert str(error.value) == f"the checkpoint 'c.pth' is of {message}"

    for content in (bare, {"state_dict": bare, "arch": "resnet18", "options": {"stem": "small"}}):
        refused(networks[0], "resnet18", content, "--stem small, not imagenet; give --stem small")
        both = "--arch resnet18 --stem small"
        refused(networks[1], "resnet34", content, f"{both}, not resnet34; give {both}")
        refused(
            make_network("resnet34", "small"), "resnet34", content, f"{both}, not resnet34 --stem small; give {both}"
        )
    refused(small, "resnet18", saved, "--stem imagenet, not small; give --stem imagenet")


@pytest.mark.parametrize(
    "options, weight, stem",
    [
        ({}, (64, 3, 3, 3), "small"),
        ({}, (64, 3, 7, 7), "imagenet"),
        ({}, None, "imagenet"),
        ({"stem": "imagenet"}, (64, 3, 3, 3), "imagenet"),  # what the file says comes first
        ({"stem": "large"}, (64, 3, 3, 3), "small"),
        ({"stem": 3}, (64,), "imagenet"),
    ],
)
def test_the_stem_of_a_file(options, weight, stem):
    state = {} if weight is None else {"conv1.weight": torch.zeros(weight)}
    assert stem_of({"options": options}, state) == stem


def test_every_architecture_is_recognised_by_its_tensors():
    fits = {name: shapes_of_architecture(name) for name in architectures()}
    assert "regnet_y_400mf" in fits and "resnet50" in fits
    for name in architectures():
        old = {
            n: torch.empty(s, device="meta") for n, s in fits[name].items() if not n.endswith("num_batches_tracked")
        }
        assert architecture_of({"state_dict": old}, old) == name
    assert shapes_of(models.get_model("regnet_y_400mf")) == fits["regnet_y_400mf"]
    assert architecture_of({}, {"conv1.weight": torch.zeros(1)}) is None
