"""The networks of torchvision that --arch offers, and the stem that --stem gives them."""

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision import models

# The families of torchvision whose classifier is a Linear `fc`, and which return one tensor in training mode.
ARCH_MODULES = (models.resnet, models.regnet, models.shufflenetv2)
IMAGENET, SMALL = STEMS = ("imagenet", "small")


def architectures():
    """The sorted names for --arch."""
    modules = {module.__name__ for module in ARCH_MODULES}
    return [name for name in models.list_models(models) if models.get_model_builder(name).__module__ in modules]


def make_network(arch, stem=IMAGENET, num_classes=1000):
    """A network of torchvision with random weights from torch's generator.

    Args:
        arch: one of `architectures()`.
        stem: IMAGENET is torchvision's own. SMALL is that of SimCLR for CIFAR-10 (arXiv 2002.05709, appendix B.9): a
            3x3 convolution of stride 1 in place of the 7x7 of stride 2, and no max-pooling.
        num_classes: number of outputs of its `fc`.

    Raises:
        ValueError: only torchvision's ResNets have the small stem.
    """
    check_stem(arch, stem)
    network = models.get_model(arch, num_classes=num_classes)
    return shrink_stem(network) if stem == SMALL else network


def check_stem(arch, stem):
    """Raises ValueError if a network can't have that stem."""
    if stem == SMALL and not is_resnet(arch):
        raise ValueError(f"--stem small changes only ResNets, not {arch}; leave it out, or give --arch resnet18")


def is_resnet(arch):
    """Whether a network is one of torchvision's class ResNet, as ResNeXts and wide ResNets are, too."""
    return models.get_model_builder(arch).__module__ == models.resnet.__name__


def shrink_stem(network):
    """Gives a ResNet of torchvision or timm the small stem, with weights drawn as torchvision does; returns it."""
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
    return network


def in_words(arch, stem):
    """The name of a network for messages; it has the stem where that is not torchvision's own."""
    return arch if stem == IMAGENET else f"{arch} --stem {stem}"


def meta_network(arch, stem=IMAGENET):
    """`make_network` on the meta device: it has shapes, but no memory is allocated for its parameters."""
    with _EmptyOnMeta():
        return make_network(arch, stem).to("meta")


class _EmptyOnMeta(TorchFunctionMode):
    """Makes new parameters and buffers on the meta device.

    `torch.device("meta")` would also do so with the tensors from which a RegNet computes its number of channels.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (torch.empty, torch.zeros, torch.ones):
            kwargs = {**kwargs, "device": "meta"}
        return function(*args, **kwargs)
