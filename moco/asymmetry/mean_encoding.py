"""MeanEnc (paper, section 4.5): a target that is the mean of the encodings of two views."""

from dataclasses import replace


def mean_encoding_plan(plan):
    """Doubles the target's views; the source keeps its own."""
    return replace(plan, target=plan.target * 2)


def mean_encoding(k):
    """Averages the raw encodings of the target's views, before the one L2 normalisation.

    Args:
        k: views x N x C, not normalised; one view is left as it is.

    Returns:
        N x C.
    """
    return k.mean(dim=0)
