"""MultiCrop (paper, section 4.1): six more low-resolution views for the source."""

from dataclasses import replace

from moco.views.augmentation_recipes import BASE_SCALE

MINI_VIEWS = 6
MINI_SCALE = (0.05, 0.14)
FULL_SCALE = (0.14, 1.0)  # replaces the base recipe's (0.2, 1) for the full-size views


def mini_size_for(size):
    """The paper's side of a small view, 96 px, in proportion to full-size views of `size` px instead of 224 px."""
    return max(1, round(size * 96 / 224))


def multicrop_plan(plan, mini_size=None, full_scale=FULL_SCALE):
    """Adds six small views to the source and changes the crop scale of both sides' full-size views.

    Only views with MoCo v2's scale change. A view with another scale, such as the target's view with AsymAug, keeps
    it, so the order in which the designs are applied does not matter. The small views have the source's recipe except
    for their size and scale, and except for what AsymAug and ScaleMix do with the full-size view.

    Args:
        plan: a ViewPlan. mini_size: side of the small views in pixels; None means 96/224 of the source's views.
        full_scale: the scale of the full-size views.

    Returns:
        A ViewPlan.
    """

    def rescale(views):
        return tuple(replace(v, scale=full_scale) if v.scale == BASE_SCALE else v for v in views)

    base = plan.source[0]
    mini_size = mini_size_for(base.size) if mini_size is None else mini_size
    mini = replace(base, size=mini_size, scale=MINI_SCALE, randaugment=False, mix_box=None)
    return replace(plan, source=rescale(plan.source), mini=(mini,) * MINI_VIEWS, target=rescale(plan.target))
