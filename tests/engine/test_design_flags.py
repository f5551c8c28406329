"""--design and the --enable flags: which designs are on, on which side, and what is refused."""

from functools import partial

import pytest

import main_moco
from moco.asymmetry.asym_aug import asym_aug_plan
from moco.asymmetry.mean_encoding import mean_encoding_plan
from moco.asymmetry.multicrop import multicrop_plan
from moco.asymmetry.scalemix import scalemix_plan
from moco.engine.design_flags import DESIGNS, PAPER_SIDES, as_flags, designs_of, in_words
from moco.views.augmentation_recipes import SIDES, baseline_plan
from tests.tiny_net import use_tiny_net

SHORTHANDS = ["--enable-multicrop", "--enable-scalemix", "--enable-asym-aug", "--enable-asym-bn"]
SHORTHANDS += ["--enable-mean-encoding"]


def parsed(*words):
    return main_moco.build_parser().parse_args(["D", *words])


@pytest.mark.parametrize("flag, name", [*zip(SHORTHANDS, DESIGNS, strict=True)])
def test_a_shorthand_and_a_name_alone_mean_the_papers_side(flag, name):
    args = parsed(flag)
    assert args == parsed("--design", name) == parsed("--design", f"{name}:{DESIGNS[name].side}")
    assert designs_of(args) == {name: DESIGNS[name].side}
    assert in_words(designs_of(args)) == DESIGNS[name].title
    assert main_moco.view_plan(args) == main_moco.view_plan(parsed("--design", f"{name}:{DESIGNS[name].side}"))


def test_designs_are_in_the_papers_order_however_they_are_given():
    args = parsed("--design", "mean_encoding:both", "--enable-asym-bn", "--design=multicrop:target")
    assert args.design == ["multicrop:target", "asym_bn:target", "mean_encoding:both"]
    assert in_words(designs_of(args)) == "MultiCrop on the target, AsymBN on the target, MeanEnc on both sides"
    assert parsed().design == [] and in_words({}) == ""
    assert parsed(*SHORTHANDS, *SHORTHANDS, "--enable-asymm-aug") == parsed(*SHORTHANDS)  # repeated, as ever
    assert parsed(*SHORTHANDS[::-1]).design == list(PAPER_SIDES) == as_flags(designs_of(parsed(*SHORTHANDS)))


@pytest.mark.parametrize(
    "words, message",
    [
        (
            "--design multicrop:both --enable-multicrop",
            "multicrop is given by --enable-multicrop and by --design; give",
        ),
        (
            "--enable-asym-bn --design asym_bn:source",
            "asym_bn is given by --enable-asym-bn and by --design; give only",
        ),
        (
            "--design scalemix --design scalemix:target",
            "--design names scalemix twice; give it once, for both sides as",
        ),
        (
            "--design multicorp",
            "'multicorp' is no design (did you mean multicrop?); the designs are multicrop, scalemix",
        ),
        ("--design asym-bn:target", "'asym-bn' is no design (did you mean asym_bn?); the designs"),
        (
            "--design multicrop:targte",
            "'targte' is no side (did you mean target?); the sides are source, target, both;",
        ),
        ("--design multicrop:", "'' is no side; the sides are source, target, both; write NAME or NAME:SIDE"),
        ("--design=", "'' is no design; the designs are multicrop, "),
        (
            "--design multicrop:source:target",
            "'source:target' is no side (did you mean target?); the sides are source, target, both",
        ),
    ],
)
def test_what_is_refused(words, message, call):
    code, _, error = call(main_moco.build_parser().parse_args, "D", *words.split())
    assert code == 2 and error.count("\n") == 1 and message in error


def test_the_designs_of_older_and_of_strange_files():
    older = {"enable_multicrop": True, "enable_scalemix": False, "enable_asym_bn": True}
    assert designs_of(older) == {"multicrop": "source", "asym_bn": "target"}
    strange = ["asym_bn:target", "cutmix:source", "multicrop:left", 7, None]
    assert designs_of({"design": strange}) == {"asym_bn": "target"}
    assert designs_of({"design": 5}) == designs_of({}) == {}


PLANS = {"multicrop": partial(multicrop_plan, mini_size=16), "scalemix": scalemix_plan, "asym_aug": asym_aug_plan}
PLANS |= {"mean_encoding": mean_encoding_plan, "asym_bn": lambda plan, side: plan}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", DESIGNS)
def test_the_flag_decides_the_views_and_the_model(name, side, monkeypatch):
    use_tiny_net(monkeypatch)
    words = [
        "--design",
        f"{name}:{side}",
        "--crop-size",
        "32",
        "--mini-crop-size",
        "16",
        "--moco-k",
        "8",
        "--seed",
        "0",
    ]
    args = parsed(*words, "--bn-splits", "2")
    args.compile = False
    assert main_moco.view_plan(args) == PLANS[name](baseline_plan(32), side=side)
    model, _ = main_moco.build(args)
    groups = {"source": model.encoder_q.fc[1].splits, "target": model.encoder_k.fc[1].splits}
    assert groups == {each: 1 if name == "asym_bn" and side in (each, "both") else 2 for each in groups}
    assert model.mean_source == (name == "mean_encoding" and side != "target")
