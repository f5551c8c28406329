"""MultiCrop (paper, section 4.1): six more low-resolution views for the source."""

from dataclasses import replace

from moco.views.augmentation_recipes import BASE_SCALE

MINI_VIEWS = 6
MINI_SCALE = (0.05, 0.14)
FULL_SCALE = (0.14, 1.0)  # replaces the base recipe's (0.2, 1) for the full-size views


def mini_size_for(size):
    """The paper's side of a small view, 96 px, in proportion to full-size views of `size` px instead of 224 px."""
    return max(1, round(size * 96 / 224))


def multicrop_plan(plan, mini_size=None, full_scale=FULL_SCALE, side="source"):
    """Adds six small views to `side`, and changes the crop scale of both sides' full-size views.

    Only views with MoCo v2's scale change. A view with another scale, such as AsymAug's weaker one, keeps it, so the
    order in which the designs are applied does not matter. The small views have the base recipe except for their size
    and scale: AsymAug and ScaleMix do not change them.

    Args:
        plan: a ViewPlan. mini_size: width of the small views in pixels; None means 96/224 of the full-size views.
        full_scale: the scale of the full-size views. side: one of SIDES.

    Returns:
        A changed copy.
    """

    def rescale(side):
        full = (replace(view, scale=full_scale) if view.scale == BASE_SCALE else view for view in side.full)
        return replace(side, full=tuple(full))

    first = plan.source.full[0], plan.target.full[0]
    base = next((view for view in first if view.randaugment), first[0])  # with AsymAug, the other one may be weaker
    mini_size = mini_size_for(base.size) if mini_size is None else mini_size
    mini = replace(base, size=mini_size, scale=MINI_SCALE, randaugment=False, mix_box=None)
    plan = plan.change(side, lambda side: replace(side, mini=(mini,) * MINI_VIEWS))
    return plan.change("both", rescale)
