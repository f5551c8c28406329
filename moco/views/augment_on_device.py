"""The device back end: applies the random parameters of a whole batch of crops on a GPU or CPU.

Its views equal those of the Pillow back end up to rounding. A data worker crops and resizes; it encodes the remaining
parameters of a Draw as one row of COLUMNS numbers. A recipe's step then runs once for all rows that use it, each row
with its own argument.
"""

from itertools import accumulate

import torch
import torch.nn.functional as F

from moco.distributed import copy_to_device
from moco.views import pillow_ops_as_tensors as ops
from moco.views.normalize import normalize_images
from moco.views.randaugment import LAYERS, NAMES
from moco.views.random_parameters import JITTER

# The columns of a row.
ORDER = slice(0, 4)  # indices into JITTER in the order of application; -1 for none
FACTORS = slice(4, 8)  # the jitter factors, in the order of JITTER
GRAY, SIGMA, FLIP = 8, 9, 10
OPERATIONS = tuple(11 + 3 * i for i in range(LAYERS))  # first of three: index into NAMES (or -1), argument, bicubic
BOX = slice(11 + 3 * LAYERS, 15 + 3 * LAYERS)  # top, left, bottom, right
COLUMNS = BOX.stop

# Pixels that are augmented at once. The bound limits the memory: at its peak 2.1 MB per crop of 224 px with the
# paper's recipes, and 7.3 MB if every crop were warped.
PIXELS_AT_ONCE = 256 * 224 * 224


def row_of(draw):
    """Encodes a Draw without its crop as a list of COLUMNS floats; `draw.other` needs a row of its own."""
    row = [-1.0] * 4 + [1.0, 1.0, 1.0, 0.0, float(draw.gray), draw.sigma, float(draw.flip)] + [-1.0, 0.0, 0.0] * LAYERS
    for place, (name, factor) in enumerate(draw.jitter):
        i = JITTER.index(name)
        row[ORDER.start + place] = i
        row[FACTORS.start + i] = factor
    for column, operation in zip(OPERATIONS, draw.operations, strict=False):
        argument = 0.0 if operation.argument is None else operation.argument
        row[column : column + 3] = NAMES.index(operation.name), argument, operation.bicubic
    return [*row, *(draw.box or (0, 0, 0, 0))]


def crop_resized(image, crop, out):
    """Resizes the box `crop` of an image (H x W x 3, uint8) with antialiasing and writes it into `out`.

    Args:
        crop: a Crop. out: size x size x 3, uint8.
    """
    top, left, height, width = crop
    # torch's kernel for uint8 rounds as Pillow does, and is twice as fast if the channels are last.
    part = image[None, top : top + height, left : left + width].permute(0, 3, 1, 2)
    out.copy_(F.interpolate(part, out.shape[:2], mode="bilinear", antialias=True)[0].permute(1, 2, 0))


GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
VALUES = {
    "AutoContrast": ops.autocontrast,
    "Equalize": ops.equalize,
    "Invert": ops.invert,
    "Posterize": ops.posterize,
    "Solarize": ops.solarize,
    "SolarizeAdd": ops.solarize_add,
    "Color": ops.saturation,
    "Contrast": ops.contrast,
    "Brightness": ops.brightness,
    "Sharpness": ops.sharpness,
}
ADJUST = (ops.brightness, ops.contrast, ops.saturation, ops.hue)  # in the order of JITTER


def matrices(which, argument, height, width):
    """The affine matrices of geometric operations, N x 6.

    Args:
        which: N indices into NAMES. height, width: of the images, in pixels.
        argument: N; degrees, shear factors, or shares of the width or height, as randaugment.ARGUMENTS has them.
    """
    one, zero = torch.ones_like(argument), torch.zeros_like(argument)
    choices = {
        "Rotate": ops.rotation(argument, height, width),
        "ShearX": torch.stack((one, argument, zero, zero, one, zero), dim=1),
        "ShearY": torch.stack((one, zero, zero, argument, one, zero), dim=1),
        "TranslateXRel": torch.stack((one, zero, argument * width, zero, one, zero), dim=1),
        "TranslateYRel": torch.stack((one, zero, zero, zero, one, argument * height), dim=1),
    }
    result = choices["Rotate"]
    for name in GEOMETRIC[1:]:
        result = torch.where((which == NAMES.index(name))[:, None], choices[name], result)
    return result


def _steps():
    """Yields every step of a recipe in order, as a pair of functions.

    The first takes rows and says which of them use the step. The second takes their images and rows and applies it.
    """

    def with_column(operation, column):
        return lambda x, rows: operation(x, rows[:, column])

    def is_at(column, value):
        return lambda rows: rows[:, column] == value

    def is_warp(column, bicubic):
        which = torch.tensor([NAMES.index(name) for name in GEOMETRIC])
        return lambda rows: torch.isin(rows[:, column].long(), which) & (rows[:, column + 2] == bicubic)

    def warp(column, bicubic):
        return lambda x, rows: ops.affine(x, matrices(rows[:, column], rows[:, column + 1], *x.shape[2:]), bicubic)

    for place in range(ORDER.start, ORDER.stop):
        for i, adjust in enumerate(ADJUST):
            yield is_at(place, i), with_column(adjust, FACTORS.start + i)
    for column, operation in ((GRAY, ops.gray), (SIGMA, ops.gaussian_blur), (FLIP, ops.flip)):
        yield lambda rows, column=column: rows[:, column] > 0, with_column(operation, column)
    for column in OPERATIONS:
        for name, operation in VALUES.items():
            yield is_at(column, NAMES.index(name)), with_column(operation, column + 1)
        for bicubic in (False, True):
            yield is_warp(column, bicubic), warp(column, bicubic)


