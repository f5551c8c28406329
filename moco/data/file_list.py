"""The list of the images in a folder or in archives, and their labels, kept in a few arrays."""

import hashlib
import json
import os
import time

from moco.data import file_list_cache
from moco.data.folder_walk import missing_target
from moco.data.image_decoding import decode_to_pil, decode_to_tensor
from moco.data.image_listing import list_images
from moco.data.image_reading import naming, read_file
from moco.data.passed_over_files import PassedOver, plural
from moco.data.string_array import StringArray
from moco.data.tar_read import ArchivedImages


class ImageFolder:
    """The images of `root/CLASS/**`, in the order and with the labels of torchvision's ImageFolder.

    `root` may also be an uncompressed tar archive, or a folder of them; moco/data/README.md says what each form means.
    Hidden files and folders are passed over. Symbolic links are followed.

    Args:
        root: the folder or archive.
        labels: whether each image must have a class. If not, folders may be empty; and if no folder in `root` holds
            images, those that lie directly in `root` are listed, with the label -1, rather than archives beside them.
        any_tree: whether images that lie directly in `root` are listed even beside class folders. They come first,
            with the label -1. Then `labels` has no effect: no image must have a class.

    The list is kept in a few arrays instead of Python objects, so that data workers share it.

    Attributes:
        root: the folder or archive.
        classes: sorted names of the class folders; in WebDataset shards, the numbers in the .cls files.
        labels: int32, for each image an index into `classes`, or -1.
        labelled: whether every image has a class, so that a labelled use may take this list.
        passed_over: a PassedOver, the numbers of what is not listed.

    Raises:
        FileNotFoundError: `root` is missing, has no image, or lacks the classes for `labels`.
        ArchiveError: an archive can't be read in place: it is compressed, truncated or damaged, or a member is sparse
            or leads out of it.
        OSError: a folder or file can't be read, or a symbolic link leads back to a folder that contains it.
    """

    def __init__(self, root, any_tree=False, labels=True):
        self.root = os.fspath(root)
        check_root(self.root, "one folder of images per class" if labels and not any_tree else "images")
        arrays, states, started = None if any_tree else file_list_cache.load(self.root), None, time.time_ns()
        if arrays is None or not arrays["labelled" if labels else "unlabelled"]:
            arrays, states = list_images(self.root, any_tree, labels)
        self.classes = [os.fsdecode(name) for name in arrays["classes"].tobytes().split(b"\0") if name]
        self._paths, self.labels = StringArray(arrays["paths"], arrays["ends"]), arrays["labels"]
        self._archived = ArchivedImages(self.root, arrays) if "archive" in arrays else ()
        self.labelled = bool(arrays["labelled"])
        self.passed_over = PassedOver(*json.loads(arrays["passed_over"].tobytes()))
        # The target of a broken link may come back, and no folder that was visited would show it.
        if states and not any_tree and not self.passed_over.broken_links:
            file_list_cache.store(self.root, arrays, states, started)

    def __len__(self):
        return len(self.labels)

    def path(self, index):
        """The path of the file of image `index`, or ARCHIVE!MEMBER."""
        if index in self._archived:
            return f"{self._archived.archive(index)}!{self._paths[index]}"
        return os.path.join(self.root, self._paths[index])

    def read(self, index):
        """The bytes of the file of image `index`; raises BadImageError or ImageReadError."""
        return self._read(index)[0]

    def load(self, index):
        """Decodes image `index` to a Pillow image in mode RGB; raises BadImageError or ImageReadError."""
        return decode_to_pil(*self._read(index))

    def load_tensor(self, index):
        """Decodes image `index` to H x W x 3, uint8, the pixels of `load`; raises BadImageError or ImageReadError."""
        return decode_to_tensor(*self._read(index))

    def _read(self, index):
        path = self.path(index)
        with naming(path):
            return self._archived.read(index) if index in self._archived else read_file(path), path

    def digest(self):
        """A short hash of the classes and of the images' paths, relative to the folder or within their archives."""
        found = hashlib.sha256(repr(self.classes).encode())
        found.update(self._paths.ends)
        found.update(self._paths.data)
        return found.hexdigest()[:12]

    def summary(self):
        """One line for the start of a run: how many images of how many classes are listed, and what is passed over."""
        classes = f" of {plural(len(self.classes), 'class', 'es')}" if self.classes else ""
        line = f"images: {len(self)}{classes} in {self.root!r}"
        return line + self.passed_over.clause()


def check_root(root, holds):
    """Raises FileNotFoundError that says what is wrong if `root` is missing; `holds` says what it must hold."""
    if os.path.exists(root):
        return
    if os.path.islink(root):
        raise FileNotFoundError(missing_target(root))
    data, name = os.path.split(root)
    if name not in ("train", "val"):
        raise FileNotFoundError(f"no folder {root!r}; it must hold {holds}")
    data = data or "."
    if not os.path.isdir(data):
        check_root(data, "the folders train and val")
        raise NotADirectoryError(f"{data!r} is a file; it must be a folder that holds the folders train and val")
    names = sorted(os.listdir(data))
    found = ", ".join(map(repr, names[:3])) + f" and {len(names) - 3} more" * (len(names) > 3)
    raise FileNotFoundError(
        f"no folder {root!r}; {data!r} must hold the folders train and val, or train.tar and val.tar, each with "
        f"{holds}, but holds {found or 'nothing'}"
    )


def check_same_classes(train, val):
    """Raises ValueError if two ImageFolders have different classes, or have them in a different order.

    The message names the first difference. With another order, the same label would mean different classes.
    """
    if odd := sorted(set(train.classes) ^ set(val.classes)):
        raise ValueError(
            f"{train.root!r} and {val.root!r} must have the same classes; {odd[0]!r} is only in one of them"
        )
    for number, (first, second) in enumerate(zip(train.classes, val.classes, strict=True)):
        if first != second:
            raise ValueError(
                f"{train.root!r} and {val.root!r} must have their classes in the same order, but class {number} is "
                f"{first!r} in the first and {second!r} in the second: labels in shards are sorted as numbers, "
                "folders and archives by name; give both in the same form"
            )
