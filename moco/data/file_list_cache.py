"""A cache on disk for the list of an image folder, so that a million files are not listed at every start.

The cache lies in `asym-siam` in the user's cache folder ($XDG_CACHE_HOME, or ~/.cache), never among the data. A cached
list records, for every visited folder and every archive, its state (see `state_of`). It is used only while none of
these states has changed. A stale or damaged cache is ignored, and a cache that can't be written only costs time.
"""

import contextlib
import hashlib
import io
import os
import tempfile

import numpy as np

DIGEST_BYTES = 32
FORMAT = b"4"  # version of the arrays and of what is listed; a cache of another version has another file name
SETTLED = 2.0  # seconds; a second change within this time may get the time stamp of the first


def cache_file(root):
    """The path of the cache file for the folder `root`."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    name = hashlib.blake2b(FORMAT + os.fsencode(os.path.abspath(root)), digest_size=16).hexdigest()
    return os.path.join(base, "asym-siam", f"{name}.index")


def load(root):
    """The arrays that `store` wrote for `root`; None if there are none, or if the folder has changed since."""
    try:
        with open(cache_file(root), "rb") as file:
            digest, data = file.read(DIGEST_BYTES), file.read()
        if hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest() != digest:
            return None
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = dict(archive)
        folders, states = arrays.pop("folders"), arrays.pop("states")
        if bytes(arrays.pop("root")) != os.fsencode(os.path.abspath(root)):
            return None
        names = folders.tobytes().split(b"\0")
        if [list(state_of(root, name)) for name in names] != states.tolist():
            return None
        return arrays
    except (OSError, ValueError, KeyError, EOFError):
        return None


def store(root, arrays, folders, started):
    """Writes a list to the cache.

    Nothing is written if a folder changed less than SETTLED seconds before the listing. Another change could then get
    the same time stamp and remain undetected.

    Args:
        arrays: dict of numpy arrays without objects.
        folders: list of (folder or archive relative to `root`, as bytes; its `state_of` before it was listed).
        started: when the listing began, in nanoseconds since 1970.
    """
    names, states = zip(*folders, strict=True)
    if max(modified for modified, *_ in states) > started - SETTLED * 1e9:
        return
    buffer = io.BytesIO()
    np.savez(
        buffer,
        root=np.frombuffer(os.fsencode(os.path.abspath(root)), dtype=np.uint8),
        folders=np.frombuffer(b"\0".join(names), dtype=np.uint8),
        states=np.array(states, dtype=np.int64),
        **arrays,
    )
    data = buffer.getvalue()
    path = cache_file(root)
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path))
        try:
            with open(descriptor, "wb") as file:
                file.write(hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest() + data)
            os.replace(temporary, path)
        except OSError:
            os.unlink(temporary)


def state_of(root, name):
    """The `state` of a folder or archive; `name`, in bytes, is its path relative to `root`, or empty for `root`."""
    return state(os.stat(os.path.join(os.fsencode(root), name) if name else root))


def state(status):
    """Numbers that change whenever the content of a folder or file changes.

    They are the modification time, the change time, the inode and the size. The times are in nanoseconds. The change
    time matters because programs can't set it back.

    Args:
        status: the os.stat_result.
    """
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size
