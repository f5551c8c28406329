"""The index of a tar archive: an archive is the folder that it would be unpacked to."""

import os
import re
import subprocess
import tarfile

import pytest

from moco.data import tar_index
from moco.data.file_list import ImageFolder
from moco.data.tar_headers import ArchiveError
from tests.data.archives import archive_of, link, packed

pytestmark = pytest.mark.usefixtures("cache")


def images(path, **how):
    folder = ImageFolder(path, **how)
    return [(folder.path(i).removeprefix(f"{path}!"), int(folder.labels[i])) for i in range(len(folder))]


def test_links_inside_are_followed(tmp_path):
    path = archive_of(
        tmp_path / "a.tar",
        ("cat/0.jpg", b"zero"),
        (".git/annex/1", b"one"),
        link("cat/1.jpg", "../.git/annex/1"),
        link("cat/2.jpg", "./1.jpg"),
        link("dog/3.jpg", "./cat/0.jpg", tarfile.LNKTYPE),
        link("cat/4.jpg", "nowhere.jpg"),
        link("cat/5.jpg", "6.jpg"),
        link("cat/6.jpg", "5.jpg"),
        link("cat/.7.jpg", "/hidden"),
    )
    folder = ImageFolder(path)
    assert images(path) == [("cat/0.jpg", 0), ("cat/1.jpg", 0), ("cat/2.jpg", 0), ("dog/3.jpg", 1)]
    assert [folder.read(i) for i in range(4)] == [b"zero", b"one", b"one", b"zero"]
    assert folder.summary().endswith("; passed over: 2 hidden, 3 broken links")


@pytest.mark.parametrize(
    "odd, message",
    [
        (
            link("cat/1.jpg", "/data/1.jpg"),
            "the link 'A!cat/1.jpg' leads to '/data/1.jpg', which is not in the",
        ),
        (
            link("cat/1.jpg", "../../1.jpg"),
            "the link 'A!cat/1.jpg' leads to '../../1.jpg', which is not in",
        ),
        (
            link("cat/1.jpg", "../x", tarfile.LNKTYPE),
            "the link 'A!cat/1.jpg' leads to '../x', which is",
        ),
        (
            link("emu", "cat"),
            "the link 'A!emu' leads to the folder 'cat'; make the archive again with tar --d",
        ),
        (link("cat/x", "."), "the link 'A!cat/x' leads to the folder 'cat'"),
        (link("dog.tar", "in.tar"), "the link 'A!dog.tar' leads to the archive 'in.tar'"),
        (
            ("cat/../../etc/1.jpg", b""),
            "the member 'A!cat/../../etc/1.jpg' has '..' in its path; make the",
        ),
        (("x/" * 2100 + "1.jpg", b""), "has more than 4096 bytes in its path"),
        (("cat/" + "x" * 5000 + ".jpg", b""), "has more than 4096 bytes in its path"),
        (
            link("cat/2.jpg", ".x"),
            "the link 'A!cat/2.jpg' leads to '/data/1.jpg', which is not in the archive",
        ),
    ],
)
def test_what_leads_out_of_the_archive_is_refused(tmp_path, odd, message):
    path = archive_of(tmp_path / "a.tar", link("cat/.x", "/data/1.jpg"), ("cat/0.jpg", b""), ("in.tar", b""), odd)
    with pytest.raises(ArchiveError, match=re.escape(message.replace("A!", f"{path}!"))):
        ImageFolder(path)


def test_odd_names(tmp_path):
    """As tar unpacks them: from the root of the archive, the last of equal names."""
    path = archive_of(
        tmp_path / "a.tar",
        ("/abs/1.jpg", b"old"),
        ("./b//./2\n.jpg", b"2"),
        ("abs/1.jpg", b"new"),
        ("\udcff/3.jpg", b"3"),
    )
    assert images(path) == [("abs/1.jpg", 0), ("b/2\n.jpg", 1), ("\udcff/3.jpg", 2)]
    assert ImageFolder(path).read(0) == b"new"


HARD = tarfile.LNKTYPE


@pytest.mark.parametrize(
    "members",
    [
        # Through a hidden link.
        [("a/1.jpg", b"1"), link(".b/x", "../a/1.jpg"), link("a/2.jpg", "../.b/x")],
        [("a/1.jpg", b"1"), link(".b/x", "a/1.jpg", HARD), link("a/2.jpg", ".b/x", HARD), link("a/3.jpg", "../.b/x")],
        [link("a/2.jpg", ".x"), link("a/.x", ".y"), link("a/.y", "1.jpg"), ("a/1.jpg", b"1")],
        # Names that occur twice, as after `tar -r`.
        [link("a/1.jpg", "2.jpg"), ("a/2.jpg", b"2"), ("a/1.jpg", b"1")],
        [("a/1.jpg", b"1"), ("a/2.jpg", b"2"), link("a/1.jpg", "2.jpg")],
        [("a/1.jpg", b"1"), link("a/2.jpg", "a/1.jpg", HARD), ("a/1.jpg", b"new"), link("a/3.jpg", "a/1.jpg", HARD)],
        [link("a/1.jpg", "2.jpg"), ("a/1.jpg", b"1"), ("a/2.jpg", b"2"), link("a/1.jpg", "3.jpg"), ("a/3.jpg", b"3")],
        [("a/1.jpg", b"1"), link("a/1.jpg", "a/1.jpg", HARD)],
        [("a/0.jpg", b"0"), ("a/1.jpg", b"1"), link("a/1.jpg", "nowhere")],
        [("a/.x", b"old"), link("a/1.jpg", "a/.x", HARD), ("a/.x", b"new"), link("a/2.jpg", ".x")],
        # A hard link to a symbolic link, which leads on from its own folder, or from where it has led at that point.
        [("a/1.jpg", b"a"), ("b/1.jpg", b"b"), link("a/2.jpg", "1.jpg"), link("b/3.jpg", "a/2.jpg", HARD)],
        [("a/1.jpg", b"1"), link("a/2.jpg", "1.jpg"), link("a/3.jpg", "a/2.jpg", HARD), ("a/2.jpg", b"2")],
    ],
)
def test_links_and_repeated_names_mean_what_they_mean_after_unpacking(tmp_path, members):
    path = archive_of(tmp_path / "links.tar", *members)
    (tmp_path / "links").mkdir()
    subprocess.run(["tar", "xf", path, "-C", tmp_path / "links"], check=True, stderr=subprocess.DEVNULL)
    folder, unpacked = ImageFolder(path), ImageFolder(tmp_path / "links")
    assert [name for name, _ in images(path)] == [
        os.path.relpath(unpacked.path(i), tmp_path / "links") for i in range(len(unpacked))
    ]
    assert [folder.read(i) for i in range(len(folder))] == [unpacked.read(i) for i in range(len(unpacked))]
    assert folder.passed_over == unpacked.passed_over


