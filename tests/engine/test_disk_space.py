"""The disk space that the checkpoints of a run need."""

import torch

from moco.engine import disk_space
from moco.engine.disk_space import check_disk_space, size_of


def test_the_size_is_that_of_all_tensors():
    assert size_of({"a": [torch.zeros(2, 48), 3], "b": torch.zeros(2, dtype=torch.long)}) == 4 * 96 + 16


def test_a_disk_too_small_is_a_warning_at_the_start(tmp_path, monkeypatch, capsys):
    usage = type("Usage", (), {"free": 5_000_000_000})
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda folder: usage)
    check_disk_space(str(tmp_path / "new"), 1_000_000_000, 4)
    assert capsys.readouterr() == ("", "")
    check_disk_space(str(tmp_path), 1_000_000_000, 5, report=True)
    out, error = capsys.readouterr()
    assert "at most 6.00 GB" in out and "5.00 GB free" in out
    assert "will take about 6.0 GB" in error and "has 5.0 GB free; give another --output-dir or" in error
