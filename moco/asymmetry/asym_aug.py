"""AsymAug (paper, section 4.3): stronger augmentation for the source, weaker augmentation for the target."""

from dataclasses import replace

WEAK_SCALE = (0.08, 1.0)  # the default of torchvision's RandomResizedCrop


def asym_aug_plan(plan):
    """Adds RandAugment to the source's full-size views, and reduces the target's recipe to crop and flip.

    The target's crop has 0.08 to 1 of the image's area. Its ratio and its flip stay those of the base recipe. `plan`
    is a ViewPlan; a changed copy is returned.
    """
    stronger = tuple(replace(view, randaugment=True) for view in plan.source)
    weaker = tuple(replace(view, scale=WEAK_SCALE, jitter_p=0.0, gray_p=0.0, blur_p=0.0) for view in plan.target)
    return replace(plan, source=stronger, target=weaker)
