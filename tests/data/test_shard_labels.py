"""WebDataset shards: labels from .cls files, in the order of the shards and of their members."""

import pytest

from moco.data.file_list import ImageFolder
from moco.data.tar_headers import ArchiveError
from tests.data.archives import archive_of

pytestmark = pytest.mark.usefixtures("cache")


def shard(path, *keys):
    """Each of `keys` is (name with extension, label)."""
    path.parent.mkdir(exist_ok=True)
    members = []
    for name, label in keys:
        members += [(f"{name.partition('.')[0]}.cls", label), (name, name.encode())]
        members += [(f"{name.partition('.')[0]}.json", b"{}")]
    return archive_of(path, *members)


def samples(root, **how):
    folder = ImageFolder(root, **how)
    return [(folder.read(i).decode(), int(folder.labels[i])) for i in range(len(folder))], folder.classes


def test_labels_and_order_of_several_shards(tmp_path):
    root = tmp_path / "train"
    shard(root / "s-000001.tar", ("x/7.jpg", b"10"), ("x/3.png", b"9\n"))
    shard(root / "s-000000.tar", ("z.jpeg", b"2"), ("a.jpg", b"10"))
    expected = [("z.jpeg", 0), ("a.jpg", 2), ("x/7.jpg", 2), ("x/3.png", 1)], ["2", "9", "10"]
    for how in ({}, {}, {"labels": False}, {"any_tree": True}):
        assert samples(root, **how) == expected
    assert ImageFolder(root).summary() == (
        f"images: 4 of 3 classes in {str(root)!r}; passed over: 4 files with other extensions (.json)"
    )
    assert ImageFolder(root).path(3) == f"{root}/s-000001.tar!x/3.png"


def test_one_shard(tmp_path):
    path = shard(tmp_path / "train.tar", ("b.jpg", b"1"), ("a.jpg", b"0"))
    assert samples(path) == ([("b.jpg", 1), ("a.jpg", 0)], ["0", "1"])


def test_a_key_ends_at_the_first_dot(tmp_path):
    path = archive_of(tmp_path / "0.tar", ("x.y/0.input.jpg", b"a"), ("x.y/0.cls", b"7"))
    assert samples(path) == ([("a", 0)], ["7"])


@pytest.mark.parametrize("label", [b"cat", b"-1", b"1.5", b"", b"9" * 20, b"1" * 33])
def test_labels_that_are_refused_by_name(tmp_path, label):
    path = shard(tmp_path / "train" / "0.tar", ("a.jpg", b"0"), ("b.jpg", label))
    with pytest.raises(ArchiveError, match=r"the label '.*/train/0.tar!b.cls' is b'.*', no integer from 0 to"):
        ImageFolder(path.parent)


def test_a_missing_label_is_refused_only_where_labels_are_needed(tmp_path):
    path = archive_of(tmp_path / "0.tar", ("a.jpg", b"a"), ("a.cls", b"5"), ("b.jpg", b"b"))
    with pytest.raises(FileNotFoundError, match=r"the image '.*/0.tar!b.jpg' has no label; put a file of the same"):
        ImageFolder(path)
    assert samples(path, labels=False) == ([("a", 0), ("b", -1)], ["5"])
    assert not ImageFolder(path, labels=False).labelled
