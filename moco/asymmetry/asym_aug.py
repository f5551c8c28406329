"""AsymAug (paper, section 4.3): stronger augmentation for the source, weaker augmentation for the target."""

from dataclasses import replace

WEAK_SCALE = (0.08, 1.0)  # torchvision's default


def asym_aug_plan(plan):
    """Adds RandAugment to the source's full-size views and leaves only crop and flip to the target's views."""
    stronger = tuple(replace(view, randaugment=True) for view in plan.source)
    weaker = tuple(replace(view, scale=WEAK_SCALE, jitter_p=0.0, gray_p=0.0, blur_p=0.0) for view in plan.target)
    return replace(plan, source=stronger, target=weaker)
