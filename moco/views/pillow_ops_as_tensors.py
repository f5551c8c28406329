"""Pillow's image operations on batches of tensors, on any device, each image with its own argument.

Images and results are N x 3 x H x W, float32, with whole numbers in [0, 255]. Every operation rounds as Pillow does,
because a later operation (posterize, equalize) may turn a difference of one level into a large one. Each argument is a
float32 tensor of shape (N,). No function loops over images, and none makes the host wait for the device.
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
    return ((19595 * r + 38470 * g + 7471 * b + 32768) / 65536).floor_()


def blend(base, x, factor):
    """Pillow's Image.blend: `base` at factor 0, `x` at factor 1, extrapolated beyond."""
    return (base + per_image(factor) * (x - base)).clamp_(0, 255).floor_()


def gray(x, _=None):
    """Grayscale in three equal channels."""
    return luma(x).expand_as(x)


def brightness(x, factor):
    """Multiplies all levels by `factor`."""
    return (x * per_image(factor)).clamp_(0, 255).floor_()


def contrast(x, factor):
    """Pillow's contrast: blends with the mean level of the grayscale image; 1 changes nothing."""
    mean = (luma(x).mean(dim=(1, 2, 3), keepdim=True) + 0.5).floor_()
    return blend(mean, x, factor)


def saturation(x, factor):
    """Pillow's colour: blends with the grayscale image; 1 changes nothing."""
    return blend(luma(x), x, factor)


def sharpness(x, factor):
    """Pillow's sharpness: blends with a smoothed image; 1 changes nothing."""
    smooth = x.clone()  # Pillow does not filter the border
    if min(x.shape[2:]) > 2:
        kernel = x.new_ones(3, 1, 3, 3)
        kernel[:, :, 1, 1] = 5
        smooth[..., 1:-1, 1:-1] = (F.conv2d(x, kernel, groups=3) / 13 + 0.5).floor_()
    return blend(smooth, x, factor)


def hue(x, turn):
    """Turns the hue by `turn`, a fraction of a full turn, in Pillow's HSV, which has 8 bits per channel."""
    # Convert to HSV, in whole numbers as Pillow does.
    high, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    spread = high - low
    rc, gc, bc = ((high - x) / spread.clamp_min(1)).split(1, dim=1)
    r, g, _ = x.split(1, dim=1)
    h = torch.where(r == high, bc - gc, torch.where(g == high, 2 + rc - bc, 4 + gc - rc)) / 6 + 1
    h = ((h - h.floor()) * 255).floor_() * (spread > 0)
    s = (spread / high.clamp_min(1) * 255).floor_() / 255
    # Turn the hue, as an 8-bit number that wraps around at 256.
    h = h + per_image((turn * 255).trunc())
    h = h - 256 * (h / 256).floor_()
    # Convert back: a channel is `high` near its own hue, and falls to high * (1 - s) with the distance from it.
    k = h * (6 / 255) + (5 - 2 * torch.arange(3, device=x.device)).view(
        3, 1, 1
    )  # red 5, green 3, blue 1: N x 3 x H x W
    k = k - 6 * (k / 6).floor_()
    away = torch.minimum(k, 4 - k).clamp_(0, 1)
    return (high * (1 - s * away) + 0.5).floor_()


def box_kernel(sigma):
    """The kernel of one of the three box blurs with which Pillow approximates a Gaussian.

    Args:
        sigma: N, standard deviation of the Gaussian in pixels.

    Returns:
        N x 5; all weights are equal, except the outermost ones, which are smaller.
    """
    variance = sigma.square() / 3
    whole = (((12 * variance + 1).sqrt() - 1) / 2).floor()
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1).square()))
    taps = torch.arange(-2, 3, device=sigma.device).abs()  # distance of each tap from the centre
    weight = torch.where(taps <= whole[:, None], 1.0, torch.where(taps == whole[:, None] + 1, part[:, None], 0.0))
    return weight / (2 * (whole + part) + 1)[:, None]


def gaussian_blur(x, sigma):
    """Pillow's GaussianBlur for a sigma below 2.4 pixels: three rounded box blurs in each direction."""
    n, _, height, width = x.shape
    box = box_kernel(sigma).repeat_interleave(3, dim=0)  # 3n x 5
    x = x.reshape(1, 3 * n, height, width)
    for weight, reach in ((box[:, None, None], (2, 2, 0, 0)), (box[:, None, :, None], (0, 0, 2, 2))):
        for _ in range(3):
            x = (F.conv2d(F.pad(x, reach, mode="replicate"), weight, groups=3 * n) + 0.5).floor_()
    return x.view(n, 3, height, width)


