"""Broken images: what can't be decoded is named, or replaced as a function of (seed, epoch, index)."""

import errno
import shutil

import pytest
import torch

import main_moco
from moco.data import file_list
from moco.data.bad_image_substitutes import NextGoodImage, Substitutes, TooManyBadImages
from moco.data.file_list import ImageFolder
from moco.data.image_reading import BadImageError, ImageReadError
from moco.loader import training_loader
from moco.views.augmentation_recipes import baseline_plan
from tests.tiny_net import use_tiny_net

BROKEN = (4, 50)


@pytest.fixture(scope="module")
def folder(imagenet, tmp_path_factory):
    """The fake ImageNet with two broken images."""
    root = tmp_path_factory.mktemp("broken")
    shutil.copytree(imagenet, root, dirs_exist_ok=True)
    whole = ImageFolder(root / "train")
    for index in BROKEN:
        with open(whole.path(index), "r+b") as file:
            file.truncate(200)
    return whole


def epoch_of(folder, seed, path, workers=0, augment_on="cpu", epoch=1):
    substitutes = Substitutes(folder, seed, str(path))
    views = baseline_plan(24).views
    loader = training_loader(folder, views, 24, seed, workers, augment_on=augment_on, substitutes=substitutes)
    loader.batch_sampler.epoch = epoch
    batches = list(loader)
    order = [i for batch in loader.batch_sampler for _, i in batch]
    return batches, torch.cat([batch[-1] for batch in batches]), order


@pytest.mark.parametrize("augment_on", ["cpu", "device"])
def test_substitutes_do_not_depend_on_workers_but_on_seed_and_epoch(folder, tmp_path, augment_on, capfd):
    plain, labels, order = epoch_of(folder, 7, tmp_path / "a", 0, augment_on)
    spread, _, _ = epoch_of(folder, 7, tmp_path / "b", 3, augment_on)

    def tensors(batches):
        return [t for batch in batches for t in torch.utils._pytree.tree_leaves(batch)]

    assert all(torch.equal(a, b) for a, b in zip(tensors(plain), tensors(spread), strict=True))
    for place, index in enumerate(order):
        if index not in BROKEN:
            assert labels[place] == folder.labels[index]
    chosen = {
        (seed, epoch): tuple(
            Substitutes(folder, seed, str(tmp_path / "c")).decode(folder.load, epoch, i)[1] for i in BROKEN
        )
        for seed in (7, 8)
        for epoch in (1, 2)
    }
    assert len(set(chosen.values())) == 4 and not {i for pair in chosen.values() for i in pair} & set(BROKEN)
    for index, shown in zip(BROKEN, chosen[7, 1], strict=True):
        assert labels[order.index(index)] == folder.labels[shown]
    listed = (tmp_path / "b").read_text().splitlines()
    assert sorted(set(listed)) == sorted(folder.path(i) for i in BROKEN)
    assert f"can't decode the image '{folder.path(4)}'" in capfd.readouterr().err


def test_a_file_is_counted_once_over_epochs_and_resumes(folder, tmp_path):
    for epoch in range(3):
        epoch_of(folder, 7, tmp_path / "list", epoch=epoch)
    assert len((tmp_path / "list").read_text().splitlines()) == 2
    (tmp_path / "list").write_text((tmp_path / "list").read_text() + "/of/another/folder.jpg\n")
    assert Substitutes(folder, 7, str(tmp_path / "list")).listed() == {folder.path(i) for i in BROKEN}


def test_too_many_bad_images_stop_the_run(tmp_path, imagenet):
    root = tmp_path / "data"
    shutil.copytree(imagenet, root)
    folder = ImageFolder(root / "train")
    for index in range(11):
        with open(folder.path(index), "wb") as file:
            file.write(b"broken")
    substitutes = Substitutes(folder, 0, str(tmp_path / "new" / "list"))
    assert substitutes.limit == 10
    for index in range(10):
        assert substitutes.decode(folder.load, 0, index)[1] > 9
    with pytest.raises(TooManyBadImages, match="11 images can't be decoded, more than 10; they are listed in"):
        for epoch in range(30):
            substitutes.decode(folder.load, epoch, 10)
    assert len(substitutes.listed()) == 11
    again = Substitutes(folder, 0, substitutes.path)  # as in a run that is resumed
    with pytest.raises(TooManyBadImages, match="11 images"):
        again.decode(folder.load, 0, 10)


