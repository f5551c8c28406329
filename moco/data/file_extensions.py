"""Which files are images, and which are archives, by their names."""

import re

# The extensions of image_reading.FORMATS in lower case, without .pfm, whose values are floats that are refused.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif", ".jpe", ".jfif")
EXTENSIONS += (".apng", ".pbm", ".pnm")

# Compressed archives are archives, too, so that they are refused by name instead of being passed over.
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4")
CHECKPOINT = ".pth.tar"  # a checkpoint has this extension, and is no tar


def is_image(file):
    """Whether the name of a file has the extension of an image."""
    return file.lower().endswith(EXTENSIONS)


def is_archive(file):
    """Whether the name of a file has the extension of an archive, and is not that of a checkpoint."""
    return file.lower().endswith(ARCHIVES) and not file.lower().endswith(CHECKPOINT)


def folder_of(archive):
    """The name of the folder that an archive stands for: that of its file without the extension."""
    ending = max((end for end in ARCHIVES if archive.lower().endswith(end)), key=len, default="")
    return archive[: len(archive) - len(ending)] or archive


def training_and_validation(archives):
    """The first of the names of archives that is for training, and the first for validation; None without either."""
    kinds = "(?:train|trainval)", "(?:val|valid|validation|test)"
    words = [re.compile(f"(?<![a-z])(?i:{kind})(?![a-zA-Z])") for kind in kinds]
    found = [next(filter(word.search, archives), None) for word in words]
    return found if all(found) else None
