"""The runs of a study: their names, which say where each design is, and the flags that turn the designs on."""

from moco.engine.design_flags import DESIGNS, as_flags, parse_design
from moco.views.augmentation_recipes import SIDES

BASELINE = "baseline"
RANDOM = "random"  # a network with random weights; it is measured beside the baseline


def parse_run(text):
    """Converts a name such as multicrop:target+mean_encoding to the designs of the run.

    Returns:
        dict from the names of designs to sides, in the order of DESIGNS; {} for the baseline.

    Raises:
        ValueError: there is no such design or side, or a design is named twice.
    """
    if text == BASELINE:
        return {}
    found = {}
    for word in text.split("+"):
        try:
            name, side = parse_design(word)
        except ValueError as error:
            raise ValueError(
                f"the run {text!r} is neither {BASELINE} nor designs that are joined by +: {error}"
            ) from None
        if name in found:
            raise ValueError(f"the run {text!r} names {name} twice; give it once, with :both for both sides")
        found[name] = side
    return {name: found[name] for name in DESIGNS if name in found}


def name_of(designs):
    """The one name of a run with these designs; it leaves out the paper's sides."""
    return "+".join(name if side == DESIGNS[name].side else f"{name}:{side}" for name, side in designs.items()) or (
        BASELINE
    )


def paper_runs():
    """The names of the preset: the baseline, and each design on the source, on the target and on both sides."""
    return [BASELINE, *(name_of({name: side}) for name in DESIGNS for side in SIDES)]


def design_flags(name):
    """The flags of main_moco.py for a run, a list of words."""
    return [word for design in as_flags(parse_run(name)) for word in ("--design", design)]


def folder_of(name, seed):
    """The sub-folder of --out for a run, such as multicrop-target/seed0."""
    return f"{name.replace(':', '-')}/seed{seed}"
