import numpy as np
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
    for flags in (["--size", "3"], ["--workers", "0"]):
        code, _, error = call(fake_imagenet.main, *small, *flags)
        assert code == 2 and "--size must be 16 or more, --workers must be 1 or more" in error
    image = Image.open(tmp_path / "val" / "star_dots" / "0000.jpg")
    assert image.mode == "RGB" and all(24 <= side <= 40 for side in image.size)
