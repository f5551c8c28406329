"""Crash-safe writing: the file at a checkpoint's path is always complete, even after a power cut."""

import contextlib
import os

import torch

TEMPORARY = ".tmp"  # ending of the name of a file that is being written

_temporaries = set()  # paths that are being written at this moment


def save(checkpoint, path, write=None):
    """Writes `checkpoint` to a temporary file, syncs it to the disk and renames it to `path`.

    The new file and its name survive a power cut after this function has returned.

    Args:
        write: called as `write(checkpoint, file)`; None means torch.save.

    Raises:
        Exception: whatever the system or the writer raises. The old file is unchanged and the temporary file gone.
    """
    temporary = f"{path}{TEMPORARY}"  # in the same folder, hence on the same file system
    _temporaries.add(temporary)
    try:
        with open(temporary, "wb") as file:
            (write or torch.save)(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        if os.path.exists(temporary):
            os.remove(temporary)
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None  # torch's writer hides the disk's error behind one of its own
        raise
    finally:
        _temporaries.discard(temporary)
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        os.fsync(folder)  # puts the new name on the disk, too
    finally:
        os.close(folder)


def remove_temporaries():
    """Removes the files that `save` is writing at this moment. For a process that ends without waiting for `save`."""
    for temporary in list(_temporaries):
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
