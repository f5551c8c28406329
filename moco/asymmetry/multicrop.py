"""MultiCrop (paper, section 4.1): six more low-resolution views for the source."""

from dataclasses import replace

import torch.nn.functional as F

from moco.views.plan import BASE_SCALE, View

MINI_VIEWS = 6
MINI_SCALE = (0.05, 0.14)
FULL_SCALE = (0.14, 1.0)  # of the full-size views beside them, in place of the base recipe's (0.2, 1)


def multicrop_plan(plan, mini_size=96):
    """Adds the small views to the source and changes the scale of both sides' base views."""

    def rescale(views):
        return tuple(replace(v, scale=FULL_SCALE) if v.scale == BASE_SCALE else v for v in views)

    mini = (View(size=mini_size, scale=MINI_SCALE),) * MINI_VIEWS
    return replace(plan, source=rescale(plan.source), mini=mini, target=rescale(plan.target))


def contrastive_loss(logits, labels, full_views=1):
    """Cross entropy of the full-size view plus the *mean* over the small ones: a total weight of 2.

    Args:
        logits, labels: lists with one entry a source view, N x (1 + K) and N, the `full_views` first.

    Returns:
        A scalar; without small views the plain cross entropy.
    """
    losses = [F.cross_entropy(x, y) for x, y in zip(logits, labels, strict=True)]
    full, mini = losses[:full_views], losses[full_views:]
    loss = sum(full) / len(full)
    return loss + sum(mini) / len(mini) if mini else loss
