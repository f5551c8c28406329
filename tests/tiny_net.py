"""Networks for tests that need a network but not what it learns."""

from torch import nn
from torchvision import models
from torchvision.models._api import register_model

ARCH, WIDTH = "shufflenet_small", 256  # for --arch; its number of features


def small_shufflenet(weights=None, **how):
    """A ShuffleNet with few and narrow layers, whose name is ARCH."""
    return models.ShuffleNetV2([1, 1, 1], [8, 16, 32, 64, WIDTH], **how)


small_shufflenet.__module__ = models.shufflenetv2.__name__  # one of those from which `architectures()` takes all
register_model(ARCH)(small_shufflenet)


class TinyNet(nn.Module):
    """Convolution, batch normalisation, mean over the pixels, and a Linear `fc`."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, num_classes)

    def forward(self, x):
        return self.fc(self.bn(self.conv(x)).relu().mean((2, 3)))


def use_tiny_net(monkeypatch):
    """Makes both scripts build a TinyNet, whatever --arch says."""
    monkeypatch.setattr(models, "get_model", lambda arch, num_classes=1000: TinyNet(num_classes))
