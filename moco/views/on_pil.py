"""A Draw applied to a PIL image: the reference path, step for step the original recipe's operations."""

import torchvision.transforms.functional as TF
from PIL import ImageFilter

from moco.asymmetry.scalemix import paste
from moco.views.randaugment import apply_on_pil

ADJUST = {
    "brightness": TF.adjust_brightness,
    "contrast": TF.adjust_contrast,
    "saturation": TF.adjust_saturation,
    "hue": TF.adjust_hue,
}


def render(draw, size, image):
    """Makes one view.

    Args:
        draw: a Draw. size: of the view in pixels. image: RGB, of the size that `draw` was drawn for.

    Returns:
        3 x size x size, uint8, not normalised.
    """
    view = TF.pil_to_tensor(apply_recipe(draw, size, image))
    if draw.other is None:
        return view
    return paste(view, TF.pil_to_tensor(apply_recipe(draw.other, size, image)), draw.box)


def apply_recipe(draw, size, image):
    """One pass of a recipe: an RGB image to an RGB image of size x size. The ScaleMix box is not applied."""
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
