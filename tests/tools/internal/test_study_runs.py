"""The names of a study's runs: what they mean, their one form, and what is refused."""

import pytest

import main_moco
from moco.engine.design_flags import designs_of
from moco.tools.internal.study_runs import design_flags, folder_of, name_of, paper_runs, parse_run

NAMES = [
    # as given, the one name, the designs, and the folder
    ("baseline", "baseline", {}, "baseline"),
    ("multicrop", "multicrop", {"multicrop": "source"}, "multicrop"),
    ("multicrop:source", "multicrop", {"multicrop": "source"}, "multicrop"),
    ("asym_bn:both", "asym_bn:both", {"asym_bn": "both"}, "asym_bn-both"),
    (
        "mean_encoding:source+multicrop:target",
        "multicrop:target+mean_encoding:source",
        {"multicrop": "target", "mean_encoding": "source"},
        "multicrop-target+mean_encoding-source",
    ),
]


@pytest.mark.parametrize("text, name, designs, folder", NAMES)
def test_names(text, name, designs, folder):
    found = parse_run(text)
    assert found == designs and list(found) == list(designs)
    assert name_of(found) == name and parse_run(name) == designs
    assert folder_of(name, 3) == f"{folder}/seed3"
    options = main_moco.build_parser().parse_args([*design_flags(text), "DIR"])
    assert designs_of(options) == designs


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "moco",
            "the run 'moco' is neither baseline nor designs that are joined by +: 'moco' is no design",
        ),
        ("multicrop:left", "'left' is no side"),
        ("baseline+multicrop", "'baseline' is no design"),
        ("multicrop:source+multicrop:target", "names multicrop twice; give it once, with :both for both sides"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(ValueError) as error:
        parse_run(text)
    assert message in str(error.value)


def test_the_preset_has_each_design_on_each_side():
    names = paper_runs()
    assert len(set(names)) == len(names) == 16 and names[0] == "baseline"
    pairs = [pair for name in names for pair in parse_run(name).items()]
    designs = ("multicrop", "scalemix", "asym_aug", "asym_bn", "mean_encoding")
    assert pairs == [(design, side) for design in designs for side in ("source", "target", "both")]
    assert [name for name in names if ":" not in name] == ["baseline", *designs]  # the paper's sides
