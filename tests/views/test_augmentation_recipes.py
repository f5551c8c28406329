"""The bounds of a recipe, and the designs as functions from plan to plan."""

import math
from dataclasses import fields, replace
from itertools import permutations

import pytest

from moco.asymmetry.asym_aug import asym_aug_plan
from moco.asymmetry.mean_encoding import mean_encoding_plan
from moco.asymmetry.multicrop import multicrop_plan
from moco.asymmetry.scalemix import mix_box, scalemix_plan
from moco.views.augmentation_recipes import (
    DEFAULTS,
    RULES,
    Side,
    View,
    ViewPlan,
    baseline_plan,
    field_in_words,
    parse_field,
)

DESIGNS = [multicrop_plan, scalemix_plan, asym_aug_plan, mean_encoding_plan]


FULL, RESCALED, SMALL = View(224, (0.2, 1.0)), View(224, (0.14, 1.0)), View(96, (0.05, 0.14))
MIXED, STRONGER = View(mix_box=mix_box), View(randaugment=True)
WEAKER = View(scale=(0.08, 1.0), jitter_p=0, gray_p=0, blur_p=0)
# What a design makes of a side that it is on, and of the other side.
CHANGES = {
    multicrop_plan: (Side((RESCALED,), (SMALL,) * 6), Side((RESCALED,))),
    scalemix_plan: (Side((MIXED,)), Side((FULL,))),
    asym_aug_plan: (Side((STRONGER,)), Side((WEAKER,))),
    mean_encoding_plan: (Side((FULL,) * 2, averaged=True), Side((FULL,))),
}


@pytest.mark.parametrize("design, sides", CHANGES.items(), ids=[design.__name__ for design in CHANGES])
def test_each_design_changes_the_side_that_it_is_on(design, sides):
    base = baseline_plan()
    assert base == ViewPlan(Side((FULL,)), Side((FULL,))) and base.mini == ()
    on, other = sides
    assert design(base, side="source") == ViewPlan(on, other)
    assert design(base, side="target") == ViewPlan(other, on)
    assert design(base, side="both") == ViewPlan(on, on)
    assert design(base) == design(base, side="target" if design is mean_encoding_plan else "source")


def test_the_small_views_are_in_proportion():
    assert [multicrop_plan(baseline_plan(size)).mini[0].size for size in (32, 112, 1)] == [14, 48, 1]


@pytest.mark.parametrize("aug, weak", [("source", "target"), ("target", "source"), ("both", "")])
@pytest.mark.parametrize("other", ["source", "target", "both"])
def test_designs_commute(aug, weak, other):
    designs = dict.fromkeys(DESIGNS, other) | {asym_aug_plan: aug}
    results = set()
    for order in permutations(designs):
        plan = baseline_plan()
        for design in order:
            plan = design(plan, side=designs[design])
        results.add(plan)
    (plan,) = results
    for name, side in (("source", plan.source), ("target", plan.target)):
        on = other in (name, "both")
        view = WEAKER if name == weak else View(224, (0.14, 1.0), randaugment=True)
        view = replace(view, mix_box=mix_box if on else None)
        assert side == Side((view,) * (2 if on else 1), (SMALL,) * (6 if on else 0), averaged=on)


def test_a_plan_splits_the_views_of_an_image_as_the_model_takes_them():
    plan = mean_encoding_plan(multicrop_plan(baseline_plan(48), 24, side="both"))
    names = [f"q{i}" for i in range(7)] + [f"k{i}" for i in range(8)]
    assert [view.size for view in plan.views] == [48, *[24] * 6, 48, 48, *[24] * 6]
    views = plan.split(names)
    assert list(views.items()) == [
        ("im_q", names[:1]),
        ("im_q_mini", names[1:7]),
        ("im_k", names[7:9]),
        ("im_k_mini", names[9:]),
    ]


def test_the_words_tell_every_design_and_side_apart():
    base = baseline_plan()
    sides = ("source", "target", "both")
    lines = {str(plan) for plan in [base, *(design(base, side=side) for design in DESIGNS for side in sides)]}
    assert len(lines) == 13
    for line in lines:
        assert line.startswith("source: ") and " | target: " in line and "\n" not in line
    assert str(mean_encoding_plan(base)).endswith(f"| target: mean of 2 x [{FULL}]")


