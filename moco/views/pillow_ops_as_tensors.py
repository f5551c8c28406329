"""Pillow's image operations on batches of tensors, on any device, each image with its own argument.

Images and results are N x 3 x H x W, float32, with whole numbers in [0, 255]. Every operation rounds as Pillow does,
because a later operation (posterize, equalize) may turn a difference of one level into a large one. Arguments are
float32 tensors with one row per image. No function loops over images, and none makes the host wait for the device.

An operation may change its input in place. The number of kernels that it starts and the bytes that they move decide
how long it takes on a GPU.
"""

import math

import torch
import torch.nn.functional as F

FILL = 128.0


def per_image(argument):
    """Reshapes N to N x 1 x 1 x 1."""
    return argument[:, None, None, None]


def luma(x):
    """Pillow's conversion to mode L, N x 1 x H x W. All sums are whole numbers below 2^24, so float32 is exact."""
    r, g, b = x.split(1, dim=1)
    return (r * 19595).add_(g, alpha=38470).add_(b, alpha=7471).add_(32768).div_(65536).floor_()


def blend(base, x, factor):
    """Pillow's Image.blend, in place in `x`: `base` at factor 0, `x` at factor 1, extrapolated beyond."""
    return x.sub_(base).mul_(per_image(factor)).add_(base).clamp_(0, 255).floor_()


def gray(x, _=None):
    """Grayscale in three equal channels."""
    return luma(x).expand_as(x)


def adjust(x, arguments):
    """Pillow's brightness, contrast or colour: blends with black, with the mean grey level, or with the grey image.

    Args:
        arguments: N x 3: the factor (1 changes nothing), whether it is the contrast, whether it is the colour.
    """
    factor, is_contrast, is_colour = arguments.unbind(1)
    base = luma(x)
    mean = (base.mean(dim=(1, 2, 3), keepdim=True) + 0.5).floor_()
    return blend(base.mul_(per_image(is_colour)).add_(mean.mul_(per_image(is_contrast))), x, factor)


def sharpness(x, factor):
    """Pillow's sharpness: blends with a smoothed image; 1 changes nothing."""
    smooth = x.clone()  # Pillow does not filter the border
    if min(x.shape[2:]) > 2:
        kernel = x.new_ones(3, 1, 3, 3)
        kernel[:, :, 1, 1] = 5
        smooth[..., 1:-1, 1:-1] = F.conv2d(x, kernel, groups=3).div_(13).add_(0.5).floor_()
    return blend(smooth, x, factor[:, 0])


def hue(x, turn):
    """Turns the hue by `turn`, in 255ths of a full turn, in Pillow's HSV, which has 8 bits per channel."""
    # Convert to HSV, in whole numbers as Pillow does.
    high, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    spread = low.neg_().add_(high)
    r, g = x[:, :1] == high, x[:, 1:2] == high
    rc, gc, bc = torch.sub(high, x, out=x).div_(spread.clamp_min(1)).split(1, dim=1)
    h = torch.where(r, bc - gc, torch.where(g, (rc + 2).sub_(bc), (gc + 4).sub_(rc)))
    h = h.div_(6).add_(1).frac_().mul_(255).floor_().mul_(spread > 0)
    s = spread.div_(high.clamp_min(1)).mul_(255).floor_().div_(255)
    # Turn the hue, as an 8-bit number that wraps around at 256.
    h = h.add_(per_image(turn[:, 0])).remainder_(256)
    # Convert back: a channel is `high` near its own hue, and falls to high * (1 - s) with the distance from it.
    peak = 5 - 2 * torch.arange(3, device=x.device).view(3, 1, 1)  # red 5, green 3, blue 1
    k = torch.add(h.mul_(6 / 255), peak, out=x).remainder_(6)  # N x 3 x H x W
    away = torch.minimum(k, 4 - k, out=k).clamp_(0, 1)
    return away.mul_(s).neg_().add_(1).mul_(high).add_(0.5).floor_()


def box_kernel(sigma, side):
    """The kernel of one of the three box blurs with which Pillow approximates a Gaussian.

    Args:
        sigma: N, standard deviation of the Gaussian in pixels, on the CPU.
        side: the longer side of the images in pixels.

    Returns:
        N x (2 r + 1); all weights are equal, except the outermost ones. The reach r is 2 if no sigma exceeds 2.4;
        otherwise it follows from the largest sigma, and it never reaches farther than across the image.
    """
    variance = sigma.square() / 3
    whole = (((12 * variance + 1).sqrt() - 1) / 2).floor()
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1).square()))
    reach = max(2, min(int(max(whole.tolist(), default=0)) + 1, side - 1))
    taps = torch.arange(-reach, reach + 1, device=sigma.device).abs()  # distance of each tap from the centre
    weight = torch.where(taps <= whole[:, None], 1.0, torch.where(taps == whole[:, None] + 1, part[:, None], 0.0))
    # Pixels that are farther away repeat the edge of the image, so the outermost taps stand for all of them.
    weight[:, [0, -1]] += torch.where(whole >= reach, whole - reach + part, 0.0)[:, None]
    return weight / (2 * (whole + part) + 1)[:, None]


def gaussian_blur(x, box):
    """Pillow's GaussianBlur: three rounded box blurs in each direction. `box`: as `box_kernel` returns it."""
    n, _, height, width = x.shape
    r = box.shape[1] // 2
    box = box.repeat_interleave(3, dim=0, output_size=3 * n)  # 3n x (2 r + 1)
    x = x.reshape(1, 3 * n, height, width)
    for weight, reach in ((box[:, None, None], (r, r, 0, 0)), (box[:, None, :, None], (0, 0, r, r))):
        for _ in range(3):
            x = F.conv2d(F.pad(x, reach, mode="replicate"), weight, groups=3 * n).add_(0.5).floor_()
    return x.view(n, 3, height, width)


