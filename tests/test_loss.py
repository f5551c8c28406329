"""MultiCrop's loss against its formula."""

import math

import pytest
import torch

from main_moco import train_step
from moco.loss import contrastive_loss
from moco.optim import sgd
from moco.precision import grad_scaler
from moco.views.augmentation_recipes import Side, View, ViewPlan


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


@pytest.mark.parametrize("full_views", [0, -1, 4])
def test_a_number_of_full_size_views_out_of_range_is_refused(full_views):
    with pytest.raises(ValueError, match=f"full_views is {full_views}, but must be 1 to 3"):
        contrastive_loss([torch.zeros(2, 5)] * 3, [torch.zeros(2, dtype=torch.long)] * 3, full_views)


def test_a_step_gives_several_full_size_views_their_common_weight():
    g = torch.Generator().manual_seed(0)
    logits = [torch.randn(4, 9, generator=g, requires_grad=True) for _ in range(3)]
    labels = [torch.zeros(4, dtype=torch.long)] * 3
    first, second, small = (cross_entropy(x) for x in logits)
    x = torch.zeros(4, 3, 8, 8)
    plan = ViewPlan(Side((View(8), View(8)), (View(8),)), Side((View(8),)))
    scaler = grad_scaler(x.device, None)
    loss, *_ = train_step(lambda step, **views: (logits, labels), sgd(logits, 0.1), scaler, plan, [x] * 4, 0, None)
    assert math.isclose(loss.item(), (first + second) / 2 + small, rel_tol=1e-6)
