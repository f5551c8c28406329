"""The list of a folder's image files and their labels, kept in a few arrays."""

import json
import os
import time
from collections import Counter

import numpy as np

from moco.data import file_list_cache
from moco.data.folder_walk import Listing, enclosing_folders, missing_target, scan, walk
from moco.data.image_decoding import decode_to_pil, decode_to_tensor
from moco.data.image_reading import naming, read_file
from moco.data.passed_over_files import BROKEN, HIDDEN, OUTSIDE, PassedOver, extension, plural

# The extensions of image_reading.FORMATS in lower case, without .pfm, whose values are floats that are refused.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif", ".jpe", ".jfif")
EXTENSIONS += (".apng", ".pbm", ".pnm")


class ImageFolder:
    """The images of `root/CLASS/**`, in the order and with the labels of torchvision's ImageFolder.

    Hidden files and folders are passed over. Symbolic links are followed.

    Args:
        root: the folder.
        any_tree: whether images may also lie directly in `root`, and folders may be empty. The images in `root` come
            first, with the label -1.

    The list is kept in three arrays instead of Python objects. With Python objects, each data worker would update
    reference counts, and thereby copy the memory that it shares with the others (PyTorch issue 13246).

    Attributes:
        root: the folder.
        classes: sorted names of the class folders.
        labels: int32, for each image an index into `classes`, or -1.
        passed_over: a PassedOver, the numbers of what is not listed.

    Raises:
        FileNotFoundError: `root` is missing or has no class folders, or a class has no image; with `any_tree`: there
            is no image.
        OSError: `root` is a file, a folder can't be read, or a symbolic link leads back to a folder that contains it.
    """

    def __init__(self, root, any_tree=False):
        self.root = os.fspath(root)
        check_root(self.root, "images" if any_tree else "one folder of images per class")
        arrays, folders, started = None if any_tree else file_list_cache.load(self.root), None, time.time_ns()
        if arrays is None:
            arrays, folders = list_images(self.root, any_tree)
        self.classes = [os.fsdecode(name) for name in arrays["classes"].tobytes().split(b"\0") if name]
        self._paths, self._ends, self.labels = arrays["paths"], arrays["ends"], arrays["labels"]
        self.passed_over = PassedOver(*json.loads(arrays["passed_over"].tobytes()))
        # The target of a broken link may come back, and no folder that was visited would show it.
        if folders and not any_tree and not self.passed_over.broken_links:
            file_list_cache.store(self.root, arrays, folders, started)

    def __len__(self):
        return len(self.labels)

    def path(self, index):
        """The path of the file of image `index`."""
        start, end = self._ends[index], self._ends[index + 1]
        return os.path.join(self.root, os.fsdecode(self._paths[start:end].tobytes()))

    def read(self, index):
        """The bytes of the file of image `index`; raises BadImageError or ImageReadError."""
        path = self.path(index)
        with naming(path):
            return read_file(path)

    def load(self, index):
        """Decodes image `index` to a Pillow image in mode RGB; raises BadImageError or ImageReadError."""
        return decode_to_pil(self.read(index), self.path(index))

    def load_tensor(self, index):
        """Decodes image `index` to H x W x 3, uint8, the pixels of `load`; raises BadImageError or ImageReadError."""
        return decode_to_tensor(self.read(index), self.path(index))

    def summary(self):
        """One line for the start of a run: how many images of how many classes are listed, and what is passed over."""
        classes = f" of {plural(len(self.classes), 'class', 'es')}" if self.classes else ""
        line = f"images: {len(self)}{classes} in {self.root!r}"
        return line + self.passed_over.clause()


def check_root(root, holds):
    """Raises an OSError that says what is wrong if `root` is no folder; `holds` says what it must hold."""
    if os.path.isdir(root):
        return
    if os.path.exists(root):
        raise NotADirectoryError(f"{root!r} is a file; it must be a folder that holds {holds}")
    if os.path.islink(root):
        raise FileNotFoundError(missing_target(root))
    data, name = os.path.split(root)
    if name not in ("train", "val"):
        raise FileNotFoundError(f"no folder {root!r}; it must hold {holds}")
    data = data or "."
    check_root(data, "the folders train and val")
    names = sorted(os.listdir(data))
    found = ", ".join(map(repr, names[:3])) + f" and {len(names) - 3} more" * (len(names) > 3)
    raise FileNotFoundError(
        f"no folder {root!r}; {data!r} must hold the folders train and val, but holds {found or 'nothing'}"
    )


