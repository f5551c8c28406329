"""The pieces together learn: from a fixed seed, the loss falls clearly below a blind guess."""

import math

import torch
from torch import nn

from moco.builder import MoCo
from moco.data.file_list import ImageFolder
from moco.loader import training_loader
from moco.loss import contrastive_loss
from moco.views.augmentation_recipes import baseline_plan
from moco.views.normalize import normalize_images

K, EPOCHS = 64, 20


class SmallNet(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(3, 32, 5, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, stride=2, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten()),
        )
        self.fc = nn.Linear(256, num_classes)

    def forward(self, x):
        return self.fc(self.body(x))


def losses_of_a_run(imagenet, lr, first=0):
    """The losses of the steps from the 0-based epoch `first` on."""
    plan = baseline_plan(32)
    loader = training_loader(ImageFolder(imagenet / "train"), plan.views, 32, seed=0, workers=0)
    model = MoCo(SmallNet, dim=32, K=K, m=0.97, T=0.2, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr, 0.9)
    losses = []
    for epoch in range(first, EPOCHS):
        loader.batch_sampler.epoch = epoch
        for i, (views, _) in enumerate(loader):
            views = [normalize_images(view) for view in views]
            loss = contrastive_loss(*model(**plan.split(views), step=epoch * len(loader) + i))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def mean(values):
    return sum(values) / len(values)


def test_the_loss_falls_clearly_below_a_blind_guess(imagenet):
    losses = losses_of_a_run(imagenet, 0.01)
    untrained = losses_of_a_run(imagenet, 0.0, EPOCHS - 5)  # without training, earlier epochs change nothing
    guess = math.log(K + 1)
    assert mean(losses[-12:]) < 0.8 * guess
    # Two steps fill the queue, which starts with noise and is easier then.
    assert mean(losses[-12:]) < 0.9 * mean(losses[2:14])
    assert mean(losses[-12:]) < 0.9 * mean(untrained[-12:])
