"""MeanEnc (paper, section 4.5): each key is the mean of the target encodings of two views."""

from dataclasses import replace


def mean_encoding_plan(plan):
    """Doubles the number of the target's views. `plan` is a ViewPlan; a changed copy is returned."""
    return replace(plan, target=plan.target * 2)


def mean_encoding(k):
    """Averages the raw encodings of the target's views; the L2 normalisation comes afterwards.

    Args:
        k: views x N x C, not normalised.

    Returns:
        N x C, not normalised.
    """
    return k.mean(dim=0)
