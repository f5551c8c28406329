"""Folders of images: the list of their files in a few arrays, and decoding."""

import errno
import io
import os
import stat
import time

import numpy as np
import torch
import torchvision.transforms.functional as TF
from PIL import Image

from moco import index_cache

try:
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # deprecated since torchvision 0.29
    decode_jpeg = None

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
JPEG = b"\xff\xd8\xff"
# By content, whatever the extension; Pillow's other readers are no photographs', and one starts a program.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
LARGEST = 2**30  # bytes of a file
MOST_PIXELS = 2 * Image.MAX_IMAGE_PIXELS  # which Pillow refuses to decode, and this project to make


# Troubles of the system, not of the file: a disk or a server that fails, too many open files, no memory.
PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class BadImageError(OSError):
    """An image that can't be decoded; the message names the file."""


class ImageFolder:
    """The images of `root/CLASS/**`, in the order and with the labels of torchvision's ImageFolder.

    Kept in three arrays rather than in Python objects, whose reference counts would copy the list into every
    worker (PyTorch issue 13246).

    Attributes:
        root: the folder. classes: sorted names of the class folders. labels: int32, an index of `classes` an image.

    Raises:
        FileNotFoundError: `root` is missing, or has no class folders, or a class has no image.
    """

    def __init__(self, root):
        self.root = os.fspath(root)
        if not os.path.isdir(self.root):
            raise FileNotFoundError(f"no folder {self.root!r}; it must hold one folder of images a class")
        arrays = index_cache.load(self.root)
        if arrays is None:
            started = time.time_ns()
            arrays, folders = list_images(self.root)
            index_cache.store(self.root, arrays, folders, started)
        self.classes = [os.fsdecode(name) for name in arrays["classes"].tobytes().split(b"\0")]
        self._paths, self._ends, self.labels = arrays["paths"], arrays["ends"], arrays["labels"]

    def __len__(self):
        return len(self.labels)

    def path(self, index):
        """The file of image `index`."""
        start, end = self._ends[index], self._ends[index + 1]
        return os.path.join(self.root, os.fsdecode(self._paths[start:end].tobytes()))

    def load(self, index):
        """Decodes image `index` to a PIL image, RGB whatever its mode.

        Raises:
            BadImageError: it can't be decoded, or is larger than an image can be meant to be.
            OSError: it can't be read, which may pass. The message of both names the file.
        """
        path = self.path(index)
        try:
            with open_image(path) as file:
                return to_rgb(Image.open(file, formats=FORMATS))
        except Exception as error:
            if isinstance(error, MemoryError) or getattr(error, "errno", None) in PASSING:
                raise OSError(f"can't read the image {path!r}: {str(error) or 'out of memory'}") from error
            raise BadImageError(f"can't decode the image {path!r}: {error}") from error

    def load_tensor(self, index):
        """Decodes image `index` to H x W x 3, uint8, the pixels of `load`: JPEGs by torchvision, others by Pillow.

        Raises:
            BadImageError, OSError: as `load`.
        """
        try:
            with open_image(self.path(index)) as file:
                data = file.read()
            if data.startswith(JPEG) and decode_jpeg is not None:
                Image.open(io.BytesIO(data), formats=("JPEG",))  # looks at the header, which may promise terabytes
                encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
                return decode_jpeg(encoded, mode=ImageReadMode.RGB).permute(1, 2, 0).contiguous()
        except Exception:
            pass  # CMYK and what else torchvision refuses; Pillow decides, and names what is wrong
        return TF.pil_to_tensor(self.load(index)).permute(1, 2, 0).contiguous()


def open_image(path):
    """Opens a file to read bytes.

    Raises:
        OSError: it can't be opened, is no regular file (a pipe would block, a device never end), or is too large.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is no regular file")
        if status.st_size > LARGEST:
            raise OSError(f"it has {status.st_size} bytes, more than {LARGEST}")
    except OSError:
        os.close(descriptor)
        raise
    return open(descriptor, "rb")


def to_rgb(image):
    """A PIL image of any mode but F to RGB; 16-bit grey keeps its upper byte, transparency is dropped.

    Raises:
        ValueError: mode F, whose values have no set range.
    """
    if image.mode == "F":
        raise ValueError("its values are floats of an unknown range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def list_images(root):
    """Lists a folder.

    Returns:
        (arrays, folders): a dict of `paths` (uint8, all paths relative to `root` in a row), `ends` (int64, from 0 on
        where each ends), `labels` (int32), `classes` (uint8, names parted by 0); and, for the cache, a list of (folder
        relative to `root`, its state before it was listed).
    """
    folders = [(b".", index_cache.state_of(root, b"."))]
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    if not classes:
        raise FileNotFoundError(f"no class folders in {root!r}; it must hold one folder of images a class")
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
    """os.walk, links followed, that notes each folder's state in `folders` before it lists the folder."""

    def note(folder):
        name = os.fsencode(os.path.relpath(folder, root))
        folders.append((name, index_cache.state_of(root, name)))

    note(top)

    def stop(error):
        raise error  # os.walk would pass over a folder that can't be read

    for folder, below, files in os.walk(top, onerror=stop, followlinks=True):
        for name in below:
            note(os.path.join(folder, name))
        yield folder, below, files
