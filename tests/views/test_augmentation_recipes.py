"""The designs as functions from plan to plan."""

from itertools import permutations

from moco.asymmetry.asym_aug import asym_aug_plan
from moco.asymmetry.mean_encoding import mean_encoding_plan
from moco.asymmetry.multicrop import multicrop_plan
from moco.asymmetry.scalemix import mix_box, scalemix_plan
from moco.views.augmentation_recipes import View, baseline_plan

DESIGNS = [multicrop_plan, scalemix_plan, asym_aug_plan, mean_encoding_plan]


def test_each_design_changes_its_own_side():
    base = baseline_plan()
    assert base.source == base.target == (View(224, (0.2, 1.0)),) and base.mini == ()
    multicrop = multicrop_plan(base)
    assert multicrop.source == multicrop.target == (View(224, (0.14, 1.0)),)
    assert multicrop.mini == (View(96, (0.05, 0.14)),) * 6
    mixed = scalemix_plan(base)
    assert mixed.source == (View(mix_box=mix_box),) and mixed.target == base.target
    asym = asym_aug_plan(base)
    assert asym.source == (View(randaugment=True),)
    assert asym.target == (View(scale=(0.08, 1.0), jitter_p=0, gray_p=0, blur_p=0),)
    mean = mean_encoding_plan(base)
    assert mean.target == base.target * 2 and mean.source == base.source


def test_designs_commute():
    results = set()
    for order in permutations(DESIGNS):
        plan = baseline_plan()
        for design in order:
            plan = design(plan)
        results.add(plan)
    (plan,) = results
    assert plan.source == (View(224, (0.14, 1.0), randaugment=True, mix_box=mix_box),)
    assert plan.target == (View(224, (0.08, 1.0), jitter_p=0, gray_p=0, blur_p=0),) * 2
    assert plan.mini == (View(96, (0.05, 0.14)),) * 6


def test_the_words_tell_every_design_apart():
    base = baseline_plan()
    lines = {str(plan) for plan in [base, *(design(base) for design in DESIGNS)]}
    assert len(lines) == 5
    for line in lines:
        assert line.startswith("source: ") and " | target: " in line and "\n" not in line
