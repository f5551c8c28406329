"""--recipe: changes fields of the base augmentation recipe."""

import argparse

from moco.views.augmentation_recipes import FLAGGED, field_in_words, parse_field


def add_recipe_flag(parser):
    """Adds the flag to `parser`. Its value is a sorted list of words such as blur_p=0, which a checkpoint stores."""
    help = (
        f"change a field of the base augmentation recipe, as in blur_p=0 or scale=0.2,1; repeat the flag for several "
        f"fields: {', '.join(FLAGGED)}. The small views of MultiCrop keep their own scale, and the target's views of "
        "AsymAug follow only in ratio and flip_p. A scale that is given here also replaces MultiCrop's 0.14,1"
    )
    parser.add_argument("--recipe", metavar="FIELD=VALUE", action=_Collect, default=[], help=help)


class _Collect(argparse.Action):
    def __call__(self, parser, namespace, text, option_string=None):
        given = getattr(namespace, self.dest)
        try:
            name, value = parse_field(text)
        except ValueError as error:
            raise argparse.ArgumentError(self, str(error)) from None
        if twice := next((word for word in given if word.startswith(f"{name}=")), None):
            raise argparse.ArgumentError(self, f"{name} is given twice, {twice} and {text}; give it once")
        setattr(namespace, self.dest, sorted([*given, field_in_words(name, value)]))


def recipe_of(args):
    """The fields of --recipe, a dict of names to values for a View."""
    return dict(map(parse_field, args.recipe))
