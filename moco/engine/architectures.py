"""The networks of torchvision that --arch offers."""

import torch
from torch.overrides import TorchFunctionMode
from torchvision import models

# The families of torchvision whose classifier is a Linear `fc`, and which return one tensor in training mode.
ARCH_MODULES = (models.resnet, models.regnet, models.shufflenetv2)


def architectures():
    """The sorted names for --arch."""
    modules = {module.__name__ for module in ARCH_MODULES}
    return [name for name in models.list_models(models) if models.get_model_builder(name).__module__ in modules]


def meta_network(name):
    """A network of torchvision on the meta device: it has shapes, but no memory is allocated for its parameters."""
    with _EmptyOnMeta():
        return models.get_model(name).to("meta")


class _EmptyOnMeta(TorchFunctionMode):
    """Makes new parameters and buffers on the meta device.

    `torch.device("meta")` would also do so with the tensors from which a RegNet computes its number of channels.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (torch.empty, torch.zeros, torch.ones):
            kwargs = {**kwargs, "device": "meta"}
        return function(*args, **kwargs)
