"""AsymAug (paper, section 4.3): stronger augmentation for the source, weaker augmentation for the target."""

from dataclasses import replace

WEAK_SCALE = (0.08, 1.0)  # the default of torchvision's RandomResizedCrop


def asym_aug_plan(plan, side="source"):
    """Adds RandAugment to the full-size views of `side`, and reduces the other side's recipe to crop and flip.

    The weaker recipe crops 0.08 to 1 of the image's area. Its ratio and its flip stay those of the base recipe. If
    `side` is "both", both sides get the stronger recipe, and none gets the weaker one.

    Args:
        plan: a ViewPlan. side: one of SIDES.

    Returns:
        A changed copy.
    """
    plan = plan.change(side, stronger)
    return plan if side == "both" else plan.change("target" if side == "source" else "source", weaker)


def stronger(side):
    """A Side whose full-size views have RandAugment, too."""
    return replace(side, full=tuple(replace(view, randaugment=True) for view in side.full))


def weaker(side):
    """A Side whose full-size views are only cropped and flipped."""
    weak = {"scale": WEAK_SCALE, "jitter_p": 0.0, "gray_p": 0.0, "blur_p": 0.0}
    return replace(side, full=tuple(replace(view, **weak) for view in side.full))