def flip(x, _=None):
    """Flips horizontally."""
    return x.flip(-1)


def invert(levels, unused):
    """The table that inverts all levels. This function and the next three make tables for `look_up`, N x 256.

    Their arguments are the levels 0 to 255 and one number per image, N x 1.
    """
    return (255 - levels).expand(len(unused), -1)


def posterize(levels, bits):
    """The table that keeps the highest `bits` bits of each level."""
    step = 2 ** (8 - bits)
    return (levels / step).floor_() * step


def solarize(levels, threshold):
    """The table that inverts the levels at or above `threshold`, 0 to 256."""
    return torch.where(levels < threshold, levels, 255 - levels)


def solarize_add(levels, add):
    """The table that adds `add` levels to the levels below 128."""
    return torch.where(levels < 128, (levels + add).clamp_max(255), levels)


def look_up(x, table):
    """Replaces each level by an entry of the image's table, N x 256, or of the channel's table, N x 3 x 256."""
    table = table[:, None].expand(-1, 3, -1) if table.dim() == 2 else table
    return table.gather(2, x.flatten(2).long()).view_as(x)


def autocontrast(x, _=None):
    """Pillow's autocontrast: maps each channel's lowest level to 0 and its highest to 255."""
    low, high = (level.double() for level in x.flatten(2).aminmax(dim=2, keepdim=True))  # N x 3 x 1
    level = torch.arange(256, dtype=torch.float64, device=x.device)
    scale = 255 / (high - low).clamp_min(1)
    stretched = (level * scale - low * scale).clamp_(0, 255).floor_()
    return look_up(x, torch.where(high > low, stretched, level).to(x.dtype))


def equalize(x, _=None):
    """Pillow's equalize: histogram equalisation of each channel."""
    pixels = x.flatten(2).long()
    histogram = torch.zeros(*x.shape[:2], 256, dtype=torch.long, device=x.device)
    histogram.scatter_add_(2, pixels, torch.ones_like(pixels))
    last = histogram.gather(2, pixels.amax(2, keepdim=True))  # number of pixels at the highest level
    step = (pixels.shape[2] - last) // 255  # N x 3 x 1
    before = histogram.cumsum(2) - histogram
    table = ((before + step // 2) // step.clamp_min(1)).clamp_max(255)
    table = torch.where(step > 0, table, torch.arange(256, device=x.device))
    return table.to(x.dtype).gather(2, pixels).view_as(x)


def affine(x, matrix, bicubic):
    """Pillow's Image.transform by one affine matrix per image; what lies outside the image becomes FILL.

    Args:
        matrix: N x 6, each row (a, b, c, d, e, f): the result at (x, y) is taken from (a x + b y + c, d x + e y + f),
            in pixels; a pixel's centre is at its index + 0.5.
        bicubic: True for bicubic interpolation as in Pillow (a = -1), False for bilinear interpolation.

    Returns:
        N x 3 x H x W, whole numbers.
    """
    n, _, height, width = x.shape
    (columns, rows), (weights_x, weights_y), inside = _neighbours(matrix, height, width, bicubic)
    total = None
    for row, weight in zip(rows.unbind(1), weights_y.unbind(1), strict=True):
        index = (columns + row.mul_(width)[:, None]).flatten(1)[:, None].expand(-1, 3, -1)
        pixels = x.flatten(2).gather(2, index).view(n, 3, *columns.shape[1:])
        line, *others = pixels.mul_(weights_x[:, None]).unbind(2)
        for other in others:  # one by one, so that the order of the sum is fixed
            line.add_(other)
        line.mul_(weight[:, None])
        total = line if total is None else total.add_(line)
    # Pillow truncates a sum of doubles. In float32 a whole number may come out slightly too small, hence the 1e-3.
    return torch.where(inside[:, None], total.add_(1e-3).clamp_(0, 255).floor_(), FILL)


def _neighbours(matrix, height, width, bicubic):
    """Where `affine` takes each pixel from: from 2 neighbours in each direction, or from 4 if `bicubic`.

    Returns:
        ((columns, rows), weights of both, inside): indices (long) of the neighbours and their weights, each
        N x neighbours x H x W; and whether the pixel comes from inside the image, N x H x W.
    """
    column, row = (torch.arange(size, device=matrix.device) + 0.5 for size in (width, height))
    a, b, c = matrix.view(-1, 2, 3, 1, 1).unbind(2)
    place = (a * column + b * row[:, None]).add_(c)  # x and y: N x 2 x H x W
    x_inside, y_inside = ((p >= 0).logical_and_(p < n) for p, n in zip(place.unbind(1), (width, height), strict=True))
    place.sub_(0.5)
    first = place.floor()
    t = place.sub_(first)  # the distance from the neighbour on the left, or above
    if bicubic:
        weights = (((2 - t) * t - 1) * t, (t - 2) * t * t + 1, ((1 - t) * t + 1) * t, (t - 1) * t * t)
    else:
        weights = (1 - t, t)
    offsets = torch.arange(len(weights), device=matrix.device)[:, None, None] - int(bicubic)
    index = first.long()[:, :, None] + offsets  # N x 2 x neighbours x H x W
    index = index[:, 0].clamp_(0, width - 1), index[:, 1].clamp_(0, height - 1)
    return index, torch.stack(weights, dim=2).unbind(1), x_inside.logical_and_(y_inside)


def rotation(degrees, height, width):
    """Affine matrices, N x 6, of counter-clockwise rotations about the centre. `degrees`: N, one per image."""
    turn = degrees * (math.pi / 180)
    cos, sin = turn.cos(), turn.sin()
    x, y = width / 2, height / 2
    return torch.stack((cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y), dim=1)
