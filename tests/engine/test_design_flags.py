"""--design and the --enable flags: which designs are on, on which side, and what is refused."""

import pytest

import main_moco
from moco.engine.design_flags import DESIGNS, PAPER_SIDES, as_flags, designs_of, in_words

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
    assert in_words(designs_of(args)) == "MultiCrop on the target, AsymBN, MeanEnc on both sides"
    assert parsed().design == [] and in_words({}) == ""
    assert parsed(*SHORTHANDS[::-1]).design == list(PAPER_SIDES) == as_flags(designs_of(parsed(*SHORTHANDS)))


@pytest.mark.parametrize(
    "words, message",
    [
        (["--design", "multicrop:both", "--enable-multicrop"], "multicrop is on already; give it once, by --design"),
        (
            ["--enable-asym-bn", "--design", "asym_bn:source"],
            "asym_bn is on already; give it once",
        ),
        (["--design", "scalemix", "--design", "scalemix:target"], "scalemix is on already"),
        (["--design", "multicorp"], "'multicorp' is not NAME or NAME:SIDE (did you mean multicrop?); the names are "),
        (["--design", "asym-bn:target"], "'asym-bn:target' is not NAME or NAME:SIDE (did you mean asym_bn?)"),
        (
            ["--design", "multicrop:targte"],
            "(did you mean target?); the names are multicrop, ",
        ),
        (["--design", "multicrop:"], "'multicrop:' is not NAME or NAME:SIDE; the names are "),
        (["--design", ""], "'' is not NAME or NAME:SIDE; the names"),
        (["--design", "multicrop:source:target"], "the sides are source, target, both"),
    ],
)
def test_what_is_refused(words, message, call):
    code, _, error = call(main_moco.build_parser().parse_args, "D", *words)
    assert code == 2 and error.count("\n") == 1 and message in error


def test_the_designs_of_older_and_of_strange_files():
    older = {"enable_multicrop": True, "enable_scalemix": False, "enable_asym_bn": True}
    assert designs_of(older) == {"multicrop": "source", "asym_bn": "target"}
    strange = ["asym_bn:target", "cutmix:source", "multicrop:left", 7, None]
    assert designs_of({"design": strange}) == {"asym_bn": "target"}
    assert designs_of({"design": 5}) == designs_of({}) == {}