def check_same_classes(train, val):
    """Raises ValueError if two ImageFolders have different classes; the message names one of them."""
    if odd := sorted(set(train.classes) ^ set(val.classes)):
        raise ValueError(
            f"{train.root!r} and {val.root!r} must have the same classes; {odd[0]!r} is only in one of them"
        )


def list_images(root, any_tree=False):
    """Lists the images in the class folders of `root`. If it takes long, it prints its progress to standard error.

    Args:
        any_tree: as for ImageFolder.

    Returns:
        arrays: a dict of `paths` (uint8, all paths relative to `root`, concatenated), `ends` (int64, length n + 1: 0,
            then the offset at which each path ends), `labels` (int32), `classes` (uint8, the names separated by zero
            bytes) and `passed_over` (uint8, the values of a PassedOver as JSON).
        folders: for the cache, a list of (folder relative to `root`, its state before it was listed).

    Raises:
        FileNotFoundError: there are no class folders, or a class has no image; with `any_tree`: there is no image.
        OSError: a folder can't be read, or a symbolic link leads back to a folder that contains it.
    """
    folders = [(b".", file_list_cache.state_of(root, b"."))]
    listing = Listing(root)
    top = scan(root, listing)
    passed_over = Counter({HIDDEN: top.hidden, OUTSIDE: len(top.files)})
    above, classes = enclosing_folders(root), []
    paths, ends, labels = bytearray(), [0], []

    def add(images, label):
        for path in images:
            paths.extend(os.fsencode(path))
            ends.append(len(paths))
        labels.extend([label] * len(images))

    if any_tree:
        images, passed_over = images_of([("", top)])
        add(images, -1)
    else:
        check_top(root, top)
    for name in sorted(top.folders):
        images, not_listed = images_of(walk(listing, name, top.folders[name], above, folders))
        if images:
            add(images, len(classes))
            classes.append(name)
        elif not any_tree:
            raise no_images(os.path.join(root, name), not_listed, "remove it or add some")
        passed_over += not_listed
    if not labels:
        raise no_images(root, passed_over, "add some")
    arrays = {
        "paths": np.frombuffer(bytes(paths), dtype=np.uint8),
        "ends": np.array(ends, dtype=np.int64),
        "labels": np.array(labels, dtype=np.int32),
        "classes": np.frombuffer(b"\0".join(map(os.fsencode, classes)), dtype=np.uint8),
        "passed_over": np.frombuffer(json.dumps(PassedOver.of(passed_over)).encode(), dtype=np.uint8),
    }
    return arrays, folders


def no_images(folder, not_listed, way_out):
    """The FileNotFoundError about a folder without images; `not_listed` is a dict for `PassedOver.of`."""
    return FileNotFoundError(
        f"no images in {folder!r}; {way_out} ({', '.join(EXTENSIONS)}){PassedOver.of(not_listed).clause()}"
    )


def check_top(root, top):
    """Raises FileNotFoundError if `root`, with the Content `top`, has no class folders or may have lost one."""
    if top.broken:
        raise FileNotFoundError(missing_target(os.path.join(root, min(top.broken))))
    if top.folders:
        return
    images = sum(map(is_image, top.files))
    if images:
        raise FileNotFoundError(
            f"{root!r} holds {plural(images, 'image')} but no class folders; move all images into a folder of their "
            f"own, such as {os.path.join(root, 'all')!r}"
        )
    passed_over = PassedOver.of({HIDDEN: top.hidden, OUTSIDE: len(top.files)})
    raise FileNotFoundError(
        f"no class folders in {root!r}; it must hold one folder of images per class{passed_over.clause()}"
    )


def images_of(contents):
    """The images of one class.

    Args:
        contents: iterable of (folder, Content), as `walk` yields them.

    Returns:
        The paths of the images in torchvision's order, and what is passed over: a Counter for `PassedOver.of`.
    """
    images, passed_over = [], Counter()
    for folder, content in sorted(contents):
        passed_over += Counter({HIDDEN: content.hidden, BROKEN: len(content.broken)})
        for file in sorted(content.files):
            if is_image(file):
                images.append(os.path.join(folder, file))
            else:
                passed_over[extension(file)] += 1
    return images, passed_over


def is_image(file):
    """Whether the name of a file has the extension of an image."""
    return file.lower().endswith(EXTENSIONS)
