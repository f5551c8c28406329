"""MultiCrop (paper, section 4.1): six more low-resolution views for the source."""

from dataclasses import replace

from moco.views.augmentation_recipes import BASE_SCALE, View

MINI_VIEWS = 6
MINI_SCALE = (0.05, 0.14)
FULL_SCALE = (0.14, 1.0)  # replaces the base recipe's (0.2, 1) for the full-size views


def mini_size_for(size):
    """The paper's side of a small view, 96 px, in proportion to full-size views of `size` px instead of 224 px."""
    return max(1, round(size * 96 / 224))


def multicrop_plan(plan, mini_size=None):
    """Adds six small views to the source and changes the crop scale of both sides' full-size views.

    Only views with the scale of the base recipe change. A view with another scale, such as the target's view with
    AsymAug, keeps its own scale, so the order in which the designs are applied does not matter.

    Args:
        plan: a ViewPlan. mini_size: side of the small views in pixels; None means 96/224 of the source's views.

    Returns:
        A ViewPlan.
    """

    def rescale(views):
        return tuple(replace(v, scale=FULL_SCALE) if v.scale == BASE_SCALE else v for v in views)

    mini_size = mini_size_for(plan.source[0].size) if mini_size is None else mini_size
    mini = (View(size=mini_size, scale=MINI_SCALE),) * MINI_VIEWS
    return replace(plan, source=rescale(plan.source), mini=mini, target=rescale(plan.target))
