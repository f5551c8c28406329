"""Which folder or archive a script reads; and that a run from an archive equals the run from its folder."""

import re
import shutil

import pytest
import torch

import main_lincls
import main_moco
from moco.data.file_list import ImageFolder
from moco.data.image_places import image_places, labelled_images, training_images, training_place
from tests.data.archives import archive_of, packed, packed_classes
from tests.data.test_file_list import files
from tests.tiny_net import use_tiny_net

pytestmark = pytest.mark.usefixtures("cache")


@pytest.mark.parametrize(
    "names, place",
    [
        (["train/cat/1.jpg", "val/cat/1.jpg", "train.tar"], "train"),
        (["train.tar", "val.tar"], "train.tar"),
        (["cat/1.jpg", "1.jpg"], ""),
        (["1.jpg"], ""),
    ],
)
def test_the_place_of_the_training_images(tmp_path, names, place):
    files(*names)(tmp_path)
    assert training_place(str(tmp_path)) == str(tmp_path / place).rstrip("/")


def test_an_archive_is_its_own_place(tmp_path):
    path = str(archive_of(tmp_path / "photos.tar", ("1.jpg", b"")))
    assert training_place(path) == path and image_places(path) == [path] and len(training_images(path)) == 1


@pytest.mark.parametrize("names", [["val/cat/1.jpg"], ["val.tar", "1.jpg"]])
def test_validation_images_are_not_trained_on_by_mistake(tmp_path, names):
    files(*names)(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has val\S* but neither train nor train.tar; add one"):
        training_images(str(tmp_path))


def test_what_pretraining_refuses(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no folder '{tmp_path}/x'; it must hold images"):
        training_images(f"{tmp_path}/x")
    (tmp_path / "train").symlink_to("/unmounted")
    with pytest.raises(FileNotFoundError, match=r"the link '.*/train' leads to '/unmounted', which is missing"):
        training_images(str(tmp_path))


def test_labelled_images_lie_in_val_or_val_tar(imagenet, tmp_path):
    expected = ImageFolder(imagenet / "val")
    packed(imagenet / "val", tmp_path / "val.tar", "val")
    folder = labelled_images(str(tmp_path), "val")
    assert folder.root == f"{tmp_path}/val.tar" and (folder.labels == expected.labels).all()
    with pytest.raises(FileNotFoundError, match=re.escape(f"no folder '{tmp_path}/train'; '{tmp_path}' must")):
        labelled_images(str(tmp_path), "train")
    with pytest.raises(NotADirectoryError, match=r"val.tar' is a file; it must be a folder that holds the folders"):
        labelled_images(f"{tmp_path}/val.tar", "val")


FLAGS = ["-a", "resnet18", "--crop-size", "32", "-b", "24", "-j", "0", "--seed", "2", "-p", "9"]


def assert_equal(a, b):
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_from_archives_equals_the_run_from_folders_and_continues_it(imagenet, tmp_path, call, monkeypatch):
    """Both scripts and the kNN classification; the last run continues from DIR/train/*.tar what began in folders."""
    tars, mixed = tmp_path / "tars", tmp_path / "mixed"
    for split in ("train", "val"):
        packed(imagenet / split, tars / f"{split}.tar", split)
        packed_classes(imagenet / split, mixed / split, ".")

    def run(script, name, data, place, *more):
        use_tiny_net(monkeypatch)
        code, out, error = call(script.main, data, *FLAGS, *more, "--output-dir", tmp_path / place)
        assert code == 0, error
        state = torch.load(tmp_path / place / name, weights_only=True)["state_dict"]
        return state, [line for line in out.splitlines() if line.startswith(" * kNN ")]

    moco = main_moco, "checkpoint__0001.pth.tar"
    flags = ["--moco-k", "64", "--epochs", "2", "--knn-every", "1", "--knn-k", "5"]
    folders, lines = run(*moco, imagenet, "a", *flags)
    same, same_lines = run(*moco, tars, "b", *flags)
    assert_equal(folders, same)
    assert lines == same_lines and len(lines) == 2
    (tmp_path / "c").mkdir()
    shutil.copy(tmp_path / "a" / "checkpoint__0000.pth.tar", tmp_path / "c")
    assert_equal(folders, run(*moco, mixed, "c", *flags, "--resume", "auto")[0])
    lincls = main_lincls, "checkpoint.pth.tar"
    pair = [
        run(*lincls, data, f"d{i}", "--pretrained", "none", "--epochs", 1) for i, data in enumerate((imagenet, tars))
    ]
    assert_equal(pair[0][0], pair[1][0])


def test_bad_members_are_skipped_and_listed(imagenet, tmp_path, call, monkeypatch):
    use_tiny_net(monkeypatch)
    shutil.copytree(imagenet / "train", tmp_path / "train")
    (tmp_path / "train" / "star_dots" / "0003.jpg").write_bytes(b"broken")
    packed(tmp_path / "train", tmp_path / "data" / "train.tar")
    words = [tmp_path / "data", *FLAGS, "--moco-k", "64", "--epochs", "2", "--output-dir", tmp_path / "out"]
    member = f"{tmp_path}/data/train.tar!star_dots/0003.jpg"
    code, _, error = call(main_moco.main, *words)
    assert code == 1 and error.startswith(f"error: can't decode the image '{member}': it is none of JPEG")
    code, _, error = call(main_moco.main, *words, "--on-bad-image", "skip")
    assert code == 0 and error.count("another image is used instead (1 bad so far, limit 10)") == 1
    assert (tmp_path / "out" / "bad_images.txt").read_text() == f"{member}\n"


def test_output_among_the_images_is_refused(imagenet, tmp_path, call, monkeypatch):
    use_tiny_net(monkeypatch)
    photos = tmp_path / "photos"
    shutil.copytree(imagenet / "train", photos)
    code, _, error = call(main_moco.main, photos, *FLAGS, "--moco-k", 64, "--output-dir", photos)
    assert code == 2 and f"--output-dir '{photos}' lies in '{photos}', among the images; give a folder" in error
