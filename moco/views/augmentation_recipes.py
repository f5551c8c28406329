"""The augmentation recipes as data: a `View` is one recipe, a `Side` has views, a `ViewPlan` has source and target.

The baseline plan gives the source and the target one view each, from the same recipe. A design that changes what a
side sees is a function from plan to plan in `moco/asymmetry/`. Both back ends, Pillow on the CPU and tensors on the
device, can execute every plan.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from operator import index

BASE_SCALE = (0.2, 1.0)
LIMIT = 1000  # far beyond what leaves anything to see; up to here both back ends agree


@dataclass(frozen=True)
class View:
    """One augmentation recipe, MoCo v2's by default. The fields are the steps, in the order of their application.

    Attributes:
        size: side of the square crop in pixels.
        scale: range of the crop's share of the image's area, drawn uniformly.
        ratio: range of the crop's width over its height, drawn log-uniformly.
        jitter: strengths of brightness, contrast, saturation and hue. jitter_p: probability of the colour jitter.
        gray_p: probability of grayscale.
        sigma: range of the blur's standard deviation in pixels, drawn uniformly. blur_p: probability of the blur.
        flip_p: probability of the horizontal flip.
        randaugment: whether RandAugment follows the flip.
        mix_box: a module-level function if the view is mixed from two draws of this recipe, else None. It is called as
            `mix_box(height, width, u)` with three numbers `u`, uniform on [0, 1), and returns the box (top, left,
            bottom, right) in pixels that the second draw fills (ScaleMix).

    Raises:
        ValueError: a field is outside of its bounds, which RULES lists.
    """

    size: int = 224
    scale: tuple = BASE_SCALE
    ratio: tuple = (3 / 4, 4 / 3)
    jitter: tuple = (0.4, 0.4, 0.4, 0.1)
    jitter_p: float = 0.8
    gray_p: float = 0.2
    sigma: tuple = (0.1, 2.0)
    blur_p: float = 0.5
    flip_p: float = 0.5
    randaugment: bool = False
    mix_box: Callable | None = None

    def __post_init__(self):
        for name, (rule, keeps) in RULES.items():
            value, default, cause = getattr(self, name), getattr(View, name), None
            try:
                valid = not isinstance(default, tuple) or (isinstance(value, tuple) and len(value) == len(default))
                valid = valid and keeps(value, self)
            except (TypeError, ValueError) as error:  # a value of another type, or a function with a mistake
                valid, cause = False, error
            if not valid:
                raise ValueError(f"the {name} of a View is {value!r}, but must be {rule}") from cause

    @property
    def mixed(self):
        """Whether the view is mixed from two draws of its recipe."""
        return self.mix_box is not None

    def __str__(self):
        steps = [f"{self.size}px crop {self.scale[0]:g}-{self.scale[1]:g}{self._changed('ratio')}"]
        steps += [f"jitter{self._changed('jitter_p', 'jitter')}"] * (self.jitter_p > 0)
        steps += [f"gray{self._changed('gray_p')}"] * (self.gray_p > 0)
        steps += [f"blur{self._changed('blur_p', 'sigma')}"] * (self.blur_p > 0)
        steps += [f"flip{self._changed('flip_p')}"] * (self.flip_p > 0) + ["RandAugment"] * self.randaugment
        return " ".join(steps) + (", two draws mixed" if self.mixed else "")

    def _changed(self, *names):
        fields = [field_in_words(name, getattr(self, name)) for name in names if getattr(self, name) != DEFAULTS[name]]
        return f" ({' '.join(fields)})" if fields else ""


def stays_inside(mix_box, size):
    """Whether `mix_box` returns four integers within a view of `size` pixels, tried for a grid of random numbers."""
    boxes = [mix_box(size, size, list(u)) for u in product((0.0, 0.3, 0.7, 1 - 2**-53), repeat=3)]
    return all(len(box) == 4 and all(0 <= index(edge) <= size for edge in box) for box in boxes)


PROBABILITY = ("a probability from 0 to 1", lambda x, _: 0 <= x <= 1)
RULES = {  # for each field of View: its values in words, and the same as a function of the value and the View
    "size": ("an integer, 1 or more", lambda x, _: index(x) >= 1),
    "scale": ("two numbers (low, high) with 0 < low <= high <= 1", lambda x, _: 0 < x[0] <= x[1] <= 1),
    "ratio": (f"two numbers (low, high) with 0 < low <= high <= {LIMIT}", lambda x, _: 0 < x[0] <= x[1] <= LIMIT),
    "jitter": (
        f"four strengths (brightness, contrast, saturation, hue) from 0 to {LIMIT}, the hue's at most 0.5",
        lambda x, _: all(0 <= strength <= LIMIT for strength in x) and x[3] <= 0.5,
    ),
    "jitter_p": PROBABILITY,
    "gray_p": PROBABILITY,
    "sigma": (f"two numbers (low, high) with 0 <= low <= high <= {LIMIT}", lambda x, _: 0 <= x[0] <= x[1] <= LIMIT),
    "blur_p": PROBABILITY,
    "flip_p": PROBABILITY,
    "randaugment": ("True or False", lambda x, _: isinstance(x, bool)),
    "mix_box": (
        "None, or a function that returns four integers (top, left, bottom, right) within the view",
        lambda x, view: x is None or stays_inside(x, view.size),
    ),
}


FLAGGED = ("scale", "ratio", "jitter", "jitter_p", "gray_p", "sigma", "blur_p", "flip_p")  # fields for --recipe
DEFAULTS = {name: getattr(View, name) for name in FLAGGED}


def field_in_words(name, value):
    """A field as --recipe takes it, such as scale=0.2,1; equal values give equal words."""
    numbers = value if isinstance(value, tuple) else (value,)
    return f"{name}={','.join(repr(x + 0.0).removesuffix('.0') for x in numbers)}"


def parse_field(text):
    """Converts FIELD=VALUE to (name, value) for a View; a value is a float, or a tuple of floats.

    Raises:
        ValueError: it is not of that form, the name is none of FLAGGED, or the value breaks the field's rule.
    """
    name, equals, words = text.partition("=")
    if name not in FLAGGED or not equals:
        raise ValueError(
            f"{text!r} is not FIELD=VALUE with one of the fields {', '.join(FLAGGED)}; for example: blur_p=0"
        )
    try:
        numbers = tuple(map(float, words.split(",")))
        value = numbers if isinstance(DEFAULTS[name], tuple) or len(numbers) > 1 else numbers[0]
        View(**{name: value})
    except ValueError:
        usual = field_in_words(name, DEFAULTS[name])
        raise ValueError(f"{text!r}: the {name} must be {RULES[name][0]}; the default is {usual}") from None
    return name, value


@dataclass(frozen=True)
class Side:
    """What one side sees of an image: two tuples of View. The views of a tuple have one size and are encoded together.

    Attributes:
        full: the full-size views, at least one. mini: the small views.
        averaged: whether the encodings of the full-size views are averaged (MeanEnc).

    Raises:
        ValueError: a tuple is not of that form.
    """

    full: tuple
    mini: tuple = ()
    averaged: bool = False

    def __post_init__(self):
        for name, fewest in (("full", 1), ("mini", 0)):
            views = getattr(self, name)
            if not isinstance(views, tuple) or not all(isinstance(view, View) for view in views):
                raise ValueError(f"the {name} of a Side is {views!r}, but must be a tuple of Views")
            if len(views) < fewest:
                raise ValueError(f"the {name} of a Side is empty, but must have a View")
            if len(sizes := {view.size: None for view in views}) > 1:
                sizes = " and ".join(map(str, sizes))
                raise ValueError(f"the {name} of a Side has views of {sizes} px, but all of them must have one size")

    @property
    def encodings(self):
        """The number of encodings of the full-size views."""
        return 1 if self.averaged else len(self.full)

    def __str__(self):
        full, mini = _count(self.full), _count(self.mini)
        return (f"mean of {full}" if self.averaged else full) + (f" + {mini}" if mini else "")


def _count(views):
    """Views in words, equal ones together."""
    counts = {view: views.count(view) for view in views}
    return " + ".join(f"{n} x [{view}]" if n > 1 else f"[{view}]" for view, n in counts.items())


SIDES = ("source", "target", "both")  # where a design can be


@dataclass(frozen=True)
class ViewPlan:
    """What both sides see of an image: two Sides of one kind, so that a design can be on either of them.

    Raises:
        ValueError: the target has several full-size views that are not averaged; a query has only one key.
    """

    source: Side
    target: Side

    def __post_init__(self):
        if self.target.encodings > 1:
            raise ValueError(f"the target has {len(self.target.full)} full-size views, so they must be averaged")

    @property
    def views(self):
        """All views of an image: the source's full-size views, its small views, and those of the target."""
        return self.source.full + self.source.mini + self.target.full + self.target.mini

    @property
    def mini(self):
        """The small views of both sides."""
        return self.source.mini + self.target.mini

    def split(self, views):
        """Splits a list in the order of `self.views` into the arguments of `MoCo.forward`, a dict of lists."""
        parts = {"im_q": self.source.full, "im_q_mini": self.source.mini}
        parts |= {"im_k": self.target.full, "im_k_mini": self.target.mini}
        rest = iter(views)
        return {name: [next(rest) for _ in part] for name, part in parts.items()}

    def change(self, side, function):
        """A copy of the plan in which `function`, from Side to Side, has changed what `side`, one of SIDES, sees."""
        changed = ("source", "target") if side == "both" else (side,)
        return replace(self, **{name: function(getattr(self, name)) for name in changed})

    def __str__(self):
        """The plan in words, in one line."""
        return f"source: {self.source} | target: {self.target}"


def baseline_plan(size=224, **recipe):
    """MoCo v2: one view for each side, both from the base recipe.

    Args:
        size: side of the crop in pixels. recipe: fields of View that change the base recipe.
    """
    side = Side(full=(View(size=size, **recipe),))
    return ViewPlan(source=side, target=side)
