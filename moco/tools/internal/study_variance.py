"""The variance of the two sides of a run, from the variances that moco.tools.variance measures of single recipes.

All recipes are measured by one encoder, the baseline of the same seed, as the paper does. The variance is then a
property of the recipe, and so a cause. By the run's own encoder it would also be an effect, since an encoder becomes
less sensitive to whatever it is trained with.
"""

SINGLE = {  # the recipe of the side that has the design, and of the other side
    "scalemix": ("scalemix", "baseline"),
    "asym_aug": ("stronger", "weaker"),
    "asym_bn": ("asym_bn", "baseline"),
    "mean_encoding": ("mean_encoding", "baseline"),
}


def recipes_of(designs):
    """The recipes of a run with one design or none.

    A side with the small views of MultiCrop has two recipes. They count by their share of the loss: it has the pair of
    full-size views with weight 1, and all pairs with a small view together with weight 1. So, on one side, small views
    are a half; on both sides, a quarter, since each of these pairs has a full-size view on the other side.

    Args:
        designs: dict from names to sides.

    Returns:
        Two dicts from recipe to weight, of the source and of the target; None for a run of several designs, or of one
        that the paper lacks, which has recipes of its own.
    """
    if len(designs) > 1 or not designs.keys() <= {"multicrop", *SINGLE}:
        return None
    for name, side in designs.items():
        if name == "multicrop":
            small = 0.25 if side == "both" else 0.5
            own, other = {"multicrop_full": 1 - small, "multicrop_small": small}, {"multicrop_full": 1}
        else:
            own, other = ({recipe: 1} for recipe in SINGLE[name])
        return {"source": (own, other), "target": (other, own), "both": (own, own)}[side]
    return {"baseline": 1}, {"baseline": 1}


def variances_of_sides(designs, measured):
    """The variance of the source and of the target, in hundredths: a dict, which is empty if they are not known.

    Args:
        designs: as for `recipes_of`. measured: what moco.tools.variance found by the baseline's encoder, or None.
    """
    sides = recipes_of(designs)
    if sides is None or measured is None:
        return {}
    source, target = (sum(weight * measured[recipe]["variance"] for recipe, weight in side.items()) for side in sides)
    return {"variance_source": source, "variance_target": target}
