"""What a folder may be: any tree of images, tar archives in all places, and their lists, which equal each other."""

import os
import re
import shutil

import pytest

from moco.data.file_list import ImageFolder
from moco.data.image_listing import training_and_validation
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


@pytest.mark.parametrize("form", [tar_of_folders, tar_of_class_tars, class_tars])
def test_classes_have_the_order_of_folders_also_where_a_name_begins_another(tmp_path, form):
    """The names of the archives have another order, because of the `.tar` at their ends."""
    names = ["a", "a b", "a-b", "a.b", "a.tar-b", "a0"]
    for name in names:
        files(f"{name}/1.jpg")(tmp_path / "folders")
        (tmp_path / "folders" / name / "1.jpg").write_text(name)
    folder, unpacked = ImageFolder(form(tmp_path / "folders", tmp_path / "packed")), ImageFolder(tmp_path / "folders")
    assert folder.classes == unpacked.classes == names and contents(folder) == contents(unpacked)


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
    for name in ("cat.tar", "cat.TAR", "cat.a.tar"):
        archive_of(tmp_path / name, ("1.jpg", b""))
    with pytest.raises(
        ArchiveError, match=r"cat.tar' stands for the class 'cat', as another archive does; rename one"
    ):
        ImageFolder(tmp_path)


def test_loose_images_win_over_archives_where_no_labels_are_needed(tmp_path):
    """A compressed archive is not refused then, and a list with labels in the cache changes nothing."""
    root = tmp_path / "photos"
    files("1.jpg", "2.jpg")(root)
    archive_of(root / "old.tar", ("z.jpg", b""))
    expected = FLAT, "1 archive beside unpacked images"
    for path in (root, packed(root, tmp_path / "photos.tar", ".")):
        for changed in (path, root / "old.tar"):
            os.utime(changed, (1, 1))  # the list of a folder that has just been changed is not kept
        slash = "/" if path == root else "!"
        images = [(slash + name[1:], number) for name, number in FLAT]
        for _ in range(2):
            assert listed(path, labels=False) == listed(path, any_tree=True) == (images, expected[1])
            assert listed(path) == ([(f"{slash}old.tar!z.jpg", 0)], "2 files outside the class folders")
    (root / "old.tar").rename(root / "old.tar.gz")
    assert listed(root, labels=False) == expected
    for name in ("a", "b"):  # more archives than images
        archive_of(tmp_path / "more" / f"{name}.tar", ("1.jpg", b""))
    files("preview.jpg")(tmp_path / "more")
    images = [("/a.tar!1.jpg", 0), ("/b.tar!1.jpg", 1)], "1 file outside the class folders"
    assert listed(tmp_path / "more", labels=False) == listed(tmp_path / "more") == images


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_archives_for_training_and_for_validation_are_not_trained_on_together(tmp_path, form):
    """As in a folder of downloads; a name that only contains these words may be a class."""
    root = tmp_path / "dl"
    for name in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"):
        archive_of(root / name, ("1.JPEG", b""))
    path = root if form == "folder" else packed(root, tmp_path / "dl.tar", ".")
    message = (
        f"{str(path)!r} holds 'ILSVRC2012_img_train.tar' and 'ILSVRC2012_img_val.tar', which seem to be for training "
        "and for validation; link the first as train.tar in another folder (several of them into a folder train "
        "there) and give that one; if it is a class, rename it"
    )
    for labels in (True, False):
        with pytest.raises(ArchiveError, match=f"^{re.escape(message)}$"):
            ImageFolder(path, labels=labels)
    assert len(ImageFolder(path, any_tree=True)) == 2


@pytest.mark.parametrize(
    "names, refused",
    [
        (["imagenet1k-train-0000.tar", "imagenet1k-validation-00.tar"], True),
        (["train2017.tar", "test2017.tar"], True),
        (["VOCtrainval_11-May-2012.tar", "VOCtest_06-Nov-2007.tar"], True),
        (["train_station.tar", "valley.tar"], False),
        (["restraint.tar", "test.tar"], False),
        (["a_train.tar", "b_train.tar"], False),
    ],
)
def test_which_names_of_archives_mean_training_and_validation(names, refused):
    assert bool(training_and_validation(sorted(names))) == refused


def test_a_class_in_an_archive_that_only_holds_hidden_images_says_so(tmp_path):
    path = archive_of(tmp_path / "a.tar", ("cat/._1.jpg", b""), ("cat/2.txt", b""), ("dog/1.jpg", b""))
    with pytest.raises(FileNotFoundError, match=r"in '.*a.tar!cat'.*; passed over: 1 file with another .*\(.txt\); "
                       "passed over in the whole archive: 1 hidden$"):  # fmt: skip
        ImageFolder(path)
    archive_of(tmp_path / "train" / "cat.tar", ("._1.jpg", b""))
    with pytest.raises(FileNotFoundError, match=r"no images in '.*/train/cat.tar'.*; passed over: 1 hidden$"):
        ImageFolder(tmp_path / "train")


def test_a_class_archive_without_images_is_no_folder(tmp_path):
    for name in ("cat", "dog"):
        archive_of(tmp_path / f"{name}.tar", (f"1.{'jpg' if name == 'cat' else 'txt'}", b""))
    images, passed_over = listed(tmp_path, labels=False)
    assert images == [("/cat.tar!1.jpg", 0)]
    assert passed_over == "1 file with another extension (.txt), 1 archive without images"
    assert not ImageFolder(tmp_path, labels=False).labelled


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
