"""The networks for --arch."""

import pytest
import torch
from torch import nn
from torchvision import models

from moco.engine.architectures import SMALL, STEMS, architectures, is_resnet, make_network, meta_network


def has_fc_and_returns_a_tensor(model, size=224):
    return isinstance(getattr(model, "fc", None), nn.Linear) and isinstance(
        model.train()(torch.empty(2, 3, size, size)), torch.Tensor
    )


@pytest.mark.slow
def test_architectures_are_those_with_an_fc_that_return_one_tensor():
    """Among all of torchvision's classifiers, tried in training mode."""
    fitting, regnets = [], []
    for name in models.list_models(module=models):
        faster = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        if name.startswith("regnet"):  # can't be built on the meta device; all are of one class
            regnets.append(name)
            continue
        with torch.device("meta"):
            if has_fc_and_returns_a_tensor(models.get_model(name, **faster), 299 if name == "inception_v3" else 224):
                fitting.append(name)
    assert has_fc_and_returns_a_tensor(models.regnet_x_400mf(), 32)
    assert has_fc_and_returns_a_tensor(models.regnet_y_400mf(), 32)
    assert architectures() == sorted(fitting + regnets)


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5", "regnet_y_400mf"])
def test_a_meta_network_has_the_shapes_but_no_memory(name, stem):
    if stem == SMALL and not is_resnet(name):
        pytest.skip("only ResNets have it")
    network, real = meta_network(name, stem), make_network(name, stem)
    assert {n: t.shape for n, t in network.state_dict().items()} == {n: t.shape for n, t in real.state_dict().items()}
    assert all(tensor.is_meta for tensor in network.state_dict().values())


def test_the_small_stem_is_simclrs():
    """Layer by layer, as a slow forward pass computes it; everything behind the stem is torchvision's."""
    torch.manual_seed(5)
    small = make_network("resnet18", SMALL, 7).eval()
    torch.manual_seed(5)
    own = models.resnet18(num_classes=7)
    torch.manual_seed(5)
    again = make_network("resnet18", num_classes=7)
    changed = [n for n, t in own.state_dict().items() if not torch.equal(t, small.state_dict()[n])]
    assert changed == ["conv1.weight"] and all(map(torch.equal, own.parameters(), again.parameters()))
    x = torch.randn(2, 3, 32, 32)
    stem = nn.functional.conv2d(x, small.conv1.weight, padding=1)  # stride 1, and nothing else before layer1
    y = small.layer4(small.layer3(small.layer2(small.layer1(small.bn1(stem).relu()))))
    assert stem.shape == (2, 64, 32, 32) and y.shape == (2, 512, 4, 4)
    torch.testing.assert_close(small(x), small.fc(y.mean((2, 3))))


def test_the_small_stems_weights_are_drawn_as_torchvision_draws_them():
    networks = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        networks.append(make_network("resnet18", SMALL).conv1.weight)
    assert torch.equal(*networks[:2]) and not torch.equal(*networks[1:])
    fan_out = 64 * 3 * 3
    assert networks[0].shape == (64, 3, 3, 3) and abs(networks[0].std() / (2 / fan_out) ** 0.5 - 1) < 0.05


def test_only_resnets_have_the_small_stem():
    assert {name for name in architectures() if is_resnet(name)} == {n for n in architectures() if "resn" in n}
    for name in ("regnet_y_400mf", "shufflenet_v2_x0_5"):
        with pytest.raises(ValueError, match=f"^--stem small changes only ResNets, not {name}; leave it out, or give"):
            make_network(name, SMALL)
