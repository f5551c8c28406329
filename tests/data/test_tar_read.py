"""Reading images out of archives: equal bytes, few descriptors, one set of them for each process."""

import errno
import os
import pickle
import resource
import threading
import time

import pytest

from moco.data import tar_read
from moco.data.file_list import ImageFolder
from moco.data.image_reading import BadImageError, ImageReadError
from tests.data.archives import archive_of, packed_classes

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def folder(imagenet, tmp_path):
    """The fake ImageNet's training images in 12 class tars."""
    return ImageFolder(packed_classes(imagenet / "train", tmp_path / "train"))


@pytest.fixture
def opened(monkeypatch):
    """The paths of the archives that are opened."""
    paths, open_regular = [], tar_read.open_regular
    monkeypatch.setattr(tar_read, "open_regular", lambda path: paths.append(path) or open_regular(path))
    return paths


def open_files():
    return len(os.listdir("/proc/self/fd"))


def everything(folder):
    return [folder.read(i) for i in range(len(folder))]


def test_the_bytes_are_those_of_the_files(folder, imagenet, opened):
    unpacked = ImageFolder(imagenet / "train")
    assert everything(folder) == everything(unpacked) and len(opened) == 12
    assert folder.load(7).tobytes() == unpacked.load(7).tobytes()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts /proc/self/fd")
@pytest.mark.parametrize("most", [1, 5])
def test_few_archives_are_open_at_a_time(folder, monkeypatch, opened, most):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (2 * most, -1))
    before = open_files()
    order = [0, 95, 0, 95, *range(96)]
    for i in order:
        folder.read(i)
        assert open_files() - before <= most
    assert len(opened) == {1: 16, 5: 13}[most]


def test_a_process_without_a_free_descriptor_closes_others(folder, monkeypatch):
    for i in (0, 20, 40):
        folder.read(i)
    open_regular, refused = tar_read.open_regular, []

    def full(path):
        if len(refused) < 2:
            refused.append(path)
            raise OSError(errno.EMFILE, "Too many open files")
        return open_regular(path)

    monkeypatch.setattr(tar_read, "open_regular", full)
    assert len(folder.read(95)) > 500 and len(vars(folder._archived._descriptors)["opened"]) == 2
    monkeypatch.setattr(tar_read, "open_regular", lambda path: full(refused.clear() or path))
    with pytest.raises(ImageReadError, match=r"can't read the archive '.*tar': Too many open files; when it"):
        folder.read(50)


def test_forked_processes_threads_and_copies_open_their_own(folder, opened):
    folder.read(0)
    pid = os.fork()
    if pid == 0:
        folder.read(0)
        folder.read(1)
        os._exit(len(opened))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
    thread = threading.Thread(target=folder.read, args=(0,))
    thread.start()
    thread.join()
    assert len(opened) == 2
    assert pickle.loads(pickle.dumps(folder)).read(95) == folder.read(95) and len(opened) == 4


def test_an_archive_that_changes_during_a_run_is_noticed(tmp_path):
    path = archive_of(tmp_path / "a.tar", ("cat/0.jpg", b"old"), ("cat/1.jpg", b"old"))
    folder = ImageFolder(path)
    time.sleep(0.01)
    archive_of(path, ("cat/1.jpg", b"new"), ("cat/0.jpg", b"new"))
    with pytest.raises(ImageReadError, match=f"the archive '{path}' has changed since it was listed; start again"):
        folder.read(0)
    path.unlink()
    with pytest.raises(ImageReadError, match=f"can't read the archive '{path}': No such file or directory; when it"):
        folder.read(0)
    folder = ImageFolder(archive_of(path, ("cat/0.jpg", b"x" * 5000)))
    folder.read(0)
    os.truncate(path, 3000)  # which an open descriptor sees
    with pytest.raises(ImageReadError, match="has changed since it was listed"):
        folder.read(0)


def test_an_archive_that_is_overwritten_while_it_is_open_is_noticed(tmp_path):
    path = archive_of(tmp_path / "a.tar", ("cat/0.jpg", b"one"), ("cat/1.jpg", b"two"))
    folder = ImageFolder(path)
    assert folder.read(0) == b"one"
    time.sleep(0.01)
    path.write_bytes(archive_of(tmp_path / "b.tar", ("cat/1.jpg", b"two"), ("cat/0.jpg", b"one")).read_bytes())
    for _ in range(2):
        with pytest.raises(ImageReadError, match=f"the archive '{path}' has changed since it was listed; start again"):
            folder.read(0)


def test_a_bad_member_is_named_and_a_huge_one_is_refused(tmp_path, monkeypatch):
    folder = ImageFolder(archive_of(tmp_path / "a.tar", ("cat/0.jpg", b"broken"), ("cat/1.jpg", b"x" * 100)))
    monkeypatch.setattr(tar_read, "LARGEST", 99)
    with pytest.raises(BadImageError, match=f"can't decode the image '{tmp_path}/a.tar!cat/0.jpg': it is none"):
        folder.load(0)
    with pytest.raises(BadImageError, match=r"'.*a.tar!cat/1.jpg': it has 100 bytes or more, more than 99"):
        folder.read(1)


def test_short_reads_are_completed(folder, imagenet, monkeypatch):
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, offset: pread(file, min(size, 100), offset))
    assert everything(folder)[:9] == everything(ImageFolder(imagenet / "train"))[:9]
