"""The list of a folder's image files and their labels, kept in a few arrays."""

import os
import time

import numpy as np

from moco.data import file_list_cache
from moco.data.image_decoding import decode_to_pil, decode_to_tensor

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # those of torchvision


class ImageFolder:
    """The images of `root/CLASS/**`, in the order and with the labels of torchvision's ImageFolder.

    The list is kept in three arrays instead of Python objects. With Python objects, each data worker would update
    reference counts, and thereby copy the memory that it shares with the others (PyTorch issue 13246).

    Attributes:
        root: the folder.
        classes: sorted names of the class folders.
        labels: int32, for each image an index into `classes`.

    Raises:
        FileNotFoundError: `root` is missing or has no class folders, or a class has no image.
        OSError: a folder can't be read.
    """

    def __init__(self, root):
        self.root = os.fspath(root)
        if not os.path.isdir(self.root):
            raise FileNotFoundError(f"no folder {self.root!r}; it must hold one folder of images per class")
        arrays = file_list_cache.load(self.root)
        if arrays is None:
            started = time.time_ns()
            arrays, folders = list_images(self.root)
            file_list_cache.store(self.root, arrays, folders, started)
        self.classes = [os.fsdecode(name) for name in arrays["classes"].tobytes().split(b"\0")]
        self._paths, self._ends, self.labels = arrays["paths"], arrays["ends"], arrays["labels"]

    def __len__(self):
        return len(self.labels)

    def path(self, index):
        """The path of the file of image `index`."""
        start, end = self._ends[index], self._ends[index + 1]
        return os.path.join(self.root, os.fsdecode(self._paths[start:end].tobytes()))

    def load(self, index):
        """Decodes image `index` to a Pillow image in mode RGB; raises the errors of `decode_to_pil`."""
        return decode_to_pil(self.path(index))

    def load_tensor(self, index):
        """Decodes image `index` to H x W x 3, uint8, the pixels of `load`; raises the errors of `decode_to_tensor`."""
        return decode_to_tensor(self.path(index))


def list_images(root):
    """Walks the class folders of `root` and lists their images.

    Returns:
        arrays: a dict of `paths` (uint8, all paths relative to `root`, concatenated), `ends` (int64, length n + 1: 0,
            then the offset at which each path ends), `labels` (int32) and `classes` (uint8, the names separated by
            zero bytes).
        folders: for the cache, a list of (folder relative to `root`, its state before it was listed).

    Raises:
        FileNotFoundError: there are no class folders, or a class has no image.
    """
    folders = [(b".", file_list_cache.state_of(root, b"."))]
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    if not classes:
        raise FileNotFoundError(f"no class folders in {root!r}; it must hold one folder of images per class")
    paths, ends, labels = bytearray(), [0], []
    for label, name in enumerate(classes):
        before = len(labels)
        for folder, _, files in sorted(walk(os.path.join(root, name), root, folders)):
            prefix = os.path.relpath(folder, root)
            for file in sorted(files):
                if file.lower().endswith(EXTENSIONS):
                    paths += os.fsencode(os.path.join(prefix, file))
                    ends.append(len(paths))
                    labels.append(label)
        if len(labels) == before:
            raise FileNotFoundError(
                f"no images in {os.path.join(root, name)!r}; remove it or add some ({', '.join(EXTENSIONS)})"
            )
    arrays = {
        "paths": np.frombuffer(bytes(paths), dtype=np.uint8),
        "ends": np.array(ends, dtype=np.int64),
        "labels": np.array(labels, dtype=np.int32),
        "classes": np.frombuffer(b"\0".join(map(os.fsencode, classes)), dtype=np.uint8),
    }
    return arrays, folders


def walk(top, root, folders):
    """Walks the tree below `top` as os.walk does, following links, and appends each folder's state to `folders`.

    The state is read before the folder is listed, so a change in between is noticed later.
    """

    def note(folder):
        name = os.fsencode(os.path.relpath(folder, root))
        folders.append((name, file_list_cache.state_of(root, name)))

    note(top)

    def stop(error):
        raise error  # by default os.walk skips a folder that can't be read

    for folder, below, files in os.walk(top, onerror=stop, followlinks=True):
        for name in below:
            note(os.path.join(folder, name))
        yield folder, below, files
