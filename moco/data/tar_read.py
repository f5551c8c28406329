"""Reads images out of tar archives: one request of the system for each image, at the place that the index names."""

import errno
import os
import resource
import threading
from collections import OrderedDict

from moco.data.image_reading import LARGEST, ImageReadError
from moco.data.string_array import StringArray
from moco.data.tar_index import open_regular

RETRY = (errno.ENFILE, errno.EMFILE)  # too many open files


class ArchivedImages:
    """The images of a list that lie in archives. It can be pickled, and used in forked processes and in threads.

    Args:
        root: the folder of the list, or the archive itself.
        arrays: a dict of
            `archive` (int32, for each image an index into `archives`, or -1 for a file of its own),
            `offset` (int64) and `size` (uint32): where the image lies in the file, in bytes,
            `archives`, `archives_ends`: the end of each archive's name, as of a StringArray,
            `archives_file` (int32, for each archive an index into `files`),
            `files`, `files_ends`: the end of each file's path, as of a StringArray; it follows `beginning(root)`, and
            `files_states` (int64, M x 2: the size and the modification time in nanoseconds).
    """

    def __init__(self, root, arrays):
        self.beginning = beginning(root)
        self._of, self._offset, self._size = arrays["archive"], arrays["offset"], arrays["size"]
        self._archives = StringArray(arrays["archives"], arrays["archives_ends"])
        self._file_of_archive, self._states = arrays["archives_file"], arrays["files_states"]
        self._files = StringArray(arrays["files"], arrays["files_ends"])
        self._descriptors, self._process = threading.local(), None

    def __getstate__(self):
        return {**vars(self), "_descriptors": None, "_process": None}

    def __contains__(self, index):
        return self._of[index] >= 0

    def archive(self, index):
        """The name of the archive that image `index` lies in."""
        return self.beginning + self._archives[self._of[index]]

    def place(self, index):
        """Where image `index` lies: (index of the file, offset and size in bytes)."""
        return int(self._file_of_archive[self._of[index]]), int(self._offset[index]), int(self._size[index])

    def read(self, index):
        """The bytes of image `index`.

        Raises:
            ImageReadError: the file of the archive can't be opened, or it has changed since it was listed.
            OSError: the system failed, or the image has more than LARGEST bytes.
        """
        file, offset, size = self.place(index)
        if size > LARGEST:
            raise OSError(f"it has {size} bytes or more, more than {LARGEST}")
        descriptor = self._open(file)
        data = os.pread(descriptor.number, size, offset)
        while len(data) < size:  # the system may return less than it was asked for
            more = os.pread(descriptor.number, size - len(data), offset + len(data))
            if not more:
                raise self._changed(file)
            data += more
        status = os.fstat(descriptor.number)  # after reading, so that no change escapes it; it takes about 1 us
        if [status.st_size, status.st_mtime_ns] != descriptor.state:
            raise self._changed(file)
        return data

    def _open(self, file):
        """The Descriptor of a file, which each process and each thread opens for itself."""
        if self._process != os.getpid():  # descriptors of before a fork stay with the other process
            self._descriptors, self._process = threading.local(), os.getpid()
        opened = vars(self._descriptors).setdefault("opened", OrderedDict())
        if file in opened:
            opened.move_to_end(file)
            return opened[file]
        while len(opened) >= most_open():
            opened.popitem(last=False)
        path = self.beginning + self._files[file]
        while True:
            try:
                opened[file] = Descriptor(path, self._states[file].tolist())
                return opened[file]
            except OSError as error:
                if error.errno not in RETRY or not opened:
                    raise ImageReadError(
                        f"can't read the archive {path!r}: {error.strerror or error}; when it can be read again, "
                        "--resume auto continues the run"
                    ) from error
                opened.popitem(last=False)

    def _changed(self, file):
        """The ImageReadError about a file that has changed; the file is closed."""
        del self._descriptors.opened[file]
        return ImageReadError(
            f"the archive {self.beginning + self._files[file]!r} has changed since it was listed; start again, with "
            "--resume auto to continue the run"
        )


class Descriptor:
    """A file that is open for reading; it is closed when nothing refers to it any more.

    Attributes:
        number: the descriptor.
        state: as given: [size, modification time in nanoseconds] of the file when it was listed.
    """

    number = None

    def __init__(self, path, state):
        self.number, self.state = open_regular(path), state

    def __del__(self, close=os.close):  # at the end of the program, `os` may no longer exist
        if self.number is not None:
            close(self.number)


def beginning(root):
    """What the name of each file in `root` begins with: the folder with its slash, or the archive."""
    return os.path.join(root, "") if os.path.isdir(root) else root


def most_open():
    """How many archives a thread keeps open: half of what the system allows the process."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, soft // 2) if soft != resource.RLIM_INFINITY else 2**16
