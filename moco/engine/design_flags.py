"""--design and its shorthands, the --enable flags: which designs are on, and on which side each of them is."""

import argparse
from functools import partial
from typing import NamedTuple

from moco.engine.command_line import nearest, number
from moco.engine.recipe_flag import add_recipe_flag
from moco.views.augmentation_recipes import SIDES


class Design(NamedTuple):
    """A design of the paper: its `title` there, and the `side` on which the paper has it."""

    title: str
    side: str


DESIGNS = {
    "multicrop": Design("MultiCrop", "source"),
    "scalemix": Design("ScaleMix", "source"),
    "asym_aug": Design("AsymAug", "source"),  # the stronger recipe is on this side
    "asym_bn": Design("AsymBN", "target"),
    "mean_encoding": Design("MeanEnc", "target"),
}
ON = {"source": "on the source", "target": "on the target", "both": "on both sides"}  # a design's side, in words
PAPER_SIDES = tuple(f"{name}:{design.side}" for name, design in DESIGNS.items())  # all five, as the paper has them


def add_design_flags(parser):
    """Adds the flags of the designs, and --recipe, to `parser`."""
    add = parser.add_argument_group("asymmetric designs").add_argument
    help = (
        f"put a design on a side; repeat it for several designs. NAME: {', '.join(DESIGNS)}. SIDE: "
        f"{', '.join(SIDES)} (default: the paper's side, as with the flags below). For example: multicrop:target"
    )
    add("--design", metavar="NAME[:SIDE]", action="append", type=_word, default=[], help=help)
    shorthand = partial(add, action="store_true")
    shorthand("--enable-multicrop", help="MultiCrop: the source gets 6 additional small views")
    shorthand("--enable-scalemix", help="ScaleMix: the source's view is mixed from two views")
    help = "AsymAug: the source gets stronger augmentation, the target gets weaker augmentation"
    shorthand("--enable-asym-aug", "--enable-asymm-aug", help=help)
    help = "AsymBN: the batch normalisation of the target's projector is synchronised over several batch-norm groups"
    shorthand("--enable-asym-bn", help=help)
    help = "number of batch-norm groups that AsymBN synchronises; a run has --bn-splits groups per process"
    add("--asym-bn-group", metavar="N", default=8, type=number(int, 1), help=help)
    shorthand("--enable-mean-encoding", help="MeanEnc: each key is the mean target encoding of 2 views")
    add_recipe_flag(parser)
    parser.settle.append(_settle)


def _settle(args):
    """Joins the shorthands to `args.design`, which becomes a list as of `as_flags`."""
    words = [*args.design]
    for name, design in DESIGNS.items():
        times = sum(word.startswith(f"{name}:") for word in words)
        if times > 1:
            raise ValueError(f"--design names {name} twice; give it once, for both sides as {name}:both")
        if vars(args).pop(f"enable_{name}"):
            if times:
                flag = f"--enable-{name.replace('_', '-')}"
                raise ValueError(f"{name} is given by {flag} and by --design; give only one of them")
            words.append(f"{name}:{design.side}")
    args.design = as_flags(designs_of({"design": words}))


def parse_design(text):
    """Converts NAME[:SIDE] to (name, side); without a side, it is the paper's.

    Raises:
        ValueError: there is no such design or side.
    """
    name, colon, side = text.partition(":")
    if name not in DESIGNS or (colon and side not in SIDES):
        wrong, known, what = (side, SIDES, "side") if name in DESIGNS else (name, DESIGNS, "design")
        similar = nearest(wrong.replace("-", "_"), known)
        guess = f" (did you mean {similar}?)" if similar else ""
        raise ValueError(f"{wrong!r} is no {what}{guess}; the {what}s are {', '.join(known)}; write NAME or NAME:SIDE")
    return name, side or DESIGNS[name].side


def _word(text):
    """Converter for argparse: NAME:SIDE, always with the side."""
    try:
        return ":".join(parse_design(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def designs_of(options):
    """The designs that are on: dict of names to sides, in the order of DESIGNS.

    Args:
        options: those of a command line (a Namespace), or of a checkpoint or a log (a dict). Older ones have a boolean
            `enable_NAME` for each design, not `design`.
    """
    options = options if isinstance(options, dict) else vars(options)
    older = [f"{name}:{design.side}" for name, design in DESIGNS.items() if options.get(f"enable_{name}")]
    words = options.get("design", older)
    words = words if isinstance(words, (list, tuple)) else ()
    return {name: side for name in DESIGNS for side in SIDES if f"{name}:{side}" in words}


def as_flags(designs):
    """Designs, as `designs_of` returns them, as the words of --design; the list that a checkpoint stores."""
    return [f"{name}:{side}" for name, side in designs.items()]


def in_words(designs, joint=", "):
    """Designs as a phrase, such as "MultiCrop on the source, AsymBN on both sides"; "" if there are none.

    Args:
        designs: as `designs_of` returns them. Sides are named unless all designs are on the paper's.
        joint: what stands between two designs.
    """

    named = any(side != DESIGNS[name].side for name, side in designs.items())
    return joint.join(DESIGNS[name].title + f" {ON[side]}" * named for name, side in designs.items())
