"""Files that are no checkpoints are named as what they are, in one line without torch's advice."""

import argparse
import collections
import functools
import gzip
import json
import os
import pickle
import tarfile
import warnings
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from moco.engine.checkpoint_file_diagnosis import unreadable
from moco.engine.checkpoint_file_read import read
from moco.engine.checkpoint_format import CheckpointError

STATE = {"state_dict": {"conv1.weight": torch.zeros(100)}}


def refusal(path, check=True):
    """The message with which `read` refuses a file; it must be one line of plain characters, without warnings."""
    with warnings.catch_warnings(), pytest.raises(CheckpointError) as refused:
        warnings.simplefilter("error")
        read(str(path), check)
    message = str(refused.value)
    assert message.isprintable() and "weights_only" not in message and "Re-running" not in message
    return message.replace(repr(str(path)), "FILE")


def save_old(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def cut(path, save, share):
    save(STATE, path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def zipped(path, **files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def zipped_arrays(path):
    with open(path, "wb") as file:
        np.savez(file, a=np.zeros(3))


def array(path):
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))


def tarred(path):
    (path.parent / "x").write_text("x")
    with tarfile.open(path, "w") as archive:
        archive.add(path.parent / "x")


def safetensors(path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


def torchscript(path):
    torch.save(STATE, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("file/constants.pkl", b"")


def written(data):
    return lambda path: path.write_bytes(data)


CUT = "the checkpoint FILE is cut short: not all of it was written, copied or downloaded"
SAVE = 'save the tensors with torch.save({"state_dict": TENSORS_BY_NAME}, FILE)'
NOT = "FILE is not a checkpoint but "
KINDS = {
    "empty": (written(b""), "the checkpoint FILE is an empty file"),
    "cut": (lambda path: cut(path, torch.save, 0.5), CUT),
    "cut at the end": (lambda path: cut(path, torch.save, 0.99), CUT),
    "old and cut": (lambda path: cut(path, save_old, 0.8), CUT),
    "old and cut early": (lambda path: cut(path, save_old, 0.05), CUT),
    "PNG": (lambda path: Image.new("RGB", (9, 9)).save(path, "PNG"), NOT + "a PNG image"),
    "JPEG": (lambda path: Image.new("RGB", (9, 9)).save(path, "JPEG"), NOT + "a JPEG image"),
    "zip": (lambda path: zipped(path, a="a"), NOT + "a zip archive of other files; unpack it first"),
    "npz": (zipped_arrays, NOT + f"NumPy arrays (npz); load them with numpy.load and {SAVE}"),
    "npy": (array, NOT + "a NumPy array"),
    "tar": (tarred, NOT + "a tar archive; unpack it first"),
    "gzip": (written(gzip.compress(b"x")), NOT + "a file compressed by gzip; unpack it first"),
    "HDF5": (written(b"\x89HDF\r\n\x1a\n" + bytes(9)), NOT + "an HDF5 file"),
    "text": (written(b"  hello world\nand more"), NOT + "a text file that begins with 'hello world'"),
    "JSON": (written(b'{"error": "none"}'), NOT + """a text file that begins with '{"error": "none"}'"""),
    "zeros": (written(bytes(5000)), NOT + "a file of zeros, perhaps because the machine crashed while it was written"),
    "safetensors": (safetensors, NOT + f"a safetensors file; load it with safetensors.torch.load_file and {SAVE}"),
    "TorchScript": (torchscript, NOT + f"a TorchScript archive; load it with torch.jit.load and {SAVE}"),
    "LFS": (
        written(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"),
        NOT + "a Git LFS pointer to the file; get the file itself with `git lfs pull`",
    ),
    **{
        page: (
            written(page.encode()),
            NOT + "a web page, perhaps an error message instead of a download; download it again",
        )
        for page in ("<!DOCTYPE html>\n<title>404</title>", "\n<HTML></HTML>", '<?xml version="1.0"?><Error/>')
    },
    **{
        f"pickle of {content}, protocol {protocol}": (
            written(pickle.dumps({"a": value}, protocol=protocol)),
            NOT + f"a pickle file with {content}; load it with the program that wrote it, and {SAVE}",
        )
        for content, value in (("NumPy arrays", np.zeros(3)), ("Python objects", 1))
        for protocol in (2, 4)
    },
    "list": (lambda path: torch.save([1], path), f"the checkpoint FILE holds a list, not a dict; {SAVE}"),
    "other bytes": (
        written(bytes(range(95, 250))),
        "can't read the checkpoint FILE: torch.save has not written it, or it is damaged (Unsupported operand 95)",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_named_as_what_it_is(kind, tmp_path):
    make, message = KINDS[kind]
    make(tmp_path / "file.pth")
    assert refusal(tmp_path / "file.pth") == refusal(tmp_path / "file.pth", check=False) == message


@pytest.mark.parametrize("save", [torch.save, save_old])
@pytest.mark.parametrize(
    "value, names",
    [
        (argparse.Namespace(lr=1), "argparse.Namespace"),
        (os.system, f"{os.name}.system"),
        (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
        (functools.partial(argparse.Namespace), "functools.partial"),
        (collections.UserDict(), "collections.UserDict"),
    ],
)
def test_foreign_objects_are_named(tmp_path, value, names, save):
    save({**STATE, "value": value}, tmp_path / "c.pth")
    message = refusal(tmp_path / "c.pth")
    assert message.startswith("the checkpoint FILE holds objects other than tensors and plain Python values (")
    assert names in message and message.endswith(
        "), which are not loaded since they could run code; save it without them where it was written: "
        'torch.save({"state_dict": model.state_dict()}, FILE) for --pretrained, '
        'and also with "epoch", "arch" and "optimizer" for --resume'
    )


@pytest.mark.parametrize(
    "path, message",
    [
        ("run/checkpoint_0099.pth.tar", "no checkpoint FILE; the nearest name there is 'checkpoint__0099.pth.tar'"),
        ("run/zzz", "no checkpoint FILE"),
        ("nowhere/c.pth", "no checkpoint FILE; the folder 'PARENT/nowhere' is missing"),
        ("https://x.org/c.pth", "no checkpoint FILE; download it first, then give the path of the file"),
        ("run", "the checkpoint FILE is a folder; give a file, such as 'checkpoint__0100.pth.tar' in it"),
        ("empty", "the checkpoint FILE is a folder; give a file"),
        ("link.pth", "no checkpoint FILE; it is a link to '/gone.pth', which is missing"),
        ("pipe", "the checkpoint FILE is not a regular file"),
    ],
)
def test_a_path_of_no_file(tmp_path, path, message):
    for folder in ("run", "empty"):
        (tmp_path / folder).mkdir()
    for name in ("checkpoint__0100.pth.tar", "checkpoint__0099.pth.tar", "model_best.pth.tar", "log.jsonl"):
        (tmp_path / "run" / name).write_bytes(b"")
    (tmp_path / "link.pth").symlink_to("/gone.pth")
    os.mkfifo(tmp_path / "pipe")
    if "://" not in path:
        path = tmp_path / path
    assert refusal(path) == message.replace("PARENT", str(tmp_path))


def test_a_name_in_the_working_folder_and_a_folder_that_may_not_be_listed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.pth").write_bytes(b"")
    assert refusal("modle.pth") == "no checkpoint FILE; the nearest name there is 'model.pth'"

    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "listdir", refuse)
    assert refusal("modle.pth") == "no checkpoint FILE"


def test_what_the_system_can_not_do(tmp_path):
    path = str(tmp_path / "c.pth")
    message = unreadable(path, OSError())
    assert message == f"can't read the checkpoint {path!r}: No such file or directory"
    torch.save(STATE, path)
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")):
        assert unreadable(path, error) == f"the checkpoint {path!r} does not fit into the memory"


@pytest.mark.parametrize(
    "text, detail",
    [
        ("PytorchStreamReader failed locating file data/0", " (PytorchStreamReader failed locating file data/0)"),
        ("Weights only load failed. Do \x1b[1mthis\x1b[0m.\n (1) `weights_only`\n\n\x1b[1mOdd\x1b[0m", " (Odd)"),
        ("Can only build types allowlisted via `add_safe_globals`", ""),
        ("", ""),
        ("x" * 999, f" ({'x' * 120})"),
    ],
)
def test_the_advice_of_torch_is_left_out(tmp_path, text, detail):
    torch.save(STATE, tmp_path / "c.pth")
    assert unreadable(str(tmp_path / "c.pth"), pickle.UnpicklingError(text)).endswith("it is damaged" + detail)