STEPS = tuple(_steps())  # made once, so that torch.compile sees the same functions in every batch


def steps_of(rows):
    """The steps that at least one of the rows uses, in order.

    Args:
        rows: N x COLUMNS, on the CPU.

    Returns:
        A list of (function, indices): `function(x[indices], rows[indices])` applies one step to those images.
    """
    steps = [(function, takes(rows).nonzero().squeeze(1)) for takes, function in STEPS]
    return [(function, indices) for function, indices in steps if len(indices)]


def apply_recipes(x, rows, sent):
    """Applies a recipe to each image of a batch, except the mixing of two views (ScaleMix).

    Args:
        x: N x 3 x H x W, uint8, on any device. rows: N x COLUMNS, float32, on the CPU.
        sent: a copy of `rows` on the device of `x`.

    Returns:
        N x 3 x H x W, float32, whole numbers in [0, 255].
    """
    n = max(1, PIXELS_AT_ONCE // (x.shape[2] * x.shape[3]))
    return torch.cat([_apply(*part) for part in zip(x.split(n), rows.split(n), sent.split(n), strict=True)])


def _apply(x, rows, sent):
    steps = steps_of(rows)
    x = x.to(torch.float32, memory_format=torch.contiguous_format)
    if not steps:
        return x
    counts = [len(indices) for _, indices in steps]
    indices = copy_to_device(torch.cat([indices for _, indices in steps]), x.device)  # one copy for all steps
    return run_steps(x, sent, [function for function, _ in steps], indices.split(counts))


def run_steps(x, rows, functions, indices):
    """Applies the steps one after another, each to its own images, in place; all tensors are on one device."""
    for function, i in zip(functions, indices, strict=True):
        x.index_copy_(0, i, function(x[i], rows[i]))
    return x


def mix(first, second, box):
    """Copies a box of each image of `second` into the same image of `first`.

    Args:
        first, second: N x 3 x H x W. box: N x 4 (top, left, bottom, right), in pixels.

    Returns:
        N x 3 x H x W.
    """
    row = torch.arange(first.shape[2], device=first.device)[:, None]
    column = torch.arange(first.shape[3], device=first.device)
    top, left, bottom, right = (edge[:, None, None] for edge in box.unbind(1))
    inside = (row >= top) & (row < bottom) & (column >= left) & (column < right)  # N x H x W
    return torch.where(inside[:, None], second, first)


class Layout:
    """Where the crops and the rows of each View are located in a batch.

    An image's crops come in the order of its views. A mixed view has two crops, one after the other. All crops of one
    size are in one tensor.

    Args:
        views: tuple of View.

    Attributes:
        rows: for each size, the indices of the crops of that size in the list of all crops of one image.
        firsts: for each view, the index of its first crop in that list.
    """

    def __init__(self, views):
        self.views = views
        self.firsts = [0, *accumulate(1 + view.mixed for view in views)][:-1]
        sizes = [size for view in views for size in [view.size] * (1 + view.mixed)]
        self.rows = {size: [i for i, s in enumerate(sizes) if s == size] for size in dict.fromkeys(sizes)}

    def crop(self, image, draws, out):
        """Crops and resizes one image.

        Args:
            image: H x W x 3, uint8. draws: list with one Draw per view.
            out: dict from size to R x size x size x 3, uint8, which this function fills.
        """
        free = {size: iter(places) for size, places in out.items()}
        for view, draw in zip(self.views, draws, strict=True):
            for part in (draw, draw.other)[: 1 + view.mixed]:
                crop_resized(image, part.crop, next(free[view.size]))

    @staticmethod
    def rows_of(draws):
        """Encodes the draws of one image as rows, a list of lists of COLUMNS floats."""
        return [row_of(part) for draw in draws for part in (draw, draw.other) if part is not None]

    def finish(self, crops, rows):
        """Makes the views of a batch.

        Args:
            crops: dict from size to N x R x size x size x 3, uint8, on the device; R is the number of crops of that
                size per image.
            rows: N x (sum of all R) x COLUMNS, float32, on the CPU.

        Returns:
            A list with one entry per view, N x 3 x size x size, float32, normalised.
        """
        done, sent = {}, copy_to_device(rows, next(iter(crops.values())).device)
        for size, x in crops.items():
            n, places = len(x), self.rows[size]
            # Stacked one by one, since an index tensor would have to be copied to the device first.
            parts = [torch.stack([r[:, i] for i in places], dim=1).flatten(0, 1) for r in (rows, sent)]
            x = apply_recipes(x.flatten(0, 1).permute(0, 3, 1, 2), *parts).unflatten(0, (n, len(places)))
            done[size] = iter(x.unbind(1))
        views = []
        for view, first in zip(self.views, self.firsts, strict=True):
            x = next(done[view.size])
            if view.mixed:
                x = mix(x, next(done[view.size]), sent[:, first, BOX])
            views.append(normalize_images(x))
        return views
