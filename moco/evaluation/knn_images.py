"""The labelled images of a kNN classification, and whether they fit."""

from moco.data.file_list import check_same_classes
from moco.data.image_places import labelled_images

# Share of a process's memory that the validation features may fill. For a moment there are three copies of them.
MEMORY = 0.25


def labelled_splits(data, train=None):
    """The ImageFolders (val, train) of the data set in the folder `data`; `train` is that of train, if it is listed.

    Raises:
        OSError: a folder is missing or can't be read. ValueError: val and train have different classes.
    """
    val = labelled_images(data, "val")
    train = train if train and train.labelled else labelled_images(data, "train")
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
            f"the features of the {len(val)} images of {val.root!r} need {size / 1e6:,.1f} MB in each process, more "
            f"than a quarter of its {room / 1e6:,.1f} MB of memory; give fewer validation images"
        )
