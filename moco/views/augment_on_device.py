"""The device back end: applies the random parameters of a whole batch of crops on a GPU or CPU.

Its views equal those of the Pillow back end up to rounding. A data worker crops and resizes; the device does the rest,
step by step (`steps_on_device.py`), each step for all images that need it.
"""

from itertools import accumulate

import torch
import torch.nn.functional as F

from moco.distributed import copy_to_device
from moco.views.normalize import normalize_in_place
from moco.views.steps_on_device import BOX, order_of, row_of, steps_of

# Pixels to which a step is applied at once; half of them for a step that needs twice the memory. In addition to the
# batch, this needs at most 0.4 GB with the paper's recipes, and 1.1 GB if every crop were warped.
PIXELS_AT_ONCE = 160 * 224 * 224


def crop_resized(image, crop, out):
    """Resizes the box `crop` of an image (H x W x 3, uint8) with antialiasing and writes it into `out`.

    Args:
        crop: a Crop. out: size x size x 3, uint8.
    """
    top, left, height, width = crop
    # torch's kernel for uint8 rounds as Pillow does, and is twice as fast if the channels are last.
    part = image[None, top : top + height, left : left + width].permute(0, 3, 1, 2)
    out.copy_(F.interpolate(part, out.shape[:2], mode="bilinear", antialias=True)[0].permute(1, 2, 0))


def apply_recipes(x, rows):
    """Applies a recipe to each image of a batch, except the mixing of two views (ScaleMix).

    Args:
        x: N x 3 x H x W, uint8, on any device. rows: N x COLUMNS, float32, on the CPU.

    Returns:
        (y, place): N x 3 x H x W, float32, whole numbers in [0, 255], on the device; and N indices on the CPU: the
        result of `x[i]` is `y[place[i]]`.
    """
    order = order_of(rows)
    steps = steps_of(rows[order], *x.shape[2:])
    # One copy for the indices of all steps, and one for their arguments.
    sent = copy_to_device(torch.cat([order, *(step.images for step in steps)]), x.device)
    order_sent, *indices = sent.split([len(order), *(len(step.images) for step in steps)])
    numbers = copy_to_device(torch.cat([torch.empty(0), *(step.arguments.flatten() for step in steps)]), x.device)
    arguments = numbers.split([step.arguments.numel() for step in steps])
    x = x[order_sent].to(torch.float32, memory_format=torch.contiguous_format)
    for step, index, argument in zip(steps, indices, arguments, strict=True):
        n = max(1, PIXELS_AT_ONCE // (x.shape[2] * x.shape[3] * step.memory))
        images, argument = step.images.tolist(), argument.view(step.arguments.shape)
        consecutive = images == list(range(images[0], images[0] + len(images)))
        for i in range(0, len(images), n):
            part = slice(images[i], images[i] + len(images[i : i + n])) if consecutive else index[i : i + n]
            apply(step.operation, x, part, argument[i : i + n])
    return x, torch.argsort(order)


def apply(operation, x, images, arguments):
    """Replaces some images of `x` by the result of an operation; `images` is a slice, or indices on its device."""
    part = x[images]
    result = operation(part, arguments)
    if not isinstance(images, slice):
        x.index_copy_(0, images, result)
    elif result is not part:
        part.copy_(result)


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
        """Encodes the draws of one image as rows, a list of lists of COLUMNS floats; see steps_on_device.py."""
        return [row_of(part) for draw in draws for part in (draw, draw.other) if part is not None]

    def finish(self, crops, rows):
        """Makes the views of a batch.

        Args:
            crops: dict from size to N x R x size x size x 3, uint8, on the device; R is the number of crops of that
                size per image. The dict is empty afterwards.
            rows: N x (sum of all R) x COLUMNS, float32, on the CPU.

        Returns:
            A list with one entry per view, N x 3 x size x size, float32, normalised.
        """
        views = {}
        for size, places in self.rows.items():
            # `pop`, so that the crops are freed as soon as they are converted.
            x, place = apply_recipes(crops.pop(size).flatten(0, 1).permute(0, 3, 1, 2), rows[:, places].flatten(0, 1))
            normalize_in_place(x)
            place = copy_to_device(place.view(len(rows), len(places)).T.contiguous(), x.device)
            crop = iter(place)  # for each crop of an image, its places in the batch
            for i, view in enumerate(self.views):
                if view.size == size:
                    views[i] = x[next(crop)]
                    if view.mixed:
                        box = copy_to_device(rows[:, self.firsts[i], BOX].contiguous(), x.device)
                        views[i] = mix(views[i], x[next(crop)], box)
        return [views[i] for i in range(len(self.views))]
