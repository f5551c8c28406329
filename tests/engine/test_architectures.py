"""The networks for --arch."""

import pytest
import torch
from torch import nn
from torchvision import models

from moco.engine.architectures import architectures, meta_network


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


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5", "regnet_y_400mf"])
def test_a_meta_network_has_the_shapes_but_no_memory(name):
    network, real = meta_network(name), models.get_model(name)
    assert {n: t.shape for n, t in network.state_dict().items()} == {n: t.shape for n, t in real.state_dict().items()}
    assert all(tensor.is_meta for tensor in network.state_dict().values())