def flip(x, _=None):
    """Flips horizontally."""
    return x.flip(-1)


def invert(x, _=None):
    """Inverts all levels."""
    return 255 - x


def posterize(x, bits):
    """Keeps the highest `bits` bits of each level."""
    step = per_image(2 ** (8 - bits))
    return (x / step).floor_() * step


def solarize(x, threshold):
    """Inverts the levels at or above `threshold`, 0 to 256."""
    return torch.where(x < per_image(threshold), x, 255 - x)


def solarize_add(x, add):
    """Adds `add` levels to the levels below 128."""
    return torch.where(x < 128, (x + per_image(add)).clamp_max(255), x)


def look_up(x, table):
    """Replaces each level of each channel by the entry of its table. `table` is N x 3 x 256."""
    return table.to(x.dtype).gather(2, x.flatten(2).long()).view_as(x)


def autocontrast(x, _=None):
    """Pillow's autocontrast: maps each channel's lowest level to 0 and its highest to 255."""
    low, high = (f(x.flatten(2), dim=2, keepdim=True).double() for f in (torch.amin, torch.amax))  # N x 3 x 1
    level = torch.arange(256, dtype=torch.float64, device=x.device)
    scale = 255 / (high - low).clamp_min(1)
    stretched = (level * scale - low * scale).clamp(0, 255).floor()
    return look_up(x, torch.where(high > low, stretched, level))


def equalize(x, _=None):
    """Pillow's equalize: histogram equalisation of each channel."""
    pixels = x.flatten(2).long()
    histogram = torch.zeros(*x.shape[:2], 256, dtype=torch.long, device=x.device)
    histogram.scatter_add_(2, pixels, torch.ones_like(pixels))
    last = histogram.gather(2, pixels.amax(2, keepdim=True))  # number of pixels at the highest level
    step = (pixels.shape[2] - last) // 255  # N x 3 x 1
    before = histogram.cumsum(2) - histogram
    table = ((before + step // 2) // step.clamp_min(1)).clamp_max(255)
    return look_up(x, torch.where(step > 0, table, torch.arange(256, device=x.device)))


def affine(x, matrix, bicubic):
    """Pillow's Image.transform by one affine matrix per image; what lies outside the image becomes FILL.

    Args:
        matrix: N x 6, each row (a, b, c, d, e, f): the result at (x, y) is taken from (a x + b y + c, d x + e y + f),
            in pixels; a pixel's centre is at its index + 0.5.
        bicubic: True for bicubic interpolation as in Pillow (a = -1), False for bilinear interpolation.

    Returns:
        N x 3 x H x W, whole numbers.
    """
    height, width = x.shape[2:]
    row = torch.arange(height, device=x.device)[:, None] + 0.5
    column = torch.arange(width, device=x.device) + 0.5
    a, b, c, d, e, f = (m[:, None, None] for m in matrix.unbind(1))
    from_x, from_y = a * column + b * row + c, d * column + e * row + f  # N x H x W
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    weight = cubic_weights if bicubic else linear_weights
    first_x, weights_x = weight(from_x - 0.5)
    first_y, weights_y = weight(from_y - 0.5)
    pixels, total = x.flatten(2), 0
    for i, weight_y in enumerate(weights_y):
        offset = (first_y + i).clamp(0, height - 1) * width
        line = 0
        for j, weight_x in enumerate(weights_x):
            index = offset + (first_x + j).clamp(0, width - 1)
            line = line + weight_x[:, None] * pixels.gather(2, index.flatten(1)[:, None].expand(-1, 3, -1)).view_as(x)
        total = total + weight_y[:, None] * line
    # Pillow truncates a sum of doubles. In float32 a whole number may come out slightly too small, hence the 1e-3.
    return torch.where(inside[:, None], (total + 1e-3).clamp(0, 255).floor(), FILL)


def linear_weights(place):
    """For fractional coordinates: the index (long) of the first of their 2 neighbours, and both weights."""
    first = place.floor()
    t = place - first
    return first.long(), (1 - t, t)


def cubic_weights(place):
    """For fractional coordinates: the index (long) of the first of their 4 neighbours, and the four weights."""
    first = place.floor()
    t = place - first
    weights = (((2 - t) * t - 1) * t, (t - 2) * t * t + 1, ((1 - t) * t + 1) * t, (t - 1) * t * t)
    return first.long() - 1, weights


def rotation(degrees, height, width):
    """Affine matrices, N x 6, of counter-clockwise rotations about the centre. `degrees`: N, one per image."""
    turn = degrees * (math.pi / 180)
    cos, sin = turn.cos(), turn.sin()
    x, y = width / 2, height / 2
    return torch.stack((cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y), dim=1)