RECIPE = {"jitter": (0.8, 0.8, 0.8, 0.2), "blur_p": 0.0, "flip_p": 0.0, "ratio": (1.0, 1.0)}


def test_a_changed_recipe_is_that_of_every_view_but_for_the_designs_own_fields():
    for scale in ((0.5, 1.0), (0.2, 1.0)):
        results = set()
        for order in permutations([lambda plan, s=scale: multicrop_plan(plan, 24, s), *DESIGNS[1:]]):
            plan = baseline_plan(48, scale=scale, **RECIPE)
            for design in order:
                plan = design(plan)
            results.add(plan)
        (plan,) = results
        strong = View(48, scale, **RECIPE, randaugment=True, mix_box=mix_box)
        assert plan.source == Side((strong,), (View(24, (0.05, 0.14), **RECIPE),) * 6)
        weak = {**RECIPE, "jitter_p": 0.0, "gray_p": 0.0, "blur_p": 0.0}
        assert plan.target == Side((View(48, (0.08, 1.0), **weak),) * 2, averaged=True)


def test_the_words_show_what_differs_from_moco_v2():
    assert str(View(32)) == "32px crop 0.2-1 jitter gray blur flip"
    everything = View(32, (0.1, 0.9), (1.0, 2.0), (0, 0, 0, 0.5), 0.1, 0.3, (1.0, 1.0), 1.0, 0.25)
    assert str(everything) == (
        "32px crop 0.1-0.9 (ratio=1,2) jitter (jitter_p=0.1 jitter=0,0,0,0.5) gray (gray_p=0.3) "
        "blur (blur_p=1 sigma=1,1) flip (flip_p=0.25)"
    )
    assert str(View(32, jitter_p=0, gray_p=0, blur_p=0, flip_p=0, jitter=(0, 0, 0, 0))) == "32px crop 0.2-1"


def test_a_field_is_parsed_and_written_in_one_way():
    for text in ("scale=0.2,1", "scale=0.20,1.0", "scale=2e-1,1"):
        assert parse_field(text) == ("scale", (0.2, 1.0)) and field_in_words(*parse_field(text)) == "scale=0.2,1"
    assert parse_field("blur_p=-0") == ("blur_p", 0) and field_in_words("blur_p", -0.0) == "blur_p=0"
    third = field_in_words("jitter_p", 1 / 3)
    assert parse_field(third) == ("jitter_p", 1 / 3)  # no digit is lost
    for name, value in DEFAULTS.items():
        assert parse_field(field_in_words(name, value)) == (name, value)


FORM = "is not FIELD=VALUE with one of the fields scale, ratio, jitter, jitter_p, gray_p, sigma, blur_p, flip_p; for"


@pytest.mark.parametrize(
    "text, message",
    [
        ("blur_p", FORM),
        ("blurp=0", FORM),
        ("size=32", FORM),
        ("randaugment=1", FORM),
        ("=", FORM),
        ("blur_p=", "the blur_p must be a probability from 0 to 1; the default is blur_p=0.5"),
        ("blur_p=2", "the blur_p must be a probability from 0 to 1; the default is blur_p=0.5"),
        ("blur_p=nan", "the blur_p must be a probability"),
        ("blur_p=0,1", "the blur_p must be a probability"),
        ("scale=0.2", "must be two numbers (low, high) with 0 < low <= high <= 1; the default is scale=0.2,1"),
        ("scale=0,1", "the scale must be two numbers"),
        ("scale=0.2,1,1", "the scale must be two numbers"),
        ("scale=a,1", "the scale must be two numbers"),
        (
            "jitter=0.4",
            "four strengths (brightness, contrast, saturation, hue) from 0 to 1000, the hue's at most 0.5",
        ),
        ("jitter=0.4,0.4,0.4,0.6", "four strengths"),
        ("sigma=0,inf", "the sigma must be two numbers (low, high) with 0 <= low"),
    ],
)
def test_a_field_that_does_not_fit_is_refused(text, message):
    with pytest.raises(ValueError) as error:
        parse_field(text)
    assert str(error.value).startswith(repr(text)) and message in str(error.value) and "\n" not in str(error.value)


