"""The list of image files, against torchvision's ImageFolder."""

import os
import re
import shutil
import time

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder as TorchvisionFolder

from moco.data.file_extensions import EXTENSIONS
from moco.data.file_list import ImageFolder, check_same_classes
from moco.data.image_reading import FORMATS
from tests.data.archives import archive_of

pytestmark = pytest.mark.usefixtures("cache")


def samples(folder):
    return [(os.path.normpath(folder.path(i)), int(folder.labels[i])) for i in range(len(folder))]


def test_folder_lists_what_torchvision_lists(imagenet, tmp_path):
    nested = tmp_path / "data"
    for path in ("b/2.PNG", "b/deep/er/1.jpeg", "a/é.jpg", "a/b.webp", "a/notes.txt"):
        (nested / path).parent.mkdir(parents=True, exist_ok=True)
        (nested / path).write_bytes(b"")
    for root in (imagenet / "train", nested):
        ours, theirs = ImageFolder(root), TorchvisionFolder(root)
        assert ours.classes == theirs.classes and len(ours) == len(theirs)
        assert [(os.path.normpath(ours.path(i)), ours.labels[i]) for i in range(len(ours))] == theirs.samples


def test_folder_is_a_few_arrays(imagenet):
    folder = ImageFolder(imagenet / "train")
    values = [*vars(folder).values(), *vars(folder._paths).values()]
    arrays = [value for value in values if isinstance(value, np.ndarray)]
    others = [value for value in values if isinstance(value, (str, list, dict, tuple))]
    names = sum(len(os.path.relpath(folder.path(i), folder.root)) for i in range(len(folder)))
    assert sum(a.nbytes for a in arrays) <= names + 12 * (len(folder) + 1)
    assert all(len(value) <= max(len(folder.root), len(folder.classes)) for value in others)


def test_the_digest_is_of_the_classes_and_paths(few_images, tmp_path):
    digest = ImageFolder(few_images / "val").digest()
    copy = shutil.copytree(few_images / "val", tmp_path / "copy")
    assert ImageFolder(copy).digest() == ImageFolder(copy).digest() == digest and len(digest) == 12  # also if cached
    image = next(copy.glob("*/*"))
    image.rename(image.with_name("another.jpg"))
    other = ImageFolder(copy).digest()
    image.parent.rename(copy / "another")
    assert len({digest, other, ImageFolder(copy).digest()}) == 3


def test_the_extensions_are_those_that_pillow_knows_for_the_formats_that_are_read():
    Image.init()
    known = {extension for extension, kind in Image.registered_extensions().items() if kind in FORMATS}
    assert known - {".pfm"} == set(EXTENSIONS) and len(set(EXTENSIONS)) == len(EXTENSIONS)


def test_every_listed_format_can_be_read(tmp_path):
    (tmp_path / "a").mkdir()
    for extension in EXTENSIONS:
        Image.new("RGB", (9, 7)).convert("1" if extension == ".pbm" else "RGB").save(tmp_path / "a" / f"x{extension}")
    folder = ImageFolder(tmp_path)
    assert len(folder) == len(EXTENSIONS)
    assert all(folder.load(i).size == (9, 7) for i in range(len(folder)))


def files(*names):
    """A function that creates empty files below a folder."""

    def make(root):
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(b"")

    return make


SPLITS = (
    "'DATA' must hold the folders train and val, or train.tar and val.tar, each with one folder of images per class"
)
EXTENSIONS_IN_WORDS = re.escape(f"({', '.join(EXTENSIONS)})")


@pytest.mark.parametrize(
    "make, message",
    [
        (files(), f"no folder 'ROOT'; {SPLITS}, but holds nothing$"),
        (
            lambda root: files("dog/1.jpg", "cat/1.jpg", "emu/1.jpg", "asp/1.jpg")(root.parent),
            f"no folder 'ROOT'; {SPLITS}, but holds 'asp', 'cat', 'dog' and 1 more$",
        ),
        (lambda root: root.parent.rmdir(), "no folder 'DATA'; it must hold the folders train and val$"),
        (
            lambda root: (root.parent.rmdir(), root.parent.write_text("")),
            "'DATA' is a file; it must be a folder that holds the folders train and val$",
        ),
        (
            lambda root: root.write_text(""),
            "'ROOT' is no tar archive; give a folder of images or an uncompressed tar$",
        ),
        (
            lambda root: root.symlink_to("/unmounted"),
            "the link 'ROOT' leads to '/unmounted', which is missing; restore it, or remove the link$",
        ),
        (lambda root: root.mkdir(), "no class folders in 'ROOT'; it must hold one folder of images per class$"),
        (
            files(".git/x", "notes.txt"),
            "no class folders in 'ROOT'; it must hold one folder of images per class; "
            "passed over: 1 file outside the class folders, 1 hidden$",
        ),
        (
            files("1.jpg", "2.GIF", "notes.txt"),
            "'ROOT' holds 2 images but no class folders, from which the labels come; put the images of each class "
            "into a folder in this folder, such as 'ROOT/cat'$",
        ),
        (
            lambda root: (root / "cat").mkdir(parents=True),
            f"no images in 'ROOT/cat'; remove it or add some {EXTENSIONS_IN_WORDS}$",
        ),
        (
            files("cat/1.heic", "dog/1.jpg", "dog/2.txt"),
            f"no images in 'ROOT/cat'; remove it or add some {EXTENSIONS_IN_WORDS}; "
            r"passed over: 1 file with another extension \(\.heic\)$",
        ),
    ],
)
def test_folders_that_can_not_serve(tmp_path, make, message):
    root = tmp_path / "data" / "train"
    root.parent.mkdir()
    make(root)
    message = message.replace("ROOT", re.escape(str(root))).replace("DATA", re.escape(str(root.parent)))
    with pytest.raises(OSError, match=f"^{message}"):
        ImageFolder(root)


