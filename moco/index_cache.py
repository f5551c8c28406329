"""A cached listing of an image folder, so that a million files need not be listed at every start.

It lies in the user's cache folder ($XDG_CACHE_HOME, else ~/.cache), in `asym-siam`, never among the data. A listing
names every folder that it went through with its state (see `state_of`); it serves as long as none of them has changed.
What is stale or damaged is passed over, and a cache that can't be written costs the time of a listing, no more.
"""

import contextlib
import hashlib
import io
import os
import tempfile

import numpy as np

DIGEST_BYTES = 32
FORMAT = b"1"  # of the arrays; an index of another format is another file
SETTLED = 2.0  # seconds: a folder changed so lately may change again within its time stamp's resolution


def cache_file(root):
    """Where the listing of the folder `root` lies."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    name = hashlib.blake2b(FORMAT + os.fsencode(os.path.abspath(root)), digest_size=16).hexdigest()
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
    """Keeps a listing, unless a folder was changed so shortly before it that a later change might not show.

    Args:
        arrays: dict of numpy arrays without objects.
        folders: list of (folder relative to `root`, as bytes; its `state_of` before it was listed).
        started: when the listing began, in nanoseconds.
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
    """What changes with the folder `name` (bytes, relative to `root`): modification time, change time, which can't be
    set back, both in nanoseconds, and inode."""
    stat = os.stat(os.path.join(os.fsencode(root), name))
    return stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino
