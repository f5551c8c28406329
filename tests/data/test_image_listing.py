"""What a folder may be: any tree of images, tar archives in all places, and their lists, which equal each other."""

import re
import shutil

import pytest

from moco.data.file_list import ImageFolder
from moco.data.tar_headers import ArchiveError
from tests.data.archives import archive_of, packed, packed_classes
from tests.data.test_file_list import files

pytestmark = pytest.mark.usefixtures("cache")


def contents(folder):
    """The bytes and the label of each image."""
    return [(folder.read(i), int(folder.labels[i])) for i in range(len(folder))]


def tar_of_folders(train, to):
    return packed(train, to / "train.tar", "train")


def tar_of_class_tars(train, to):
    return packed(packed_classes(train, to / "classes", "."), to / "ILSVRC2012_img_train.tar")


def class_tars(train, to):
    return packed_classes(train, to / "train")


def folders_of_tars(train, to):
    """Each class folder holds one tar for each of its folders."""
    for path in train.iterdir():
        packed(path, to / "train" / path.name / "images.tar", ".")
    return to / "train"


@pytest.mark.parametrize("form", [tar_of_folders, tar_of_class_tars, class_tars, folders_of_tars])
@pytest.mark.parametrize("labels", [True, False])
def test_every_form_lists_what_its_unpacked_folder_lists(data, tmp_path, form, labels):
    """`data` has nested folders, and a name that is not ASCII."""
    path, unpacked = form(data, tmp_path / "packed"), ImageFolder(data)
    for _ in range(2):  # the second time from the cache
        folder = ImageFolder(path, labels=labels)
        assert folder.classes == unpacked.classes and folder.labelled and contents(folder) == contents(unpacked)
    assert contents(ImageFolder(path, any_tree=True)) == contents(unpacked)


def test_the_order_is_that_of_whole_paths(tmp_path):
    """A folder, then folders whose names go on with a character below the slash, then the folders in it."""
    names = ("a/1.jpg", "a/x/2.jpg", "a-b/3.jpg", "a-b/x/4.jpg")
    for name in names:
        (tmp_path / "cat" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cat" / name).write_bytes(name.encode())
    packed_classes(tmp_path / "cat", tmp_path / "tars" / "cat", ".")
    shutil.copytree(tmp_path / "cat", tmp_path / "train" / "cat")
    expected = contents(ImageFolder(tmp_path / "train"))
    assert [data.decode() for data, _ in expected] == ["a/1.jpg", "a-b/3.jpg", "a-b/x/4.jpg", "a/x/2.jpg"]
    for path in (tmp_path / "tars", packed(tmp_path / "train", tmp_path / "train.tar")):
        assert contents(ImageFolder(path)) == expected


def listed(root, **how):
    folder = ImageFolder(root, **how)
    return [(folder.path(i).removeprefix(str(root)), int(folder.labels[i])) for i in range(len(folder))], (
        folder.summary().partition("; passed over: ")[2]
    )


FLAT = [("/1.jpg", -1), ("/2.jpg", -1)]


@pytest.mark.parametrize(
    "names, images, passed_over",
    [
        (["2.jpg", "1.jpg"], FLAT, ""),
        (["2.jpg", "1.jpg", "empty/x/a.txt", ".x", "n.md"], FLAT,
         "2 files with other extensions (.txt, .md), 1 hidden, 1 folder without images"),
        (["1.jpg", "cat/2.jpg", "dog/x/3.jpg", "emu/a.txt"], [("/cat/2.jpg", 0), ("/dog/x/3.jpg", 1)],
         "1 file with another extension (.txt), 1 file outside the class folders, 1 folder without images"),
    ],
)  # fmt: skip
def test_pretraining_takes_any_tree(tmp_path, names, images, passed_over):
    root = tmp_path / "photos"
    files(*names)(root)
    for path in (root, packed(root, tmp_path / "photos.tar", ".")):
        slash = "/" if path == root else "!"
        expected = [(slash + name[1:], label) for name, label in images]
        assert listed(path, labels=False) == listed(path, labels=False) == (expected, passed_over)
        with pytest.raises(FileNotFoundError):  # though the list of pretraining is cached
            ImageFolder(path)


def test_archives_beside_unpacked_images_are_passed_over(tmp_path):
    """They may have been left over by the unpacking; old runs continue."""
    files("cat/1.jpg", "cat/deep/cat.tar", "dog/1.jpg", "cat.tar", "ILSVRC2012_img_train.tar", "old.tgz")(tmp_path)
    images, passed_over = [("/cat/1.jpg", 0), ("/dog/1.jpg", 1)], "4 archives beside unpacked images"
    for how in ({}, {"labels": False}, {"any_tree": True}):
        assert listed(tmp_path, **how) == (images, passed_over)


def test_class_archives_win_over_loose_images_and_checkpoints_are_no_archives(imagenet, tmp_path):
    root = packed_classes(imagenet / "val", tmp_path / "val", ".")
    files("preview.jpg", "checkpoint__0000.pth.tar", "labels.csv")(root)
    assert ImageFolder(root).summary() == (
        f"images: 36 of 12 classes in {str(root)!r}; passed over: 3 files outside the class folders"
    )


def test_names_of_archives_that_collide_are_refused(tmp_path):
    for name in ("cat.tar", "cat.TAR"):
        archive_of(tmp_path / name, ("1.jpg", b""))
    with pytest.raises(
        ArchiveError, match=r"cat.tar' stands for the class 'cat', as another archive does; rename one"
    ):
        ImageFolder(tmp_path)


@pytest.mark.parametrize(
    "members, message",
    [
        ([], "no class folders in 'A'; it must hold one folder of images per class"),
        (
            [("1.jpg", b"")],
            "'A' holds 1 image but no class folders, .*; put the images .* in this archive, such as 'A!cat'",
        ),
        ([("cat/1.txt", b"")], r"no images in 'A!cat'; remove it or add some .*passed over: 1 file .*\(.txt\)"),
    ],
)
def test_an_archive_without_labels_says_what_is_missing(tmp_path, members, message):
    path = archive_of(tmp_path / "a.tar", *members)
    with pytest.raises(FileNotFoundError, match=message.replace("'A", re.escape(f"'{path}"))):
        ImageFolder(path)


def test_a_link_to_a_folder_that_is_gone_is_refused_and_one_to_an_image_is_counted(tmp_path):
    files("1.jpg")(tmp_path)
    (tmp_path / "2.jpg").symlink_to("/gone/2.jpg")
    assert listed(tmp_path, labels=False) == ([("/1.jpg", -1)], "1 broken link")
    (tmp_path / "more").symlink_to("/unmounted")
    with pytest.raises(FileNotFoundError, match=r"the link '.*more' leads to '/unmounted', which is missing"):
        ImageFolder(tmp_path, labels=False)


def test_an_index_has_few_bytes_for_each_image(tmp_path):
    """With ImageNet's names: at most 70."""
    names = [f"n{c:08d}/n{c:08d}_{i:05d}.JPEG" for c in range(10) for i in range(200)]
    folder = ImageFolder(archive_of(tmp_path / "train.tar", *((name, b"") for name in names)))
    archived = folder._archived
    arrays = (*vars(folder._paths).values(), folder.labels, archived._of, archived._offset, archived._size)
    assert sum(array.nbytes for array in arrays) <= 60 * len(names) + 8
    assert [folder.path(i) for i in (0, 1999)] == [f"{tmp_path}/train.tar!{name}" for name in (names[0], names[-1])]