def test_a_folder_without_a_good_image_stops_the_run(tmp_path):
    (tmp_path / "a").mkdir()
    for i in range(3):
        (tmp_path / "a" / f"{i}.jpg").write_bytes(b"broken")
    folder = ImageFolder(tmp_path)
    with pytest.raises(TooManyBadImages, match="3 images can't be decoded, more than 2"):
        Substitutes(folder, 0, str(tmp_path / "list")).decode(folder.load, 0, 0)


def test_a_list_that_can_not_be_written_ends_nothing(folder, tmp_path, capsys):
    (tmp_path / "file").touch()
    substitutes = Substitutes(folder, 0, str(tmp_path / "file" / "list"))
    assert substitutes.decode(folder.load, 0, 4)[1] != 4
    assert "warning: can't write" in capsys.readouterr().err
    substitutes.limit = 1  # which holds nevertheless
    with pytest.raises(TooManyBadImages, match="2 images"):
        substitutes.decode(folder.load, 0, 50)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), MemoryError()])
def test_a_trouble_of_the_system_is_no_bad_image(folder, tmp_path, monkeypatch, error):
    def failing(path):
        raise error

    monkeypatch.setattr(file_list, "read_file", failing)
    substitutes = Substitutes(folder, 0, str(tmp_path / "list"))
    for load in (folder.load, folder.load_tensor):
        with pytest.raises(ImageReadError, match=r"can't read .*jpg': (Input/output|out of memory).*; the system"):
            substitutes.decode(load, 0, 7)
    assert substitutes.listed() == set()


def test_the_limit_is_a_thousandth_of_many():
    class Many:
        def __len__(self):
            return 1_281_167

    assert Substitutes(Many(), 0, "list").limit == 1281


def test_the_script_names_the_way_out_and_skips_and_reports(folder, tmp_path, call, monkeypatch):
    use_tiny_net(monkeypatch)
    words = [folder.root.removesuffix("/train"), "-a", "resnet18", "--crop-size", "32", "-b", "24", "--moco-k", "64"]
    words += ["-j", "0", "--epochs", "1", "--seed", "2", "--output-dir", str(tmp_path)]
    code, _, err = call(main_moco.main, *words)
    assert code == 1 and err.startswith(f"error: can't decode the image '{folder.root}/") and err.count("\n") == 1
    assert err.endswith("; repair or remove it, or give --on-bad-image skip, which uses another image instead\n")
    code, out, err = call(main_moco.main, *words, "--on-bad-image", "skip")
    assert code == 0 and "another image is used instead (1 bad so far, limit 10)" in err
    assert f"note: 2 images could not be decoded so far; '{tmp_path}/bad_images.txt' lists them" in out
    assert '"bad_images": 2' in (tmp_path / "log.jsonl").read_text()


def test_the_next_good_image_is_the_same_for_all_views(capsys):
    def load(index):
        if index in (2, 3, 9):
            raise BadImageError(f"bad {index}")
        return 10 * index

    following = NextGoodImage(range(10))  # of the folder, only the length counts
    for epoch in (0, 1):
        assert [following.decode(load, epoch, i) for i in (1, 2, 3, 9)] == [(10, 1), (40, 4), (40, 4), (0, 0)]
    lines = [f"warning: bad {i}; the next image is used instead" for i in (2, 3, 9)]
    assert capsys.readouterr().err.splitlines() == lines  # each once
    with pytest.raises(BadImageError, match="bad 9"):
        NextGoodImage(range(10)).decode(lambda index: load(9), 0, 4)
