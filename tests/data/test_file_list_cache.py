"""The cache of an image list: used while nothing has changed, and never when it is stale or damaged."""

import os
import shutil

import pytest
from torchvision.datasets import ImageFolder as TorchvisionFolder

from moco.data import file_list, file_list_cache
from moco.data.file_list import ImageFolder
from tests.data.archives import archive_of, packed
from tests.data.test_file_list import samples

pytestmark = pytest.mark.usefixtures("cache")


def listed(monkeypatch):
    """Counts the listings from now on."""
    calls = []
    list_images = file_list.list_images
    monkeypatch.setattr(file_list, "list_images", lambda *args: calls.append(args) or list_images(*args))
    return calls


def test_a_listing_is_cached_outside_the_data(data, cache, monkeypatch):
    calls = listed(monkeypatch)
    before = sorted(os.walk(data))
    first, second = ImageFolder(data), ImageFolder(data)
    assert len(calls) == 1 and sorted(os.walk(data)) == before
    assert [f.suffix for f in (cache / "asym-siam").iterdir()] == [".index"]
    assert first.classes == second.classes and samples(first) == samples(second) == TorchvisionFolder(data).samples


def add_image(data):
    shutil.copy(data / "star_dots" / "0000.jpg", data / "star_dots" / "new.jpg")


def add_nested(data):
    shutil.copy(data / "star_dots" / "0000.jpg", data / "disk_dots" / "deep" / "er" / "new.jpg")


def add_image_and_restore_the_time(data):
    """As `tar x` and `rsync -a` do."""
    before = os.stat(data / "star_dots")
    add_image(data)
    os.utime(data / "star_dots", ns=(before.st_atime_ns, before.st_mtime_ns))


def add_class(data):
    shutil.copytree(data / "star_dots", data / "a_new_class")


def rename(data):
    os.rename(data / "star_dots" / "0003.jpg", data / "star_dots" / "z.jpg")


def remove_nested(data):
    shutil.rmtree(data / "disk_dots" / "deep")


@pytest.mark.parametrize(
    "change", [add_image, add_nested, add_image_and_restore_the_time, add_class, rename, remove_nested]
)
def test_a_stale_listing_is_never_used(data, change, monkeypatch):
    before = samples(ImageFolder(data))
    calls = listed(monkeypatch)
    change(data)
    after = samples(ImageFolder(data))
    assert len(calls) == 1 and after != before and after == TorchvisionFolder(data).samples


@pytest.mark.parametrize(
    "damage", [lambda x: x[: len(x) // 2], lambda x: x[:100] + b"!" + x[101:], lambda x: b"", bytes.swapcase]
)
def test_a_damaged_listing_is_never_used(data, cache, damage, monkeypatch):
    expected = samples(ImageFolder(data))
    (file,) = (cache / "asym-siam").iterdir()
    good = file.read_bytes()
    file.write_bytes(damage(good))
    calls = listed(monkeypatch)
    assert samples(ImageFolder(data)) == expected and len(calls) == 1
    assert file.read_bytes() == good  # made anew


def test_a_link_that_points_elsewhere_is_noticed(data, tmp_path):
    shutil.copytree(data, tmp_path / "other")
    os.unlink(tmp_path / "other" / "star_dots" / "0000.jpg")
    for folder, _, _ in os.walk(data):  # with the same times
        times = os.stat(folder)
        os.utime(tmp_path / "other" / os.path.relpath(folder, data), ns=(times.st_atime_ns, times.st_mtime_ns))
    link = tmp_path / "current"
    link.symlink_to(data)
    before = len(ImageFolder(link))
    link.unlink()
    link.symlink_to(tmp_path / "other")
    assert len(ImageFolder(link)) == before - 1


def test_a_folder_in_flux_is_not_cached(data, cache):
    add_image(data)
    ImageFolder(data)
    assert not (cache / "asym-siam").exists()


def test_a_cache_that_can_not_be_written_costs_only_the_time(data, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert samples(ImageFolder(data)) == TorchvisionFolder(data).samples
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert file_list_cache.cache_file(data).startswith("/home/someone/.cache/asym-siam/")


@pytest.mark.parametrize("above", [False, True])
def test_an_archive_is_cached_until_it_is_replaced(tmp_path, monkeypatch, above):
    """By one of another or of the same size, even if it gets the same time."""
    path = archive_of(tmp_path / "train" / "cat.tar", ("1.jpg", b"old"), ("2.jpg", b"old"))
    for place in (path, path.parent):
        os.utime(place, ns=(1, 1))
    monkeypatch.setattr(file_list_cache, "SETTLED", -100)
    root, calls = path.parent if above else path, listed(monkeypatch)
    first = ImageFolder(root, labels=False)
    second = ImageFolder(root, labels=False)
    assert len(calls) == 1 and samples(first) == samples(second) and second.read(1) == b"old"
    archive_of(tmp_path / "new.tar", ("1.jpg", b"new"), ("3.jpg", b"new"))
    os.utime(tmp_path / "new.tar", ns=(1, 1))
    os.replace(tmp_path / "new.tar", path)
    os.utime(path.parent, ns=(1, 1))
    third = ImageFolder(root, labels=False)
    assert len(calls) == 2 and samples(third) != samples(second) and third.read(1) == b"new"
    with open(path, "r+b") as file:  # in its place
        file.seek(0)
        file.write(path.read_bytes())
    os.utime(path, ns=(1, 1))
    ImageFolder(root, labels=False)
    assert len(calls) == 3


def test_lists_with_and_without_labels_share_the_cache(data, tmp_path, monkeypatch):
    path = packed(data, tmp_path / "packed.tar")
    os.utime(path, (1, 1))
    monkeypatch.setattr(file_list_cache, "SETTLED", -100)
    calls = listed(monkeypatch)
    for root in (data, path):
        lists = [ImageFolder(root, labels=labels) for labels in (False, True, False)]
        assert all(one.labelled and samples(one) == samples(lists[0]) for one in lists)
    assert len(calls) == 2


def test_a_list_of_an_earlier_version_is_not_used(data, monkeypatch):
    """It may have another order."""
    calls = listed(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(file_list_cache, "FORMAT", b"3")
        ImageFolder(data)
    ImageFolder(data)
    ImageFolder(data)
    assert len(calls) == 2
