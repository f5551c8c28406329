"""Images for the pixel tests, made from a seed: smooth like a photograph, and hard cases."""

import numpy as np
from PIL import Image, ImageFilter


def photograph(width=61, height=47, seed=0):
    """Blurred noise of strong contrast, RGB."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(2))
    pixels = np.asarray(image, dtype=float)
    return Image.fromarray(np.clip((pixels - pixels.mean()) * 4 + 120, 0, 255).astype(np.uint8))


def hard_cases(width=40, height=32):
    """Name to RGB image: flat, saturated, one-pixel stripes, grey noise."""
    y, x = np.mgrid[0:height, 0:width]
    grey = np.random.default_rng(1).integers(0, 256, (height, width, 1)).repeat(3, axis=2)
    arrays = {
        "flat": np.full((height, width, 3), (90, 120, 30)),
        "saturated": np.stack([(x > 20) * 255, (y > 10) * 255, x * 0], axis=2),
        "stripes": np.stack([x % 2 * 255] * 3, axis=2),
        "grey": grey,
    }
    return {name: Image.fromarray(a.astype(np.uint8)) for name, a in arrays.items()}
