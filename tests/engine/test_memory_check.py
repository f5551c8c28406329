"""Views that do not fit into the memory are refused, to the byte."""

import pytest

from moco.asymmetry.multicrop import multicrop_plan
from moco.engine import memory_check
from moco.engine.memory_check import check_views
from moco.views.augmentation_recipes import baseline_plan


def test_views_are_counted_to_the_byte(monkeypatch):
    plan = multicrop_plan(baseline_plan(100), 10)
    need = 5 * 4 * (2 * 3 * 100 * 100 + 6 * 3 * 10 * 10)
    monkeypatch.setattr(memory_check, "memory", lambda: need)
    check_views(plan, 5, 4, "less")
    monkeypatch.setattr(memory_check, "memory", lambda: need - 1)
    with pytest.raises(ValueError, match=r"views of 100 and 10 pixels for 5 images need .*-size, or fewer --images$"):
        check_views(plan, 5, 4, "fewer --images")
