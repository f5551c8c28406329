"""--recipe: what is stored does not depend on the order of the flags and the spelling of the numbers."""

import json

import pytest

import main_moco
from moco.engine.recipe_flag import recipe_of
from moco.views.augmentation_recipes import View
from tests.test_house import read


def parsed(*words):
    return main_moco.build_parser().parse_args(["D", *words])


def test_equal_recipes_are_stored_alike():
    a = parsed("--recipe", "scale=0.20,1.0", "--enable-multicrop", "--recipe", "blur_p=0")
    b = parsed("--recipe", "blur_p=0.0", "--recipe=scale=0.2,1")
    assert a.recipe == b.recipe == ["blur_p=0", "scale=0.2,1"] == json.loads(json.dumps(a.recipe))
    assert recipe_of(a) == {"blur_p": 0.0, "scale": (0.2, 1.0)}
    assert parsed().recipe == [] and recipe_of(parsed()) == {}
    assert parsed("--recipe", "blur_p=0.5").recipe == []  # the default


@pytest.mark.parametrize(
    "words, message",
    [
        (["blur_p=0", "blur_p=0"], "argument --recipe: blur_p is given twice, blur_p=0 and blur_p=0; give it once"),
        (["blur_p=2"], "argument --recipe: 'blur_p=2': the blur_p must be a probability from 0 to 1; the default is"),
        (["mix_box=1"], "argument --recipe: 'mix_box=1' is not FIELD=VALUE with one of the fields scale, ratio,"),
    ],
)
def test_what_is_refused(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parsed(*(word for text in words for word in ("--recipe", text)))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and message in error


@pytest.mark.parametrize(
    "scale, full", [([], (0.14, 1.0)), (["--recipe", "scale=0.2,1"], (0.2, 1.0)), (["--recipe", "scale=1,1"], (1, 1))]
)
def test_a_given_scale_wins_over_that_of_multicrop(scale, full):
    words = ["--crop-size", "32", "--mini-crop-size", "16", "--enable-multicrop", "--recipe", "gray_p=0.5"]
    plan = main_moco.view_plan(parsed(*words, *scale))
    assert plan.source.full == plan.target.full == (View(32, full, gray_p=0.5),)
    assert plan.mini == (View(16, (0.05, 0.14), gray_p=0.5),) * 6


def test_the_programs_that_take_the_designs_take_it_too():
    for module in ("tools/view_gallery", "benchmarks/loader"):
        assert "add_design_flags(parser)" in read(f"moco/{module}.py")
