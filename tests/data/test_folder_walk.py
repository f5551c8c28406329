"""Walking a data set: links are followed, loops are refused, hidden and missing things are passed over."""

import contextlib
import os
import re

import pytest

from moco.data.file_list import ImageFolder
from moco.data.folder_walk import Listing, scan

pytestmark = pytest.mark.usefixtures("cache")


def made(root, *files):
    """Creates empty files below `root`; returns it."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"")
    return root


def listed(root):
    folder = ImageFolder(root)
    return [os.path.relpath(folder.path(i), root) for i in range(len(folder))]


HIDDEN = (".ipynb_checkpoints/cat.jpg", ".git/a/b.jpg", ".DS_Store", "__MACOSX/cat/._1.jpg")
HIDDEN += ("cat/.ipynb_checkpoints/1-checkpoint.jpg", "cat/._1.jpg", "cat/__MACOSX/2.jpg")


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    root = made(tmp_path / "train", "cat/1.jpg", "dog/deep/2.jpg", *HIDDEN)
    folder = ImageFolder(root)
    assert folder.classes == ["cat", "dog"] and listed(root) == ["cat/1.jpg", "dog/deep/2.jpg"]
    assert folder.passed_over.hidden == len(HIDDEN)


def test_the_name_of_the_root_may_be_hidden(tmp_path):
    assert listed(made(tmp_path / ".cache" / "train", "cat/1.jpg")) == ["cat/1.jpg"]


@pytest.mark.parametrize(
    "link, target, message",
    [
        ("cat/again", ".", "'{root}/cat/again' leads back to the folder '{root}/cat'"),
        ("cat/deep/up", "..", "'{root}/cat/deep/up' leads back to the folder '{root}/cat'"),
        ("cat/up", "..", "'{root}/cat/up' leads back to the folder '{root}'"),
        ("up", ".", "'{root}/up' leads back to the folder '{root}'"),
        ("cat/far", "../../..", "'{root}/cat/far' leads back to the folder '{outside}'"),
        ("cat/all", "/", "'{root}/cat/all' leads back to the folder '/'"),
    ],
)
def test_a_link_back_is_refused_by_name(tmp_path, link, target, message):
    root = made(tmp_path / "data" / "train", "cat/deep/1.jpg")
    (root / link).symlink_to(target)
    message = message.format(root=root, outside=tmp_path)
    with pytest.raises(OSError, match=re.escape(f"the link {message}, which contains it; remove the link")):
        ImageFolder(root)


def test_two_links_that_lead_to_each_other_are_refused(tmp_path):
    root = made(tmp_path / "train", "cat/1.jpg", "dog/2.jpg")
    (root / "cat" / "x").symlink_to("../dog")
    (root / "dog" / "y").symlink_to("../cat")
    with pytest.raises(OSError, match=r"cat/x/y' leads back to the folder '.*train/cat'"):
        ImageFolder(root)


def test_links_that_make_no_loop_are_followed(tmp_path):
    made(tmp_path / "store", "pets/1.jpg", "3.jpg")
    root = made(tmp_path / "train", "cat/0.jpg", "dog/2.jpg")
    for link, target in (
        ("cat/x", "store/pets"),
        ("dog/x", "store/pets"),
        ("emu", "store/pets"),
        ("dog/y", "train/cat"),
    ):
        (root / link).symlink_to(tmp_path / target)
    (root / "dog" / "3.jpg").symlink_to(tmp_path / "store" / "3.jpg")
    (tmp_path / "current").symlink_to(root)
    expected = ["cat/0.jpg", "cat/x/1.jpg", "dog/2.jpg", "dog/3.jpg", "dog/x/1.jpg"]
    expected += ["dog/y/0.jpg", "dog/y/x/1.jpg", "emu/1.jpg"]
    assert listed(root) == listed(tmp_path / "current") == expected


def test_broken_links_are_counted_and_not_cached(tmp_path, cache, monkeypatch):
    root = made(tmp_path / "train", "cat/0.jpg", "../file")
    for name, target in (("1.jpg", "/nowhere/1.jpg"), ("2.jpg", "2.jpg"), ("3.jpg", "../../file/3.jpg")):
        (root / "cat" / name).symlink_to(target)
    monkeypatch.setattr("moco.data.file_list_cache.SETTLED", -100)
    folder = ImageFolder(root)
    assert len(folder) == 1 and folder.passed_over.broken_links == 3
    assert not (cache / "asym-siam").exists()  # the targets may come back
    (tmp_path / "file").unlink()
    made(tmp_path, "file/3.jpg")
    assert listed(root) == ["cat/0.jpg", "cat/3.jpg"]


def test_a_broken_link_in_the_place_of_a_class_is_refused(tmp_path):
    root = made(tmp_path / "train", "cat/0.jpg")
    (root / "dog").symlink_to("/unmounted/dog")
    with pytest.raises(FileNotFoundError, match=r"the link '.*train/dog' leads to '/unmounted/dog', which is missing"):
        ImageFolder(root)


class Entry:
    """An os.DirEntry that raises `error` if the system is asked about it."""

    def __init__(self, name, link, error):
        self.name, self.link, self.error = name, link, error

    def is_symlink(self):
        return self.link

    def is_dir(self):
        return False

    def stat(self):
        raise self.error


def scanned(monkeypatch, *entries):
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", lambda path: contextlib.nullcontext(entries))
        return scan("folder", Listing("folder"))


def test_a_target_that_can_not_be_read_is_not_passed_over(monkeypatch):
    with pytest.raises(PermissionError, match=r"x\.jpg"):
        scanned(monkeypatch, Entry("x.jpg", True, PermissionError(13, "Permission denied", "x.jpg")))


def test_the_system_is_asked_about_no_file_that_is_not_a_link(monkeypatch):
    """A data set may have a million files on a slow server."""
    file, link = Entry("1.jpg", False, AssertionError()), Entry("2.jpg", True, FileNotFoundError(2, ""))
    hidden = Entry(".3.jpg", True, AssertionError())
    assert scanned(monkeypatch, file, link, hidden)[:4] == ({}, ["1.jpg"], ["2.jpg"], 1)


def test_a_long_listing_says_how_many_entries_it_has_seen(tmp_path, monkeypatch, capsys):
    root, now = made(tmp_path / "train", "cat/1.jpg", "cat/2.jpg", "dog/deep/3.jpg"), [0.0]

    def clock():
        now[0] += 4
        return now[0]

    monkeypatch.setattr("moco.data.folder_walk.time.monotonic", clock)
    monkeypatch.setattr("moco.data.folder_walk.OFTEN", 1)
    assert len(ImageFolder(root)) == 3
    out, error = capsys.readouterr()
    lines = [f"listing the images in {str(root)!r}: {n} files and folders so far" for n in (3, 6)]
    assert not out and error.splitlines() == lines
