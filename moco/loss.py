"""The contrastive loss of a step, over all views of the source."""

import torch.nn.functional as F


def contrastive_loss(logits, labels, full_views=1):
    """Cross entropy of the full-size view, plus the *mean* cross entropy of the small views of MultiCrop.

    The loss is not symmetrised: the source's views are the queries, the target's views are the keys. With small views
    the total weight is 2, since their mean has the same weight as the full-size view.

    Args:
        logits, labels: lists with one entry per source view, N x (1 + K) and N (long), the full-size views first.
        full_views: the number of full-size views, whose cross entropies are averaged too.

    Returns:
        A scalar tensor.
    """
    losses = [F.cross_entropy(x, y) for x, y in zip(logits, labels, strict=True)]
    full, mini = losses[:full_views], losses[full_views:]
    loss = sum(full) / len(full)
    return loss + sum(mini) / len(mini) if mini else loss
