"""The augmentation recipes as data: a `View` is one recipe, and a `ViewPlan` has the views of source and target.

The baseline plan gives the source and the target one view each, from the same recipe. A design that changes what a
side sees is a function from plan to plan in `moco/asymmetry/`. Both back ends, Pillow on the CPU and tensors on the
device, can execute every plan.
"""

from collections.abc import Callable
from dataclasses import dataclass

BASE_SCALE = (0.2, 1.0)


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

    @property
    def mixed(self):
        """Whether the view is mixed from two draws of its recipe."""
        return self.mix_box is not None

    def __str__(self):
        steps = [f"{self.size}px crop {self.scale[0]:g}-{self.scale[1]:g}"]
        steps += ["jitter"] * (self.jitter_p > 0) + ["gray"] * (self.gray_p > 0) + ["blur"] * (self.blur_p > 0)
        steps += ["flip"] * (self.flip_p > 0) + ["RandAugment"] * self.randaugment
        return " ".join(steps) + (", two draws mixed" if self.mixed else "")


@dataclass(frozen=True)
class ViewPlan:
    """The views of an image, three tuples of View: `source` and `mini` (small views) for the source, and `target`."""

    source: tuple
    target: tuple
    mini: tuple = ()

    @property
    def views(self):
        """All views of an image in the order source, mini, target."""
        return self.source + self.mini + self.target

    def split(self, views):
        """Splits a list in the order of `self.views` into three lists: source, mini, target."""
        n = len(self.source)
        return views[:n], views[n : n + len(self.mini)], views[n + len(self.mini) :]

    def __str__(self):
        """The plan in words, in one line."""

        def words(views):
            counts = {v: views.count(v) for v in views}
            return " + ".join(f"{n} x [{v}]" if n > 1 else f"[{v}]" for v, n in counts.items())

        return f"source: {words(self.source + self.mini)} | target: {words(self.target)}"


def baseline_plan(size=224):
    """MoCo v2: one view for each side, both from the base recipe. `size` is the crop's side in pixels."""
    return ViewPlan(source=(View(size=size),), target=(View(size=size),))
