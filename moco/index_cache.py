"""A cached listing of an image folder, so that a million files need not be listed at every start.

It lies in the user's cache folder ($XDG_CACHE_HOME, else ~/.cache), in `asym-siam`, never among the data. A listing
names every folder that it went through with its modification time; it serves as long as none of them has changed. What
is stale or damaged is passed over, and a cache that can't be written costs the time of a listing, no more.
"""

import hashlib
import io
import os

import numpy as np

DIGEST_BYTES = 32
SETTLED = 2.0  # seconds: a folder changed so lately may change again within its time stamp's resolution


def cache_file(root):
    """Where the listing of the folder `root` lies."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    name = hashlib.blake2b(os.fsencode(os.path.abspath(root)), digest_size=16).hexdigest()
    return os.path.join(base, "asym-siam", f"{name}.index")


def load(root):
    """The arrays that `store` was given for `root`, or None where there are none or the folder has changed."""
    try:
        with open(cache_file(root), "rb") as file:
            digest, data = file.read(DIGEST_BYTES), file.read()
        if hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest() != digest:
            return None
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = dict(archive)
        folders, times = arrays.pop("folders"), arrays.pop("times")
        if bytes(arrays.pop("root")) != os.fsencode(os.path.abspath(root)):
            return None
        names = folders.tobytes().split(b"\0")
        if [modified(root, name) for name in names] != times.tolist():
            return None
        return arrays
    except (OSError, ValueError, KeyError, EOFError):
        return None


def store(root, arrays, folders, started):
    """Keeps a listing, unless a folder was changed so shortly before it that a later change might not show.

    Args:
        arrays: dict of numpy arrays without objects.
        folders: list of (folder relative to `root`, as bytes; its modification time before it was listed).
        started: when the listing began. Times are in nanoseconds.
    """
    names, times = zip(*folders, strict=True)
    if max(times) > started - SETTLED * 1e9:
        return
    buffer = io.BytesIO()
    np.savez(
        buffer,
        root=np.frombuffer(os.fsencode(os.path.abspath(root)), dtype=np.uint8),
        folders=np.frombuffer(b"\0".join(names), dtype=np.uint8),
        times=np.array(times, dtype=np.int64),
        **arrays,
    )
    data = buffer.getvalue()
    path = cache_file(root)
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest() + data)
        os.replace(temporary, path)
    except OSError:
        if os.path.exists(temporary):
            os.unlink(temporary)


def modified(root, name):
    """When the folder `name` (bytes, relative to `root`) was changed last, in nanoseconds."""
    return os.stat(os.path.join(os.fsencode(root), name)).st_mtime_ns
