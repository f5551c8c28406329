"""A Draw on a PIL image: the pixels of torchvision's transforms and of Pillow, for the same parameters."""

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torchvision import transforms

from moco.asymmetry.scalemix import mix_box
from moco.views.augment_with_pillow import apply_recipe, render
from moco.views.augmentation_recipes import View
from moco.views.normalize import normalize_images
from moco.views.randaugment import Operation
from moco.views.random_parameters import Crop, Draw, draw_view, uniforms_needed
from tests.views.photographs import hard_cases, photograph

IMAGES = {"photograph": photograph(), **hard_cases()}


def whole(image):
    return Crop(0, 0, image.height, image.width)


def pixels(image):
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("name", IMAGES)
def test_each_step_is_pillows(name):
    image = IMAGES[name]
    crop = Crop(3, 5, 20, 17)
    small = image.crop((5, 3, 5 + 17, 3 + 20)).resize((16, 16), Image.Resampling.BILINEAR)
    expected = {
        Draw(crop): small,
        Draw(crop, jitter=(("brightness", 1.3),)): ImageEnhance.Brightness(small).enhance(1.3),
        Draw(crop, jitter=(("contrast", 0.7),)): ImageEnhance.Contrast(small).enhance(0.7),
        Draw(crop, jitter=(("saturation", 1.4),)): ImageEnhance.Color(small).enhance(1.4),
        Draw(crop, jitter=(("contrast", 0.7), ("brightness", 1.3))): ImageEnhance.Brightness(
            ImageEnhance.Contrast(small).enhance(0.7)
        ).enhance(1.3),
        Draw(crop, gray=True): small.convert("L").convert("RGB"),
        Draw(crop, sigma=1.2): small.filter(ImageFilter.GaussianBlur(1.2)),
        Draw(crop, flip=True): ImageOps.mirror(small),
    }
    for draw, result in expected.items():
        assert np.array_equal(pixels(apply_recipe(draw, 16, image)), pixels(result)), draw


def test_hue_turns_the_colour_circle():
    image = IMAGES["photograph"]
    draw = Draw(whole(image), jitter=(("hue", 0.1),))
    size = image.height
    turned = pixels(apply_recipe(draw, size, image))
    start = pixels(apply_recipe(Draw(whole(image)), size, image))
    worst = []
    for y in range(0, size, 5):
        for x in range(0, size, 5):
            h, s, v = colorsys.rgb_to_hsv(*(start[y, x] / 255))
            worst.append(np.abs(np.array(colorsys.hsv_to_rgb((h + 0.1) % 1, s, v)) * 255 - turned[y, x]).max())
    assert np.mean(worst) < 3  # PIL's HSV has 8 bits a channel


def test_the_recipe_runs_in_the_papers_order():
    """The original's pipeline, in its order, spelled with torchvision's transforms and fixed parameters."""
    image = IMAGES["photograph"]
    draw = Draw(Crop(2, 4, 40, 50), (("hue", 0.05), ("saturation", 0.8), ("contrast", 1.2)), True, 0.9, True)
    pipeline = [
        lambda x: transforms.functional.resized_crop(x, 2, 4, 40, 50, (24, 24)),
        lambda x: transforms.functional.adjust_hue(x, 0.05),
        lambda x: transforms.functional.adjust_saturation(x, 0.8),
        lambda x: transforms.functional.adjust_contrast(x, 1.2),
        transforms.Grayscale(3),
        lambda x: x.filter(ImageFilter.GaussianBlur(radius=0.9)),
        transforms.RandomHorizontalFlip(1),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
    expected = image
    for step in pipeline:
        expected = step(expected)
    view = render(draw, 24, image)
    assert view.dtype == torch.uint8 and view.shape == (3, 24, 24)
    assert torch.equal(normalize_images(view[None])[0], expected)


def test_every_value_is_normalised_as_torchvision_does():
    levels = torch.arange(256, dtype=torch.uint8).repeat(3, 1).view(1, 3, 16, 16)
    to_tensor = transforms.ToTensor()(levels[0].permute(1, 2, 0).numpy())
    expected = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))(to_tensor)
    assert torch.equal(normalize_images(levels)[0], expected)


def test_scalemix_pastes_the_box_of_the_second_draw():
    image = IMAGES["photograph"]
    view = View(size=20, mix_box=mix_box, randaugment=True)
    for seed in range(30):
        u = np.random.default_rng(seed).random(uniforms_needed(view)).tolist()
        draw = draw_view(view, *image.size, u)
        first = pixels(apply_recipe(draw, 20, image))
        second = pixels(apply_recipe(draw.other, 20, image))
        top, left, bottom, right = draw.box
        mixed = render(draw, 20, image)
        for y in range(20):
            for x in range(20):
                source = second if top <= y < bottom and left <= x < right else first
                assert mixed[:, y, x].tolist() == source[y, x].tolist()


def test_flip_comes_before_randaugment():
    image = IMAGES["photograph"]
    draw = Draw(whole(image), flip=True, operations=(Operation("TranslateXRel", 0.25), Operation("Invert")))
    size = 40
    plain = apply_recipe(Draw(whole(image)), size, image)
    moved = ImageOps.mirror(plain).transform(
        (size, size), Image.Transform.AFFINE, (1, 0, 10, 0, 1, 0), Image.Resampling.BILINEAR, fillcolor=(128,) * 3
    )
    assert np.array_equal(pixels(apply_recipe(draw, size, image)), 255 - pixels(moved))
