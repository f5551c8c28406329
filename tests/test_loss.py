"""MultiCrop's loss against its formula."""

import math

import torch

from moco.loss import contrastive_loss


def cross_entropy(logits):
    """With the positive first, in loops."""
    rows = [math.log(sum(math.exp(x) for x in row)) - row[0] for row in logits.tolist()]
    return sum(rows) / len(rows)


def test_small_views_share_a_weight_of_one():
    g = torch.Generator().manual_seed(0)
    logits = [torch.randn(4, 9, generator=g, dtype=torch.float64) for _ in range(7)]
    labels = [torch.zeros(4, dtype=torch.long)] * 7
    losses = [cross_entropy(x) for x in logits]
    assert math.isclose(contrastive_loss(logits, labels).item(), losses[0] + sum(losses[1:]) / 6)
    assert math.isclose(contrastive_loss(logits[:1], labels[:1]).item(), losses[0])
