"""Refuses views that do not fit into the main memory, before any of them is made."""

from moco.engine.launch_plan import memory


def check_views(plan, images, copies, fewer):
    """Checks that the views of some images fit into this machine's memory.

    Args:
        plan: a ViewPlan. images: number of images. copies: how many times a view is in memory, as uint8.
        fewer: the way out beside smaller views, in words that follow "give".

    Raises:
        ValueError: they do not fit.
    """
    size = images * copies * sum(3 * view.size**2 for view in plan.views)
    if size > memory():
        sides = " and ".join(str(side) for side in sorted({view.size for view in plan.views}, reverse=True))
        raise ValueError(
            f"views of {sides} pixels for {images} images need {size / 1e9:,.0f} GB, but the memory has "
            f"{memory() / 1e9:,.0f} GB; give a smaller --crop-size or --mini-crop-size, or {fewer}"
        )
