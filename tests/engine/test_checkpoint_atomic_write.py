"""Crash-safe writing: errors of the disk, and files that are being written."""

import resource

import pytest
import torch

from moco.engine.checkpoint_atomic_write import remove_temporaries, save


def test_the_disks_error_is_the_one_that_is_raised(tmp_path):
    """Here a limit of the file's size, of which torch's writer only says "unexpected pos"."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save({"x": torch.zeros(100_000)}, str(tmp_path / "c"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_what_is_being_written_can_be_removed(tmp_path, monkeypatch):
    def interrupted(checkpoint, file):
        assert (tmp_path / "c.tmp").exists()
        remove_temporaries()
        assert not (tmp_path / "c.tmp").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save({}, str(tmp_path / "c"))
    remove_temporaries()


def test_another_writer(tmp_path):
    save(b"content", str(tmp_path / "c"), lambda content, file: file.write(content))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("c", b"content")]
