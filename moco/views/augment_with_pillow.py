"""The CPU back end: applies a view's random parameters with Pillow, in the same steps as the original code."""

import torchvision.transforms.functional as TF
from PIL import ImageFilter

from moco.views.randaugment import apply_on_pil

ADJUST = {
    "brightness": TF.adjust_brightness,
    "contrast": TF.adjust_contrast,
    "saturation": TF.adjust_saturation,
    "hue": TF.adjust_hue,
}


def render(draw, size, image):
    """Makes one view of an image.

    Args:
        draw: a Draw. size: side of the view in pixels. image: an RGB image of the width and height that `draw_view`
            was given.

    Returns:
        3 x size x size, uint8, not normalised.
    """
    view = TF.pil_to_tensor(apply_recipe(draw, size, image))
    if draw.other is None:
        return view
    return paste(view, TF.pil_to_tensor(apply_recipe(draw.other, size, image)), draw.box)


def apply_recipe(draw, size, image):
    """Applies a recipe to an RGB image, except the mixing of two views; returns an RGB image of size x size."""
    image = TF.resized_crop(image, *draw.crop, [size, size])
    for name, factor in draw.jitter:
        image = ADJUST[name](image, factor)
    if draw.gray:
        image = TF.rgb_to_grayscale(image, num_output_channels=3)
    if draw.sigma:
        image = image.filter(ImageFilter.GaussianBlur(radius=draw.sigma))
    if draw.flip:
        image = TF.hflip(image)
    for operation in draw.operations:
        image = apply_on_pil(operation, image)
    return image


def paste(view1, view2, box):
    """Pastes a box of `view2` into a copy of `view1`.

    Args:
        view1, view2: ... x H x W. box: (top, left, bottom, right) in pixels.

    Returns:
        A new tensor in the shape of `view1`.
    """
    top, left, bottom, right = box
    mixed = view1.clone()
    mixed[..., top:bottom, left:right] = view2[..., top:bottom, left:right]
    return mixed
