"""Walks the folders of a data set: links are followed, loops are refused, hidden and missing things are passed over.

The system is asked about folders and symbolic links only. Of all other files it tells the kind together with the name,
so that listing a million files costs no request for each of them.
"""

import contextlib
import errno
import os
import time
from pathlib import Path
from typing import NamedTuple

from moco.data import file_list_cache
from moco.pipe_safe_print import say

INTERVAL, OFTEN = 10.0, 100  # seconds between two lines, and entries between two looks at the clock
MACOS = "__MACOSX"  # a folder in zip archives of macOS; its files have the names of images, but are none
MISSING = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}  # what the system says of a symbolic link without a target


class Content(NamedTuple):
    """What one folder holds.

    Attributes:
        folders: dict from name to whether it is a symbolic link.
        files: the names, in no order: a list; in an archive, a dict from name to the member's number in `tree`.
        broken: list of the names of symbolic links whose target is missing.
        hidden: number of entries whose names begin with a dot, or are `__MACOSX`.
        tree, inside: the TarTree that the folder lies in, and its path there; None and "" if it is in no archive.
    """

    folders: dict[str, bool]
    files: list[str] | dict[str, int]
    broken: list[str]
    hidden: int
    tree: object = None
    inside: str = ""


class Listing:
    """Counts the entries that are listed below `root`; prints the number to standard error every 10 seconds."""

    def __init__(self, root):
        self.root, self.entries, self.printed = root, 0, time.monotonic()

    def add(self):
        """Call at each entry. The number of all entries is not known, so the time left is not, either."""
        self.entries += 1
        if self.entries % OFTEN == 0 and time.monotonic() - self.printed >= INTERVAL:
            self.printed = time.monotonic()
            say(f"listing the images in {self.root!r}: {self.entries:,} files and folders so far", True)


def scan(path, listing):
    """Lists one folder and adds its entries to a Listing; returns its Content.

    Raises:
        OSError: the folder, or the target of a link in it, can't be read.
    """
    folders, files, broken, hidden = {}, [], [], 0
    with os.scandir(path) as entries:
        for entry in entries:
            listing.add()
            name = entry.name
            if is_hidden(name):
                hidden += 1
            elif entry.is_symlink() and is_broken(entry):
                broken.append(name)
            elif entry.is_dir():
                folders[name] = entry.is_symlink()
            else:
                files.append(name)
    return Content(folders, files, broken, hidden)


def is_hidden(name):
    """Whether the name of a file or folder begins with a dot, or is `__MACOSX`."""
    return name[0] == "." or name == MACOS


def is_broken(link):
    """Whether the target of a symbolic link, an os.DirEntry, is missing."""
    try:
        link.stat()
    except OSError as error:
        if error.errno not in MISSING:
            raise
        return True
    return False


def enclosing_folders(root):
    """Where no link below `root` may lead: a dict from the identities of `root` and of all folders above to paths."""
    above = {}
    for folder in Path(os.path.realpath(root)).parents:
        with contextlib.suppress(OSError):  # no link can be followed to a folder that this user may not reach
            above[identity(os.stat(folder))] = str(folder)
    return {**above, identity(os.stat(root)): root}


def identity(status):
    """The device and the inode of an os.stat_result, which tell folders apart whatever their paths."""
    return status.st_dev, status.st_ino


def walk(listing, top, top_is_link, above, states):
    """Yields (folder, Content) for the folder `top` of a data set and for all folders below it, in no order.

    Appends each folder's state to `states`. It is read before the folder is listed, so a change in between is noticed
    later.

    Args:
        listing: a Listing; its root is the folder of the data set. top: a name in it.
        top_is_link: whether that is a symbolic link. above: the `enclosing_folders` of the root.
        states: list of (folder relative to the root, as bytes; its state).

    Raises:
        OSError: a folder can't be read, or a symbolic link leads back to a folder that contains it.
    """
    root, waiting = listing.root, [(top, top if top_is_link else None, above)]
    while waiting:
        folder, link, above = waiting.pop()
        path = os.path.join(root, folder)
        status = os.stat(path)
        here = identity(status)
        if link and here in above:
            raise OSError(
                f"the link {os.path.join(root, link)!r} leads back to the folder {above[here]!r}, which contains it; "
                "remove the link"
            )
        states.append((os.fsencode(folder), file_list_cache.state(status)))
        content = scan(path, listing)
        above = {**above, here: path}
        for name, is_link in content.folders.items():
            below = os.path.join(folder, name)
            waiting.append((below, below if is_link else link, above))
        yield folder, content


def missing_target(link):
    """What to say of a symbolic link whose target is missing."""
    return f"the link {link!r} leads to {os.readlink(link)!r}, which is missing; restore it, or remove the link"