def test_a_folder_that_is_not_of_a_script_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder '.*x'; it must hold one folder of images per class$"):
        ImageFolder(tmp_path / "x")


def test_a_folder_that_can_not_be_read_is_not_passed_over(data, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    with monkeypatch.context() as patch, pytest.raises(PermissionError, match="deep"):
        patch.setattr(os, "scandir", refuse)
        ImageFolder(data)


def test_both_lists_must_have_the_same_classes_in_the_same_order(tmp_path):
    """In shards the classes are numbers, so 2 comes before 10. In folders they are names, so "10" comes before "2"."""
    numbers = ("0", "2", "10")
    files(*(f"{number}/1.jpg" for number in numbers))(tmp_path / "val")
    members = [(f"{number}{end}", number.encode()) for number in numbers for end in (".jpg", ".cls")]
    train, val = ImageFolder(archive_of(tmp_path / "train.tar", *members)), ImageFolder(tmp_path / "val")
    check_same_classes(val, val)
    with pytest.raises(ValueError) as error:
        check_same_classes(train, val)
    assert str(error.value) == (
        f"'{tmp_path}/train.tar' and '{tmp_path}/val' must have their classes in the same order, but class 1 is '2' "
        "in the first and '10' in the second: labels in shards are sorted as numbers, folders and archives by name; "
        "give both in the same form"
    )


def test_the_summary_counts_what_is_listed_and_what_is_not(tmp_path):
    files("cat/1.jpg")(tmp_path / "one")
    assert ImageFolder(tmp_path / "one").summary() == f"images: 1 of 1 class in {str(tmp_path / 'one')!r}"
    root = tmp_path / "two"
    files("cat/1.jpg", "cat/1.txt", "cat/deep/2.TXT", "dog/3.jpg", "dog/3.xml", "labels.csv", ".x", "dog/.y")(root)
    for folder, _, _ in os.walk(root):
        os.utime(folder, (time.time() - 100,) * 2)
    line = (
        f"images: 2 of 2 classes in {str(root)!r}; passed over: "
        "3 files with other extensions (.txt, .xml), 1 file outside the class folders, 2 hidden"
    )
    listed, cached = ImageFolder(root), ImageFolder(root)
    assert listed.summary() == cached.summary() == line and listed.passed_over == cached.passed_over


def test_any_tree_takes_images_of_the_folder_itself_and_passes_empty_folders_over(tmp_path):
    """The images of the folder come first, with the label -1."""
    files("2.jpg", "10.PNG", "notes.txt", ".hidden.jpg", "b/x/1.jpg", "b/0.jpg", "c/x/a.md", "d/1.jpg")(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "gone").symlink_to("nowhere")
    folder = ImageFolder(tmp_path, any_tree=True)
    listed = [("10.PNG", -1), ("2.jpg", -1), ("b/0.jpg", 0), ("b/x/1.jpg", 0), ("d/1.jpg", 1)]
    assert samples(folder) == [(str(tmp_path / path), label) for path, label in listed]
    assert folder.classes == ["b", "d"] and folder.labels.dtype == np.int32
    assert folder.summary() == (
        f"images: 5 of 2 classes in {str(tmp_path)!r}; passed over: 2 files with other extensions (.md, .txt), "
        "1 hidden, 1 broken link"
    )


def test_any_tree_of_one_flat_folder_has_no_classes(tmp_path):
    files("1.jpg", "0.jpg")(tmp_path)
    folder = ImageFolder(tmp_path, any_tree=True)
    assert samples(folder) == [(str(tmp_path / "0.jpg"), -1), (str(tmp_path / "1.jpg"), -1)] and folder.classes == []
    assert folder.summary() == f"images: 2 in {str(tmp_path)!r}"


def test_any_tree_lists_class_folders_as_ever_and_neither_reads_nor_writes_the_cache(imagenet, tmp_path, monkeypatch):
    for name in ("load", "store"):
        monkeypatch.setattr(f"moco.data.file_list.file_list_cache.{name}", lambda *_: pytest.fail("the cache is used"))
    folder = ImageFolder(imagenet / "val", any_tree=True)
    monkeypatch.undo()
    assert samples(folder) == samples(ImageFolder(imagenet / "val")) and len(folder.classes) == 12


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda root: None, "no folder 'ROOT'; it must hold images$"),
        (
            lambda root: root.write_text(""),
            "'ROOT' is no tar archive; give a folder of images or an uncompressed tar$",
        ),
        (lambda root: root.mkdir(), rf"no images in 'ROOT'; add some {EXTENSIONS_IN_WORDS}$"),
        (
            files("notes.txt", "cat/1.heic", "cat/2.txt"),
            rf"no images in 'ROOT'; add some {EXTENSIONS_IN_WORDS}; passed over: 3 files with other extensions "
            r"\(\.txt, \.heic\)$",
        ),
    ],
)
def test_any_tree_without_images_is_refused(tmp_path, make, message):
    root = tmp_path / "images"
    make(root)
    with pytest.raises(OSError, match=f"^{message}".replace("ROOT", re.escape(str(root)))):
        ImageFolder(root, any_tree=True)
