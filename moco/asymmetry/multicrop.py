"""MultiCrop (paper, section 4.1): six more low-resolution views for the source."""

from dataclasses import replace

from moco.views.augmentation_recipes import BASE_SCALE, View

MINI_VIEWS = 6
MINI_SCALE = (0.05, 0.14)
FULL_SCALE = (0.14, 1.0)  # replaces the base recipe's (0.2, 1) for the full-size views


def multicrop_plan(plan, mini_size=96):
    """Adds six small views to the source and changes the crop scale of both sides' full-size views.

    Only views with the scale of the base recipe change. A view with another scale, such as the target's view with
    AsymAug, keeps its own scale, so the order in which the designs are applied does not matter.

    Args:
        plan: a ViewPlan. mini_size: side of the small views in pixels.

    Returns:
        A ViewPlan.
    """

    def rescale(views):
        return tuple(replace(v, scale=FULL_SCALE) if v.scale == BASE_SCALE else v for v in views)

    mini = (View(size=mini_size, scale=MINI_SCALE),) * MINI_VIEWS
    return replace(plan, source=rescale(plan.source), mini=mini, target=rescale(plan.target))
