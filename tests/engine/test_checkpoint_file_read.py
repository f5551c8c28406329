"""Reading checkpoints: damaged files, and one rank that reads for all."""

import pytest
import torch

from moco.engine.checkpoint_atomic_write import save
from moco.engine.checkpoint_file_read import read, read_on_all_ranks
from moco.engine.checkpoint_format import CheckpointError
from tests.engine.test_checkpoint_format import moco, stepped
from tests.ranks import run_ranks


@pytest.fixture(scope="module")
def saved():
    torch.set_num_threads(1)
    return stepped(*moco())


def test_a_damaged_file_is_refused_though_torch_would_read_it(saved, tmp_path):
    path = tmp_path / "c.pth"
    save(saved, str(path))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    torch.load(path, weights_only=True)
    with pytest.raises(CheckpointError, match="is damaged"):
        read(str(path))


def test_a_long_check_shows_its_progress(tmp_path, impatient, capsys):
    path = str(tmp_path / "c.pth")
    torch.save({"state_dict": {"a": torch.zeros(300_000), "b": torch.zeros(500_000)}}, path)
    read(path)
    out, error = capsys.readouterr()
    assert not out and f"checking {path!r}: " in error and " bytes (" in error and error.count("\n") > 3
    read(path, check=False)
    assert capsys.readouterr() == ("", "")


def read_here(path, other):
    rank = torch.distributed.get_rank()
    return read_on_all_ranks(path if rank == 0 else other)


def test_only_rank_0_touches_the_file(tmp_path):
    torch.save({"epoch": 2, "x": torch.arange(5)}, tmp_path / "c.pth")
    for content in run_ranks(read_here, 2, str(tmp_path / "c.pth"), str(tmp_path / "nowhere.pth")):
        assert content["epoch"] == 2 and torch.equal(content["x"], torch.arange(5))
