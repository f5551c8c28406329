"""RandAugment (Cubuk et al., arXiv 1909.13719), in the form that timm calls `rand-m10-n2-mstd0.5`.

Two operations per view are drawn with replacement from the 15 operations below. Each is applied with probability 0.5,
at a magnitude drawn from N(10, 0.5) and clipped to [0, 10]. torchvision's RandAugment is a different recipe.
"""

from statistics import NormalDist
from typing import NamedTuple

from PIL import Image, ImageEnhance, ImageOps

LAYERS = 2
PROBABILITY = 0.5
MAGNITUDE = NormalDist(mu=10, sigma=0.5)
MAX_MAGNITUDE = 10
FILL = (128, 128, 128)
UNIFORMS = 5  # uniform random numbers that `draw_operation` needs


class Operation(NamedTuple):
    """An operation, its argument in the unit of ARGUMENTS (None if it has none), and whether it is bicubic."""

    name: str
    argument: float | int | None = None
    bicubic: bool = False


def signed(scale):
    """Makes a function of f and a sign, -1 or 1: the argument is sign * scale * f."""
    return lambda f, sign: sign * scale * f


def enhance(f, sign):
    """The factor for Pillow's ImageEnhance, 0.1 to 1.9; the sign has no effect."""
    return 1.8 * f + 0.1


# Each operation's argument as a function of f = magnitude / 10 and a random sign; None if it takes no argument.
ARGUMENTS = {
    "AutoContrast": None,
    "Equalize": None,
    "Invert": None,
    "Rotate": signed(30.0),  # degrees
    "Posterize": lambda f, sign: min(8, int(4 * f)),  # bits kept, which Pillow accepts up to 8
    "Solarize": lambda f, sign: min(256, int(256 * f)),  # threshold
    "SolarizeAdd": lambda f, sign: min(128, int(110 * f)),  # added to values below 128
    "Color": enhance,
    "Contrast": enhance,
    "Brightness": enhance,
    "Sharpness": enhance,
    "ShearX": signed(0.3),
    "ShearY": signed(0.3),
    "TranslateXRel": signed(0.45),  # share of the width
    "TranslateYRel": signed(0.45),  # share of the height
}
NAMES = tuple(ARGUMENTS)


def draw_operation(u):
    """Turns 5 numbers, uniform on [0, 1), into an Operation; returns None if no operation is to be applied."""
    which, applied, magnitude, sign, interpolation = u
    if applied >= PROBABILITY:
        return None
    name = NAMES[int(which * len(NAMES))]
    if ARGUMENTS[name] is None:
        return Operation(name)
    m = MAGNITUDE.inv_cdf(max(magnitude, 1e-12))
    f = min(max(m, 0.0), MAX_MAGNITUDE) / 10
    return Operation(name, ARGUMENTS[name](f, -1 if sign < 0.5 else 1), interpolation < 0.5)


def apply_on_pil(operation, image):
    """Applies an Operation to an RGB image; returns a new image of the same size.

    Raises:
        ValueError: the operation's name is unknown.
    """
    name, argument, bicubic = operation
    resample = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR

    def affine(*matrix):
        return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=FILL)

    match name:
        case "AutoContrast":
            return ImageOps.autocontrast(image)
        case "Equalize":
            return ImageOps.equalize(image)
        case "Invert":
            return ImageOps.invert(image)
        case "Rotate":
            return image.rotate(argument, resample, fillcolor=FILL)
        case "Posterize":
            return ImageOps.posterize(image, argument)
        case "Solarize":
            return ImageOps.solarize(image, argument)
        case "SolarizeAdd":
            return image.point([min(255, i + argument) if i < 128 else i for i in range(256)] * 3)
        case "Color" | "Contrast" | "Brightness" | "Sharpness":
            return getattr(ImageEnhance, name)(image).enhance(argument)
        case "ShearX":
            return affine(1, argument, 0, 0, 1, 0)
        case "ShearY":
            return affine(1, 0, 0, argument, 1, 0)
        case "TranslateXRel":
            return affine(1, 0, argument * image.width, 0, 1, 0)
        case "TranslateYRel":
            return affine(1, 0, 0, 0, 1, argument * image.height)
    raise ValueError(f"unknown RandAugment operation {name!r}; it must be one of {', '.join(NAMES)}")
