"""The contrastive loss of a step, over all pairs of views."""

import math

import torch
import torch.nn.functional as F

from moco.precision import autocast


def blind_guess(K, mini_views=0):
    """The contrastive loss if all K + 1 keys look equally likely: ln(K + 1), and twice that with small views."""
    return (2 if mini_views else 1) * math.log(K + 1)


def contrastive_loss(logits, labels, full_views=1):
    """Mean cross entropy of the pairs of full-size views (usually one), plus that of the pairs with a small view.

    A pair is a query and the key that it must find. With small views (MultiCrop) the loss is the sum of two means; it
    is not divided by 2. The loss is not symmetrised: the source's views are always the queries, and the target's views
    are always the keys.

    Args:
        logits, labels: lists with one entry per pair, N x (1 + K) and N (long), the pairs of full-size views first.
        full_views: the number of pairs of full-size views, 1 to the number of pairs.

    Returns:
        A scalar tensor.

    Raises:
        ValueError: `full_views` is out of range.
    """
    if not 1 <= full_views <= len(logits):
        raise ValueError(f"full_views is {full_views}, but must be 1 to {len(logits)}, the number of pairs")
    losses = [F.cross_entropy(x, y) for x, y in zip(logits, labels, strict=True)]
    full, mini = losses[:full_views], losses[full_views:]
    loss = sum(full) / len(full)
    return loss + sum(mini) / len(mini) if mini else loss


def noise_loss(plan, precision, net, n):
    """The loss of n images of Gaussian noise, a scalar tensor."""
    device = next(net.parameters()).device
    views = [torch.randn(n, 3, view.size, view.size, device=device) for view in plan.views]
    with autocast(device, precision):
        return contrastive_loss(*net(**plan.split(views), step=0), plan.source.encodings)
