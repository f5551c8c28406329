"""Datasets: the central views of validation, against torchvision, and images that can't serve."""

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from moco.data.file_list import ImageFolder
from moco.data.view_datasets import CentralViews, RandomCrops, RandomViews
from moco.views.augmentation_recipes import View


@pytest.mark.parametrize("size", [224, 32])
def test_central_view_is_that_of_torchvision(imagenet, size):
    folder = ImageFolder(imagenet / "val")
    view, label = CentralViews(folder, size)[5]
    image = Image.open(folder.path(5)).convert("RGB")
    resized = v2.Resize({224: 256, 32: 37}[size])(image)
    assert torch.equal(view, v2.functional.pil_to_tensor(v2.CenterCrop(size)(resized)))
    assert view.shape == (3, size, size) and label == folder.labels[5]


def test_an_image_too_long_to_be_resized_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("L", (30000, 2)).save(tmp_path / "a" / "long.png")
    Image.new("L", (300, 2)).save(tmp_path / "a" / "short.png")
    folder = ImageFolder(tmp_path)
    with pytest.raises(
        OSError, match=r"long.png' of 30000 x 2 pixels is too long: with its shorter side resized to 256"
    ):
        CentralViews(folder, 224)[0]
    assert CentralViews(folder, 224)[1][0].shape == (3, 224, 224)


def test_what_no_dataset_can_have():
    with pytest.raises(ValueError, match="images of 0 px are not possible"):
        CentralViews([], 0)
    for kind in (RandomViews, RandomCrops):
        for views, seed in (((), 0), ((View(8),), -1)):
            with pytest.raises(ValueError, match=f"a dataset has {len(views)} views and the seed {seed}"):
                kind([], views, seed)
