"""The gallery shows the views that training would see."""

import numpy as np
import pytest
from PIL import Image

from moco.asymmetry.multicrop import multicrop_plan
from moco.data.file_list import ImageFolder
from moco.data.sampler import EpochBatchSampler
from moco.data.view_datasets import RandomViews
from moco.tools import view_gallery
from moco.views.augmentation_recipes import baseline_plan

DESIGNS = ["--enable-multicrop", "--enable-scalemix", "--enable-asym-aug", "--enable-mean-encoding"]


def contains(page, view):
    """Whether the page shows the view (H x W x 3) somewhere."""
    corner = np.argwhere((page[: 1 - view.shape[0], : 1 - view.shape[1]] == view[0, 0]).all(2))
    return any(np.array_equal(page[y : y + view.shape[0], x : x + view.shape[1]], view) for y, x in corner)


def test_it_shows_the_draws_of_that_seed_and_epoch(imagenet, tmp_path, call):
    out = tmp_path / "views.png"
    flags = ["--images", "2", "--seed", "5", "--epoch", "3", "--crop-size", "48", "--out", str(out)]
    assert call(view_gallery.main, imagenet, *flags) == (0, f"wrote {out}\n", "")
    page = np.asarray(Image.open(out))
    folder = ImageFolder(imagenet / "train")
    order = EpochBatchSampler(96, 96, seed=5)
    order.epoch = 3
    dataset = RandomViews(folder, baseline_plan(48).views, seed=5)
    first = next(iter(order))
    for address in first[:2]:
        for view in dataset[address][0]:
            assert contains(page, view.permute(1, 2, 0).numpy())
    assert not contains(page, dataset[first[2]][0][0].permute(1, 2, 0).numpy())


def test_small_views_of_the_target_stand_on_its_side(imagenet, tmp_path, call):
    words = ["--design", "multicrop:target", "--crop-size", "32", "--mini-crop-size", "12", "--images", "1"]
    assert call(view_gallery.main, imagenet, *words, "--seed", "5", "--out", tmp_path / "views.png")[0] == 0
    page = np.asarray(Image.open(tmp_path / "views.png"))
    folder = ImageFolder(imagenet / "train")
    dataset = RandomViews(folder, multicrop_plan(baseline_plan(32), 12, side="target").views, seed=5)
    source, *target = dataset[next(iter(EpochBatchSampler(96, 96, seed=5)))[0]][0]
    middle = 2 * view_gallery.MARGIN + view_gallery.LABEL + 32  # behind the source's one view
    assert len(target) == 7 and contains(page[:, :middle], source.permute(1, 2, 0).numpy())
    for view in target:
        assert contains(page[:, middle:], view.permute(1, 2, 0).numpy())


def test_it_shows_its_progress(imagenet, tmp_path, impatient, call):
    out = tmp_path / "views.png"
    code, said, error = call(view_gallery.main, imagenet, "--images", "3", "--crop-size", "16", "--out", out)
    assert (code, said) == (0, f"wrote {out}\n")
    lines = ["drawing: 1 of 3 images (33%)", "drawing: 2 of 3 images (67%)"]
    assert [line.partition(", ")[0] for line in error.splitlines()] == lines


@pytest.mark.parametrize("flags", [["--augment-on", "cpu"], ["--augment-on", "device"], ["--both-paths"]])
def test_every_design_on_every_path(imagenet, tmp_path, flags, call):
    out = tmp_path / "views.png"
    small = ["--images", "2", "--crop-size", "32", "--mini-crop-size", "12", "--out", str(out)]
    code, _, error = call(view_gallery.main, imagenet, *DESIGNS, *small, *flags)
    assert code == 0, error
    page = np.asarray(Image.open(out))
    assert (page == view_gallery.FRAME).all(2).any()  # a box of ScaleMix


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--images", "97"], "has 96 images, fewer than --images 97; give fewer"),
        (["--images", "0"], "'0' is not an integer >= 1"),
        (["--crop-size", "0"], "'0' is not an integer >= 1"),
        (
            ["--crop-size", "99999999"],
            "views of 99999999 pixels for 4 images need 3,839,999,923.2 GB, but there are ",
        ),
        (["--enable-multicrop", "--mini-crop-size", "99999999"], "or fewer --images"),
        (["--images", "99999999999"], "or fewer --images"),
        (["--seed", "-1"], "'-1' is not an integer >= 0"),
        (["--epoch", "x"], "'x' is not an integer >= 0"),
        (["--augment-on", "gpu"], "give one of cpu, device"),
        (["--out", "no/x.png"], "'no' is no folder; make it first"),
        (["--out", "x.xyz"], "give a name that ends in .png or "),
        (["--multicrop"], "did you mean --enable-multicrop?"),
    ],
)
def test_what_it_refuses(flags, message, imagenet, call, monkeypatch):
    monkeypatch.setattr(view_gallery, "picture", lambda *_: pytest.fail("it worked"))
    code, out, error = call(view_gallery.main, imagenet, *flags)
    assert code == 2 and not out and error.count("\n") == 1 and message in error


def test_folders_that_it_refuses(tmp_path, call):
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "train" / "a" / "text.jpg").write_text("no image")
    for folder, message in (
        ("nowhere", "no folder"),
        (".", "can't decode the image"),
        ("train/a/text.jpg", "is no tar archive; give a folder of images"),
    ):
        code, _, error = call(view_gallery.main, tmp_path / folder, "--images", "1", "--out", tmp_path / "x.png")
        assert code == 2 and error.count("\n") == 1 and message in error
    assert not (tmp_path / "x.png").exists()