def constant(*box):
    """A mix_box that always returns the same box."""
    return lambda height, width, u: box


NAN, INF = math.nan, math.inf
BAD_FIELDS = {  # of a view of 24 px
    "size": [0, -3, 24.0, "24", None],
    "scale": [(0.2, 1.5), (1.0, 0.2), (0.0, 1.0), (-1, 1), (NAN, 1), (0.2, NAN), [0.2, 1.0], 0.5, (0.1, 0.2, 1)],
    "ratio": [(0, 1), (4 / 3, 3 / 4), (-1, 1), (1, INF), (1, 1001), (1,), None],
    "jitter": [
        (*(0.4,) * 3, 0.6),
        (*(0.4,) * 3, -0.1),
        (-0.4, 0, 0, 0),
        (0, NAN, 0, 0),
        (1001, 0, 0, 0),
        (0, 0, 0),
        0.4,
    ],
    **{name: [-0.1, 1.5, 50, NAN, None] for name in ("jitter_p", "gray_p", "blur_p", "flip_p")},
    "sigma": [(-1, 1), (2.0, 0.1), (NAN, 1), (0, INF), (1, 1001), 1.0, ["0", "1"]],
    "randaugment": [9, "no", None],
    "mix_box": [True, constant(-3, -3, 5, 5), constant(5, 5, 25, 9), constant(1.5, 1, 5, 5), constant(1, 2, 3)],
}


@pytest.mark.parametrize("name, value", [(name, value) for name, values in BAD_FIELDS.items() for value in values])
def test_a_field_out_of_bounds_is_refused_where_the_view_is_made(name, value):
    with pytest.raises(ValueError, match=f"^the {name} of a View is .*, but must be ") as error:
        View(**{"size": 24, name: value})
    assert repr(value) in str(error.value) and "\n" not in str(error.value)


def test_a_box_that_leaves_the_view_for_some_numbers_only_is_refused():
    for box in (lambda h, w, u: (0, 0, round((1 + u[0]) * h), w), lambda h, w, u: (0, int(-5 * u[2]), h, w)):
        with pytest.raises(ValueError, match="the mix_box of a View is "):
            View(24, mix_box=box)
    with pytest.raises(ValueError, match="the mix_box of a View is ") as error:
        View(mix_box=lambda height, width: (0, 0, 1, 1))
    assert isinstance(error.value.__cause__, TypeError)  # which says what is wrong with the function


def test_every_field_has_a_rule_and_the_bounds_themselves_are_allowed():
    assert set(RULES) == {field.name for field in fields(View)} == set(BAD_FIELDS)
    View(
        1, (1e-9, 1), (1000, 1000), (1000, 1000, 1000, 0.5), 0, 1, (0, 1000), 0, 1, True, lambda h, w, u: (0, 0, h, w)
    )
    View(jitter=(0, 0, 0, 0), mix_box=constant(5, 5, 3, 3))  # an empty box


@pytest.mark.parametrize(
    "side, message",
    [
        ((View(),), "the full of a Side is View"),
        (([View()],), "the full of a Side is "),
        (((224,),), r"the full of a Side is \(224,\), but must be a tuple of Views"),
        (((),), "the full of a Side is empty"),
        (((View(32), View(24)),), "the full of a Side has views of 32 and 24 px"),
        (((View(),), (View(9), View(8))), "the mini of a Side has views of 9 and 8 px"),
    ],
)
def test_a_side_whose_views_can_not_be_encoded_together_is_refused(side, message):
    with pytest.raises(ValueError, match=message):
        Side(*side)


def test_several_views_of_the_target_must_be_averaged():
    two = (View(), View())
    assert ViewPlan(Side(two), Side(two, averaged=True)).source.encodings == 2
    with pytest.raises(ValueError, match="the target has 2 full-size views, so they must be averaged"):
        ViewPlan(Side(two), Side(two))
