"""MeanEnc (paper, section 4.5): each key is the mean of the target encodings of two views."""

from dataclasses import replace


def mean_encoding_plan(plan, side="target"):
    """Doubles the number of full-size views of `side`, whose encodings are then averaged.

    Args:
        plan: a ViewPlan. side: one of SIDES. On the source, each query is the mean of two encodings.

    Returns:
        A changed copy.
    """
    return plan.change(side, lambda side: replace(side, full=side.full * 2, averaged=True))


def mean_encoding(encodings):
    """Averages the raw encodings of an image's views; the L2 normalisation comes afterwards.

    Args:
        encodings: views x N x C, not normalised.

    Returns:
        N x C, not normalised.
    """
    return encodings.mean(dim=0)
