import numpy as np
import pytest
from PIL import Image

from moco.data.file_list import ImageFolder
from moco.tools import fake_imagenet


def arrays(folder):
    folder = ImageFolder(folder)
    return [np.asarray(folder.load(i)) for i in range(len(folder))]


def test_folders_classes_and_sizes(imagenet):
    train, val = ImageFolder(imagenet / "train"), ImageFolder(imagenet / "val")
    assert train.classes == val.classes and len(train.classes) == 12
    assert np.bincount(train.labels).tolist() == [8] * 12 and np.bincount(val.labels).tolist() == [3] * 12
    assert Image.open(train.path(0)).format == "JPEG"
    sizes = {train.load(i).size for i in range(len(train))}
    assert len({w for w, _ in sizes}) > 5 and any(w > h for w, h in sizes) and any(w < h for w, h in sizes)


def test_the_seed_says_it_all(imagenet, tmp_path):
    fake_imagenet.make(tmp_path / "a", train=2, val=1, size=40, workers=2)
    fake_imagenet.make(tmp_path / "b", train=2, val=1, size=40, seed=1)
    again, other = arrays(tmp_path / "a" / "train"), arrays(tmp_path / "b" / "train")
    first = [x for i, x in enumerate(arrays(imagenet / "train")) if i % 8 < 2]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(again, other, strict=True))
    assert not np.array_equal(again[0], arrays(tmp_path / "a" / "val")[0])


def test_colour_alone_does_not_tell_the_classes_apart(tmp_path):
    """The nearest class in mean colour is right about as often as chance."""
    fake_imagenet.make(tmp_path, train=40, val=20, size=40)

    def colours(split):
        return np.array([x.mean((0, 1)) for x in arrays(tmp_path / split)])

    train, val = colours("train"), colours("val")
    centres = train.reshape(12, 40, 3).mean(1)
    guesses = np.linalg.norm(val[:, None] - centres, axis=2).argmin(1)
    assert (guesses == np.repeat(np.arange(12), 20)).mean() < 0.2


def test_the_command(tmp_path, call):
    small = [tmp_path, "--train", "1", "--val", "1"]
    said = f"24 images of 12 classes are in {tmp_path}\n"
    assert call(fake_imagenet.main, *small, "--size", "32") == (0, said, "")
    image = Image.open(tmp_path / "val" / "star_dots" / "0000.jpg")
    assert image.mode == "RGB" and all(24 <= side <= 40 for side in image.size)


@pytest.mark.parametrize("workers", [1, 2])
def test_it_shows_its_progress(workers, tmp_path, impatient, capsys):
    fake_imagenet.make(tmp_path, train=1, val=1, size=16, classes=2, workers=workers)
    out, error = capsys.readouterr()
    lines = ["drawing: 1 of 4 images (25%)", "drawing: 2 of 4 images (50%)", "drawing: 3 of 4 images (75%)"]
    assert not out and [line.partition(", ")[0] for line in error.splitlines()] == lines


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--size", "3"], "'3' is not an integer >= 16 and <= 2048"),
        (["--workers", "0"], "'0' is not an integer >= 1 and <= 1024"),
        (["--train", "0"], "'0' is not an integer >= 1 and <= 10000"),
        (["--val", "0"], "'0' is not an integer >= 1 and <= 10000"),
        (["--train", "99999"], "'99999' is not an integer >= 1 and <= 10000"),
        (["--seed", "-1"], "'-1' is not an integer >= 0"),
    ],
)
def test_numbers_that_it_refuses(flags, message, tmp_path, call):
    code, _, error = call(fake_imagenet.main, tmp_path / "new", *flags)
    assert code == 2 and error.count("\n") == 1 and message in error and not (tmp_path / "new").exists()


def test_another_call_replaces_the_images_of_the_earlier_one(tmp_path, call):
    tiny = ["--size", "16"]
    fake_imagenet.make(tmp_path, train=3, val=2, size=16)
    code, out, _ = call(fake_imagenet.main, tmp_path, "--train", "1", "--val", "4", *tiny, "--seed", "5")
    assert code == 0 and out.splitlines() == [
        "removed 60 images of an earlier call",
        f"60 images of 12 classes are in {tmp_path}",
    ]
    assert [len(ImageFolder(tmp_path / split)) for split in ("train", "val")] == [12, 48]
    fake_imagenet.make(tmp_path / "new", train=1, val=4, size=16, seed=5)
    for split in ("train", "val"):
        assert all(map(np.array_equal, arrays(tmp_path / split), arrays(tmp_path / "new" / split)))


def test_fewer_classes_leave_no_empty_folder(tmp_path):
    fake_imagenet.make(tmp_path, train=1, val=1, size=16, classes=3)
    assert fake_imagenet.make(tmp_path, train=1, val=1, size=16, classes=2) == 6
    assert len(ImageFolder(tmp_path / "train").classes) == 2


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "foreign", ["train/cat", "train/disk_plain/0001.jpg", "train/disk_plain/mine.jpg", "notes.txt"]
)
@pytest.mark.parametrize("earlier", [True, False])
def test_what_others_made_is_kept(foreign, earlier, tmp_path, call):
    if earlier:
        fake_imagenet.make(tmp_path, train=1, val=1, size=16, classes=2)
    place = tmp_path / foreign
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("mine") if place.suffix else place.mkdir()
    before = files_of(tmp_path)
    code, out, error = call(fake_imagenet.main, tmp_path, "--train", "1", "--val", "1")
    named = foreign if earlier else foreign.partition("/")[0]
    assert code == 2 and not out and error.count("\n") == 1
    assert f"{str(tmp_path / named)!r} is not from an earlier call of this program; give a new" in error
    assert files_of(tmp_path) == before and place.exists()


def test_a_link_to_other_images_is_kept(tmp_path):
    mine = tmp_path / "mine"
    fake_imagenet.make(tmp_path / "fake", train=1, val=1, size=16)
    (tmp_path / "fake" / "train").rename(mine)
    (tmp_path / "fake" / "train").symlink_to(mine)
    with pytest.raises(ValueError, match="fake/train' is not from an earlier call"):
        fake_imagenet.make(tmp_path / "fake", train=1, val=1, size=16)
    assert len(ImageFolder(mine)) == 12


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"train": "x", "val": 1, "classes": 2}', "\x00"])
def test_a_damaged_record_is_refused(text, tmp_path):
    fake_imagenet.make(tmp_path, train=1, val=1, size=16, classes=2)
    (tmp_path / fake_imagenet.MARKER).write_text(text)
    with pytest.raises(ValueError, match=r"fake_imagenet.json' is damaged; give a new or an empty folder"):
        fake_imagenet.make(tmp_path, train=1, val=1, size=16)
    assert len(ImageFolder(tmp_path / "train")) == 2


def test_an_interrupted_call_is_recognised(tmp_path, monkeypatch):
    drawn = []

    def interrupted(image):
        drawn.append(image)
        if len(drawn) == 5:
            raise KeyboardInterrupt
        open(image[0], "w").close()

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fake_imagenet, "write_image", interrupted)
        fake_imagenet.make(tmp_path, train=4, val=1, size=16)
    assert fake_imagenet.make(tmp_path, train=1, val=1, size=16) == 4
