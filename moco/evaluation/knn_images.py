"""The labelled images of a kNN classification, and whether they fit."""

import os

from moco.data.file_list import ImageFolder, check_same_classes

MEMORY = 0.25  # share of a process's memory that the validation features may fill


def labelled_splits(data):
    """The ImageFolders (val, train) of the data set in the folder `data`.

    Raises:
        OSError: a folder is missing or can't be read. ValueError: val and train have different classes.
    """
    val, train = (ImageFolder(os.path.join(data, split)) for split in ("val", "train"))
    check_same_classes(train, val)
    return val, train


def check_k(ks, train, flag):
    """Raises ValueError if one of the numbers of neighbours is larger than the number of images of `train`."""
    if max(ks) > len(train):
        raise ValueError(f"{flag} {max(ks)} is more than the {len(train)} images of {train.root!r}; give fewer")


def check_features(val, dim, room):
    """Raises ValueError if the features of `val`, each of `dim` numbers, fill too much of `room` bytes of memory."""
    size = 4 * dim * len(val)
    if size > MEMORY * room:
        raise ValueError(
            f"the kNN classification keeps the features of the {len(val)} images of {val.root!r}, {size / 1e9:.1f} "
            f"GB, in each process, but a process has {room / 1e9:.1f} GB of memory; give fewer validation images"
        )
