"""--recipe: changes fields of the base augmentation recipe."""

import argparse

from moco.views.augmentation_recipes import DEFAULTS, FLAGGED, field_in_words, parse_field


def add_recipe_flag(parser):
    """Adds the flag to `parser`. Its value is a sorted list of words such as blur_p=0, which a checkpoint stores."""
    help = (
        f"change a field of the base augmentation recipe, as in blur_p=0 or scale=0.2,1; can be given for several "
        f"fields: {', '.join(FLAGGED)}. With MultiCrop, a scale changes only the full-size views. With AsymAug, only "
        "ratio and flip_p also change the target's views"
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
        # With MultiCrop the scale has another default. Otherwise a default changes nothing, so it is not stored.
        if name == "scale" or value != DEFAULTS[name]:
            setattr(namespace, self.dest, sorted([*given, field_in_words(name, value)]))


def recipe_of(args):
    """The fields of --recipe, a dict of names to values for a View."""
    return dict(map(parse_field, args.recipe))
