"""What the device does to a batch of crops: random parameters as rows of numbers, and the steps that they ask for.

A data worker encodes the parameters of a Draw, except its crop, as one row of COLUMNS numbers. `steps_of` turns the
rows of a batch into steps. Each step is one operation for all images that need it, each with arguments of its own. The
fewer steps, the fewer kernels a GPU has to start. Therefore brightness, contrast and colour are one operation, all
operations on single levels are one look-up in tables, and `order_of` arranges the images so that the colour jitter
applies to ranges of images.
"""

from functools import partial
from typing import NamedTuple

import torch

from moco.views import pillow_ops_as_tensors as ops
from moco.views.randaugment import LAYERS, NAMES
from moco.views.random_parameters import JITTER

# The columns of a row.
ORDER = slice(0, 4)  # indices into JITTER in the order of application; -1 for none
FACTORS = slice(4, 8)  # the jitter factors, in the order of JITTER
GRAY, SIGMA, FLIP = 8, 9, 10
OPERATIONS = tuple(11 + 3 * i for i in range(LAYERS))  # first of three: index into NAMES (or -1), argument, bicubic
BOX = slice(11 + 3 * LAYERS, 15 + 3 * LAYERS)  # top, left, bottom, right
COLUMNS = BOX.stop

CONTRAST, COLOUR, HUE = (JITTER.index(name) for name in ("contrast", "saturation", "hue"))
GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
BLENDS = {"Brightness": 0, "Contrast": CONTRAST, "Color": COLOUR}  # RandAugment's names of JITTER's operations
TABLES = {
    "Invert": ops.invert,
    "Posterize": ops.posterize,
    "Solarize": ops.solarize,
    "SolarizeAdd": ops.solarize_add,
}


class Step(NamedTuple):
    """One operation for some images of a batch.

    Attributes:
        operation: a function of (images, arguments), which may change the images in place.
        images: n indices into the batch, on the CPU. arguments: n x k, float32, on the CPU.
        memory: how much memory it needs per image, compared with the other operations.
    """

    operation: object
    images: torch.Tensor
    arguments: torch.Tensor
    memory: int = 1


def row_of(draw):
    """Encodes a Draw without its crop as a list of COLUMNS floats; `draw.other` needs a row of its own."""
    row = [-1.0] * 4 + [1.0, 1.0, 1.0, 0.0, float(draw.gray), draw.sigma, float(draw.flip)] + [-1.0, 0.0, 0.0] * LAYERS
    for place, (name, factor) in enumerate(draw.jitter):
        i = JITTER.index(name)
        row[ORDER.start + place] = i
        row[FACTORS.start + i] = factor
    for place, operation in enumerate(draw.operations):
        column, argument = OPERATIONS[place], 0.0 if operation.argument is None else operation.argument
        row[column : column + 3] = NAMES.index(operation.name), argument, operation.bicubic
    return [*row, *(draw.box or (0, 0, 0, 0))]


def place_of_hue(rows):
    """The place of the hue in each row's colour jitter, 0 to 3; the number of its operations if it has no hue."""
    order = rows[:, ORDER]
    is_hue = order == HUE
    return torch.where(is_hue.any(1), is_hue.int().argmax(1), (order >= 0).sum(1))


def order_of(rows):
    """An order of the rows in which each step of the colour jitter applies to consecutive rows; N indices."""
    jittered = rows[:, ORDER.start] >= 0
    return torch.argsort(torch.where(jittered, place_of_hue(rows), -1), stable=True)


def steps_of(rows, height, width):
    """The steps for the images of a batch, in the order of the recipes.

    Args:
        rows: N x COLUMNS, on the CPU. height, width: of the images, in pixels.

    Returns:
        A list of Step; those of the colour jitter have consecutive images if the rows are sorted as by `order_of`.
    """
    blur = _step(ops.gaussian_blur, rows[:, SIGMA] > 0)
    blur = blur._replace(arguments=ops.box_kernel(rows[blur.images, SIGMA], max(height, width)))
    steps = [*_jitter(rows), _step(ops.gray, rows[:, GRAY] > 0), blur, _step(ops.flip, rows[:, FLIP] > 0)]
    for column in OPERATIONS:
        steps += _randaugment(rows[:, column : column + 3], height, width)
    return [step for step in steps if len(step.images)]


def _step(operation, mask, arguments=None):
    """The Step for the images where `mask` is true; `arguments`, N x k, are of all images."""
    images = mask.nonzero().squeeze(1)
    return Step(operation, images, torch.empty(len(images), 0) if arguments is None else arguments[images])


def _jitter(rows):
    """Yields the steps of the colour jitter. All hues are one step; up to 3 steps come before it, and 3 after it.

    Every image has its own order of the four operations. Its operations before the hue use the first of the steps
    before the hue; those after the hue use the first steps after it.
    """
    order, hue = rows[:, ORDER].long(), place_of_hue(rows)
    for i in range(len(JITTER) - 1):
        yield _blend(order[:, i], rows[:, FACTORS], hue > i)
    turn = (rows[:, FACTORS.start + HUE, None] * 255).trunc()
    yield _step(ops.hue, (order == HUE).any(1), turn)
    for i in range(len(JITTER) - 1):
        place = hue + 1 + i
        later = order.gather(1, place.clamp_max(len(JITTER) - 1)[:, None])[:, 0]
        yield _blend(later, rows[:, FACTORS], (place < len(JITTER)) & (later >= 0))


def _blend(which, factors, mask):
    """The Step of `ops.adjust`: `which` are indices into JITTER, N; `factors` are N x 4."""
    factor = factors.gather(1, which.clamp_min(0)[:, None])[:, 0]
    return _step(ops.adjust, mask, torch.stack((factor, which == CONTRAST, which == COLOUR), dim=1))


def _randaugment(columns, height, width):
    """Yields the steps of one layer of RandAugment; `columns` are N x 3: index into NAMES, argument, bicubic."""
    which, argument, bicubic = columns[:, 0].long(), columns[:, 1:2], columns[:, 2]

    def named(*names):
        return torch.isin(which, torch.tensor([NAMES.index(name) for name in names]))

    blend = torch.tensor([BLENDS.get(name, -1) for name in NAMES])[which]
    yield _blend(blend, argument.expand(-1, len(JITTER)), named(*BLENDS))
    yield _step(ops.sharpness, named("Sharpness"), argument)
    levels = torch.arange(256, dtype=torch.float32)
    tables = [(named(name), table) for name, table in TABLES.items()]
    images = torch.cat([mask.nonzero().squeeze(1) for mask, _ in tables])
    yield Step(ops.look_up, images, torch.cat([table(levels, argument[mask]) for mask, table in tables]))
    yield _step(ops.autocontrast, named("AutoContrast"))
    yield _step(ops.equalize, named("Equalize"))
    matrix = matrices(which, argument[:, 0], height, width)
    for cubic in (False, True):
        warp = _step(partial(ops.affine, bicubic=cubic), named(*GEOMETRIC) & (bicubic == cubic), matrix)
        yield warp._replace(memory=2)


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
