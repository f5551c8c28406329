"""The variance of a run's two sides, from those of recipes: each design on each side, with figures worked out here."""

import pytest

from moco.evaluation.variance import paper_recipes
from moco.tools.internal.study_runs import paper_runs, parse_run
from moco.tools.internal.study_variance import recipes_of, variances_of_sides

MEASURED = {
    "baseline": 8,
    "multicrop_small": 40,
    "multicrop_full": 10,
    "scalemix": 12,
    "stronger": 11,
    "weaker": 3,
    "mean_encoding": 4,
    "asym_bn": 7,
}
SIDES = {  # design: variance of the source and of the target, with the design on the source, the target and both
    "multicrop": [(25, 10), (10, 25), (17.5, 17.5)],  # 25 = (10 + 40) / 2; 17.5 = (3 * 10 + 40) / 4
    "scalemix": [(12, 8), (8, 12), (12, 12)],
    "asym_aug": [(11, 3), (3, 11), (11, 11)],
    "asym_bn": [(7, 8), (8, 7), (7, 7)],
    "mean_encoding": [(4, 8), (8, 4), (4, 4)],
}


def test_each_design_on_each_side():
    measured = {name: {"variance": value} for name, value in MEASURED.items()}
    found = [variances_of_sides(parse_run(name), measured) for name in paper_runs()]
    expected = [(8, 8), *(pair for pairs in SIDES.values() for pair in pairs)]
    assert found == [{"variance_source": source, "variance_target": target} for source, target in expected]


@pytest.mark.parametrize("name", paper_runs())
def test_the_recipes_of_a_side_are_measured_and_weigh_1(name):
    for side in recipes_of(parse_run(name)):
        assert sum(side.values()) == 1 and side.keys() <= paper_recipes().keys()


def test_what_is_not_known():
    assert variances_of_sides({"multicrop": "source", "asym_bn": "target"}, {}) == {}  # recipes of its own
    assert variances_of_sides({}, None) == {}  # not measured


def test_a_design_of_ones_own_has_no_known_variance():
    assert recipes_of({"cutmix": "source"}) is None and variances_of_sides({"cutmix": "source"}, {}) == {}
