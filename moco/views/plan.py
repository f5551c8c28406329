"""What each side sees, as data: a `View` is a recipe, a `ViewPlan` one recipe for every view of an image.

The baseline plan gives both sides one equal view. Each design that changes what a side sees is a function from
plan to plan in `moco/asymmetry/`; both back ends execute any plan.
"""

from dataclasses import dataclass

BASE_SCALE = (0.2, 1.0)


@dataclass(frozen=True)
class View:
    """One augmentation recipe (MoCo v2's by default), its steps in the order of the fields.

    size: side of the square crop in pixels.
    scale: the crop's share of the image's area, drawn uniformly.
    ratio: the crop's width over height, drawn log-uniformly.
    jitter: strengths of brightness, contrast, saturation and hue; `jitter_p` the probability.
    gray_p, blur_p, flip_p: probabilities; sigma: the blur's standard deviation in pixels, drawn uniformly.
    randaugment: RandAugment after the flip.
    mixed: two draws of this recipe, mixed by ScaleMix.
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
    mixed: bool = False

    def __str__(self):
        steps = [f"{self.size}px crop {self.scale[0]:g}-{self.scale[1]:g}"]
        steps += ["jitter"] * (self.jitter_p > 0) + ["gray"] * (self.gray_p > 0) + ["blur"] * (self.blur_p > 0)
        steps += ["flip"] * (self.flip_p > 0) + ["RandAugment"] * self.randaugment
        return " ".join(steps) + (", two draws mixed" if self.mixed else "")


@dataclass(frozen=True)
class ViewPlan:
    """The views of an image: `source` and `mini` (low resolution) for the source, `target` for the target."""

    source: tuple
    target: tuple
    mini: tuple = ()

    @property
    def views(self):
        """All views of an image in the order source, mini, target."""
        return self.source + self.mini + self.target

    def split(self, views):
        """A list in the order of `views` to three lists: source, mini, target."""
        n = len(self.source)
        return views[:n], views[n : n + len(self.mini)], views[n + len(self.mini) :]

    def __str__(self):
        """One line, in words."""

        def words(views):
            counts = {v: views.count(v) for v in views}
            return " + ".join(f"{n} x [{v}]" if n > 1 else f"[{v}]" for v, n in counts.items())

        return f"source: {words(self.source + self.mini)} | target: {words(self.target)}"


def baseline_plan(size=224):
    """MoCo v2: one view a side, both from the same recipe."""
    return ViewPlan(source=(View(size=size),), target=(View(size=size),))
