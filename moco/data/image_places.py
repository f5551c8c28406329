"""Where the images of a data set are: which folder or archive a script reads for its purpose."""

import os

from moco.data.file_list import ImageFolder, check_root

TRAIN, VAL = "train", "val"


def place_of(data, split):
    """The path of `data`/train or `data`/val, a folder; of the archive with .tar, if only that exists; else None."""
    path = os.path.join(data, split)
    return next((place for place in (path, f"{path}.tar") if os.path.lexists(place)), None)


def training_place(data):
    """The path of the images for pretraining: train or train.tar in `data`, or else `data` itself.

    Raises:
        OSError: there is only val or val.tar in `data`, or `data` is missing.
    """
    place = place_of(data, TRAIN)
    if place is None and (val := place_of(data, VAL)) is not None:  # training on the validation images is a mistake
        raise FileNotFoundError(
            f"{data!r} has {os.path.basename(val)} but neither train nor train.tar; add one of them, or give {val!r} "
            "to train on its images"
        )
    if place is None:
        check_root(data, "images")
    return place or data


def training_images(data):
    """The ImageFolder for pretraining, which needs no labels; raises OSError as `training_place` and ImageFolder."""
    return ImageFolder(training_place(data), labels=False)


def labelled_images(data, split):
    """The ImageFolder of `data`/train or `data`/val, with labels; raises OSError as ImageFolder."""
    return ImageFolder(place_of(data, split) or os.path.join(data, split))


def image_places(data):
    """The paths of all folders and archives that a script may read: train and val, and `data` if they are missing."""
    return list(filter(None, (place_of(data, split) for split in (TRAIN, VAL)))) or [data]
