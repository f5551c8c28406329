"""Says in words why a file can't be loaded as a checkpoint, and what to do about it.

The errors of torch.load are long, and advise to switch off the protection against code in files. They are not shown.
"""

import difflib
import os
import pickle
import re
import zipfile

import torch

MAGIC = b"\xfc\x9cF\xf9 j\xa8P\x19"  # in the beginning of files that torch.save wrote before torch 1.6
BEGINNINGS = (
    (b"version https://git-lfs.github.com/", "a Git LFS pointer to the file; get the file itself with `git lfs pull`"),
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x1f\x8b", "a file compressed by gzip; unpack it first"),
)
PAGE = (b"<!doctype html", b"<html", b"<?xml")
SAVE_TENSORS = 'save the tensors with torch.save({"state_dict": TENSORS_BY_NAME}, FILE)'
ADVICE = "weights.only|safe_globals"  # is in all lines of torch's messages that give advice
COLOUR = r"\x1b\[[\d;]*m"  # a terminal's code
DETAIL = 120  # characters of torch's message that are shown


def missing(path):
    """What to say of a path that is not the path of a file."""
    folder, name = os.path.split(path)
    if os.path.isdir(path):
        files = [file for file in _names_in(path) if ".pth" in file]
        files.sort(key=lambda file: (re.search(r"_\d{4,}\.pth", file) is not None, file))  # those of epochs at the end
        example = f", such as {files[-1]!r} in it" if files else ""
        return f"the checkpoint {path!r} is a folder; give a file{example}"
    if os.path.exists(path):
        return f"the checkpoint {path!r} is not a regular file"
    if os.path.islink(path):
        return f"no checkpoint {path!r}; it is a link to {os.readlink(path)!r}, which is missing"
    if "://" in path:
        return f"no checkpoint {path!r}; download it first, then give the path of the file"
    if not os.path.isdir(folder or "."):
        return f"no checkpoint {path!r}; the folder {folder!r} is missing"
    near = difflib.get_close_matches(name, _names_in(folder or "."), n=1)
    return f"no checkpoint {path!r}" + "".join(f"; the nearest name there is {other!r}" for other in near)


def _names_in(folder):
    try:
        return [name for name in os.listdir(folder) if not name.startswith(".")]
    except OSError:
        return []


def unreadable(path, error):
    """What to say of a file that torch.load refused with the exception `error`."""
    try:
        with open(path, "rb") as file:
            head, size = file.read(4096), os.fstat(file.fileno()).st_size
    except OSError as failed:
        return f"can't read the checkpoint {path!r}: {failed.strerror}"
    if not size:
        return f"the checkpoint {path!r} is an empty file"
    zipped = head.startswith(b"PK\3\4")
    ended = isinstance(error, EOFError) or "unexpected EOF" in str(error)
    # The directory of a zip archive is at its end. Older files are no archives, so torch finds their end too early.
    if (zipped and not zipfile.is_zipfile(path)) or (MAGIC in head[:32] and ended):
        return f"the checkpoint {path!r} is cut short: not all of it was written, copied or downloaded"
    if kind := _kind_of_zip(path) if zipped else _kind(head, size):
        return f"{path!r} is not a checkpoint but {kind}"
    if isinstance(error, pickle.UnpicklingError) and (names := _foreign_objects(path, error)):
        return (
            f"the checkpoint {path!r} holds objects other than tensors and plain Python values ({', '.join(names)}), "
            "which are not loaded since they could run code; save it without them where it was written: "
            'torch.save({"state_dict": model.state_dict()}, FILE) for --pretrained, '
            'and also with "epoch", "arch" and "optimizer" for --resume'
        )
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        return f"the checkpoint {path!r} does not fit into the memory"
    detail = _detail(error)
    return f"can't read the checkpoint {path!r}: torch.save has not written it, or it is damaged{detail}"


def _kind(head, size):
    """What a file is that begins with `head`, in words; None if it may be a checkpoint."""
    for beginning, kind in BEGINNINGS:
        if head.startswith(beginning):
            return kind
    if head.lstrip().lower().startswith(PAGE):
        return "a web page, perhaps an error message instead of a download; download it again"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:
        return f"a safetensors file; load it with safetensors.torch.load_file and {SAVE_TENSORS}"
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    if head[:1] == b"\x80" and head[1:2] <= b"\5" and MAGIC not in head[:32]:
        content = "NumPy arrays" if b"numpy" in head else "Python objects"
        return f"a pickle file with {content}; load it with the program that wrote it, and {SAVE_TENSORS}"
    if not head.strip(b"\0"):
        return "a file of zeros, perhaps because the machine crashed while it was written"
    try:
        line = head.lstrip().splitlines()[0].decode()
    except (UnicodeDecodeError, IndexError):
        return None
    return f"a text file that begins with {line[:40]!r}" if line.isprintable() and b"\0" not in head else None


def _kind_of_zip(path):
    """As `_kind`, for a zip archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # a damaged directory of the archive raises many kinds of errors
        return None
    if any(name.endswith("/constants.pkl") for name in names):
        return f"a TorchScript archive; load it with torch.jit.load and {SAVE_TENSORS}"
    if any(name.endswith("/data.pkl") for name in names):
        return None
    if names and all(name.endswith(".npy") for name in names):
        return f"NumPy arrays (npz); load them with numpy.load and {SAVE_TENSORS}"
    return "a zip archive of other files; unpack it first"


def _foreign_objects(path, error):
    """The names of up to 3 functions and classes that the file needs and that torch does not load."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # the file is in the format of old torch releases, or damaged
        names = re.findall(r"GLOBAL (\S+)", str(error))
    return sorted(name for name in set(names) if re.fullmatch(r"[\w.]{1,100}", name))[:3]


def _detail(error):
    """What torch's message says besides its advice, as " (...)"; "" if that is nothing."""
    lines = [line for line in str(error).splitlines() if line.strip() and not re.search(ADVICE, line, re.IGNORECASE)]
    line = re.sub(COLOUR, "", lines[0]).strip() if lines else ""
    detail = "".join(c for c in line if c.isprintable())
    return detail and f" ({detail:.{DETAIL}})"