def test_a_hard_link_before_its_target_is_broken_as_for_tar(tmp_path):
    path = archive_of(tmp_path / "links.tar", link("a/1.jpg", "a/2.jpg", HARD), ("a/2.jpg", b"2"))
    assert images(path) == [("a/2.jpg", 0)] and ImageFolder(path).passed_over.broken_links == 1


def test_a_link_that_a_file_replaces_may_lead_anywhere(tmp_path):
    path = archive_of(tmp_path / "links.tar", link("a/1.jpg", "/nowhere"), ("a/1.jpg", b"1"))
    assert images(path) == [("a/1.jpg", 0)] and ImageFolder(path).read(0) == b"1"


@pytest.mark.parametrize("top", [".", "train", "./train/"])
def test_the_folder_of_the_archives_own_name_is_the_archive(imagenet, tmp_path, top):
    path = packed(imagenet / "train", tmp_path / "train.tar", top)
    folder, unpacked = ImageFolder(path), ImageFolder(imagenet / "train")
    assert folder.classes == unpacked.classes and (folder.labels == unpacked.labels).all()
    assert folder.summary() == f"images: 96 of 12 classes in '{path}'"


def test_an_archives_own_name_may_hold_an_exclamation_mark(tmp_path):
    members = ("a!b/cat/1.jpg", b""), ("a!b/dog/1.jpg", b"")
    path = archive_of(tmp_path / "a!b.tar", *members)
    assert ImageFolder(path).classes == ["cat", "dog"]
    outer = archive_of(tmp_path / "x.tar", ("a!b.tar", path.read_bytes()), ("c!a!b.tar", path.read_bytes()))
    assert ImageFolder(outer).classes == ["a!b", "c!a!b"]
    assert images(outer)[-1] == ("c!a!b.tar!a!b/dog/1.jpg", 1)


def test_a_zero_byte_in_a_path_is_named(tmp_path):
    info = tarfile.TarInfo("x")
    info.pax_headers = {"path": "cat/a\0b.jpg"}
    with pytest.raises(ArchiveError, match=r"b.jpg' has a zero byte in its path; make the archive again"):
        ImageFolder(archive_of(tmp_path / "a.tar", info))


def test_another_folder_alone_is_a_class(imagenet, tmp_path):
    path = packed(imagenet / "train", tmp_path / "train.tar", "other")
    assert ImageFolder(path).classes == ["other"]


def test_hidden_files_are_counted_as_in_a_folder(tmp_path):
    names = (".DS_Store", "cat/._1.jpg", "__MACOSX/cat/._1.jpg", "cat/.x/y/2.jpg", "cat/.x/z/3.jpg", "cat/1.jpg")
    for name in names:
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / name).write_bytes(b"")
    path = packed(tmp_path / "train", tmp_path / "train.tar", "train")
    assert images(path) == [("train/cat/1.jpg", 0)]
    assert ImageFolder(path).passed_over == ImageFolder(tmp_path / "train").passed_over
    assert ImageFolder(path).passed_over.hidden == 4


def test_archives_too_deep_are_refused(tmp_path):
    path = archive_of(tmp_path / "0.tar", ("1.jpg", b""))
    for depth in range(1, tar_index.DEEPEST + 1):
        if depth == tar_index.DEEPEST:
            assert len(ImageFolder(path, labels=False)) == 1
        path = archive_of(tmp_path / f"{depth}.tar", ("x.tar", path.read_bytes()))
    with pytest.raises(ArchiveError, match=r"'.*4.tar!x.tar!x.tar!x.tar!x.tar' lies in 4 archives .*; unpack"):
        ImageFolder(path, labels=False)


@pytest.mark.parametrize("inner, message", [(b"\x1f\x8b" * 9, "compressed (gzip)"), (b"x" * 600, "is no tar archive")])
def test_an_inner_archive_is_refused_by_name(tmp_path, inner, message):
    path = archive_of(tmp_path / "a.tar", ("cat.tar", inner))
    with pytest.raises(ArchiveError, match=re.escape(f"'{path}!cat.tar' is {message.removeprefix('is ')}")):
        ImageFolder(path)


def test_an_archive_of_train_and_val_is_refused(imagenet, tmp_path):
    path = packed(imagenet, tmp_path / "imagenet.tar", "imagenet")
    for labels in (False, True):
        with pytest.raises(ArchiveError, match=r"imagenet.tar' holds train and val; make an archive of each, such as"):
            ImageFolder(path, labels=labels)


def test_a_pipe_is_no_archive(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(OSError, match=r"a.tar' is no regular file; give a folder of images or an uncompressed tar"):
        ImageFolder(tmp_path / "a.tar")
