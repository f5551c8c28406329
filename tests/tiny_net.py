"""A network of one convolution, for tests that need a network but not what it learns."""

from torch import nn
from torchvision import models


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
