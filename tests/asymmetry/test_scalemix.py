"""ScaleMix's box against its definition, on views that are not square too."""

import math

import numpy as np
import pytest
import torch

from moco.asymmetry.scalemix import mix_box, scalemix
from moco.views.augment_with_pillow import paste


@pytest.mark.parametrize("height, width", [(32, 32), (20, 50), (50, 20), (1, 1)])
def test_box_is_that_of_the_paper(height, width):
    rng = np.random.default_rng(0)
    for u in rng.random((500, 3)):
        lam, row, column = u[0], math.floor(u[1] * height), math.floor(u[2] * width)
        half_height = int(height * math.sqrt(1 - lam)) // 2
        half_width = int(width * math.sqrt(1 - lam)) // 2
        top, left, bottom, right = mix_box(height, width, u)
        assert (top, bottom) == (max(0, row - half_height), min(height, row + half_height))
        assert (left, right) == (max(0, column - half_width), min(width, column + half_width))


def test_box_has_the_share_1_minus_lambda_where_nothing_is_clipped():
    for lam in np.linspace(0.01, 0.99, 50):
        top, left, bottom, right = mix_box(400, 200, (lam, 0.5, 0.5))
        assert abs((bottom - top) * (right - left) / (400 * 200) - (1 - lam)) < 0.03


def test_centres_reach_every_pixel():
    rng = np.random.default_rng(1)
    boxes = [mix_box(4, 6, (0.6, *u)) for u in rng.random((600, 2))]  # half sides: 1 row, 1 column
    centres = {(bottom - 1, right - 1) for top, left, bottom, right in boxes if (bottom - top, right - left) == (2, 2)}
    assert centres == {(row, column) for row in range(1, 4) for column in range(1, 6)}


def test_paste_leaves_its_inputs():
    first, second = torch.zeros(3, 5, 8, dtype=torch.uint8), torch.ones(3, 5, 8, dtype=torch.uint8)
    mixed = paste(first, second, (1, 2, 4, 7))
    assert mixed.sum() == 3 * 3 * 5 and mixed[:, 1:4, 2:7].min() == 1
    assert not first.any() and second.all()
    assert torch.equal(paste(first, second, (3, 3, 3, 3)), first)


def test_scalemix_of_batches_uses_one_box_and_the_global_generator():
    first, second = torch.zeros(4, 3, 20, 50), torch.ones(4, 3, 20, 50)
    torch.manual_seed(0)
    a = scalemix(first, second)
    torch.manual_seed(0)
    assert torch.equal(a, scalemix(first, second))
    assert torch.equal(a[0], a[3]) and set(a.unique().tolist()) <= {0.0, 1.0}
    rows, columns = a[0, 0].any(1).sum(), a[0, 0].any(0).sum()
    assert a[0, 0].sum() == rows * columns  # a box
    assert scalemix(first, second)[0, 0].sum() != a[0, 0].sum()


def test_scalemix_refuses_two_shapes():
    with pytest.raises(ValueError, match=r"\(3, 4, 4\) and \(3, 4, 5\)"):
        scalemix(torch.zeros(3, 4, 4), torch.zeros(3, 4, 5))
