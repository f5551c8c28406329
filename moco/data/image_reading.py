"""Reading the bytes of an image file, and the errors that name an image which can't be read or decoded."""

import contextlib
import errno
import os
import stat

from PIL import UnidentifiedImageError

from moco.pipe_safe_print import first_line

# The format is recognised by the file's content, not by its extension. Pillow's other readers are not for photographs,
# and its reader for EPS runs Ghostscript.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
LARGEST = 2**30  # bytes of an image file

# Errors of the system, not of the file: a failing disk or server, too many open files, no memory.
PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class BadImageError(OSError):
    """An image that can't be decoded; the message names the image and says what is wrong with it."""


class ImageReadError(OSError):
    """An image that can't be read at the moment, for example because a disk fails; the message names the image."""


@contextlib.contextmanager
def naming(image):
    """Context manager that turns every exception into one that names the image.

    Args:
        image: the path of its file.

    Raises:
        BadImageError: the image is at fault. ImageReadError: the system is at fault.
    """
    try:
        yield
    except (BadImageError, ImageReadError):
        raise
    except Exception as error:
        system = getattr(error, "strerror", None)
        if isinstance(error, MemoryError) or getattr(error, "errno", None) in PASSING:
            raise ImageReadError(
                f"can't read the image {image!r}: {system or 'out of memory'}; the system failed, not the file; when "
                "it works again, --resume auto continues the run"
            ) from error
        unknown = f"it is none of {', '.join(FORMATS)}" if isinstance(error, UnidentifiedImageError) else None
        why = unknown or system or first_line(error)
        raise BadImageError(f"can't decode the image {image!r}: {why}; repair or remove it") from error


def read_file(path):
    """The bytes of an image file.

    Raises:
        OSError: the file can't be read, has more than LARGEST bytes, or is not a regular file. (Reading a pipe might
            block, and reading a device file might never end.)
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is not a regular file")
        if status.st_size > LARGEST:
            raise OSError(f"it has {status.st_size} bytes, more than {LARGEST}")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)
