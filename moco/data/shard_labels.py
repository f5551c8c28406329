"""The labels in WebDataset shards: KEY.cls beside KEY.jpg, a file that holds the label as a small integer in text.

A key ends at the first dot of the file's name: the label of 0.jpg and of 0.input.jpg is in 0.cls.
"""

import os

from moco.data.file_extensions import is_image
from moco.data.tar_headers import ArchiveError
from moco.data.tar_index import open_regular

LABEL = ".cls"
LONGEST = 32  # bytes of a .cls file
LARGEST = 2**31 - 1


def label_file(image):
    """The name of the file with the label of an image."""
    return image.partition(".")[0] + LABEL


def has_labels(contents):
    """Whether a file with a label lies beside the first image of an archive; None if there is no image.

    Args:
        contents: iterable of (folder, Content).
    """
    images = ((file, content) for _, content in contents for file in content.files if is_image(file))
    return next((label_file(file) in content.files for file, content in images), None)


def images_with_labels(contents):
    """The images of a shard, in its order, with their labels.

    Args:
        contents: list of (folder, Content) of one archive.

    Returns:
        A list of ((folder, file, Content), label), where the label is None if the file with it is missing.

    Raises:
        ArchiveError: a file does not hold an integer from 0 to LARGEST.
    """
    images = [(folder, file, content) for folder, content in contents for file in content.files if is_image(file)]
    images.sort(key=lambda image: image[2].files[image[1]])
    descriptor = open_regular(images[0][2].tree.path) if images else None
    try:
        return [(image, read_label(descriptor, *image)) for image in images]
    finally:
        if images:
            os.close(descriptor)


def read_label(descriptor, _folder, image, content):
    """The label beside an image, read from the open file of the archive; None if there is none."""
    file, tree = label_file(image), content.tree
    number = content.files.get(file)
    if number is None:
        return None
    text = os.pread(descriptor, min(tree.sizes[number], LONGEST), tree.offsets[number]).strip()
    if not text.isdigit() or tree.sizes[number] > LONGEST or int(text) > LARGEST:
        name = f"{tree.name}!{os.path.join(content.inside, file)}"
        raise ArchiveError(f"the label {name!r} is {text!r}, no integer from 0 to {LARGEST}; write the archive again")
    return int(text)
