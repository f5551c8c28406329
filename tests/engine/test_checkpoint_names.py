"""The names of checkpoint files: which exist, which --keep removes, and how many are to come."""

import pytest

from moco.engine.checkpoint_names import LAST, CheckpointNames

OTHERS = ["checkpoint_other_0007.pth.tar", "checkpoint_t_0001.pth.tar.tmp", "model_best.pth.tar", "log.jsonl"]


def pretraining(folder, keep=None):
    return CheckpointNames(str(folder), "checkpoint_t", numbered=True, keep=keep)


def test_numbered_files(tmp_path):
    names = pretraining(tmp_path, keep=2)
    assert names.of_epoch(3) == str(tmp_path / "checkpoint_t_0003.pth.tar")
    assert names.within_epoch() == str(tmp_path / "checkpoint_t_last.pth.tar")
    for name in ["checkpoint_t_0000.pth.tar", "checkpoint_t_0001.pth.tar", "checkpoint_t_12345.pth.tar", *OTHERS]:
        (tmp_path / name).touch()
    (tmp_path / "checkpoint_t_last.pth.tar").touch()
    found = {str(tmp_path / f"checkpoint_t_{n}.pth.tar"): e for n, e in (("0000", 0), ("0001", 1), ("12345", 12345))}
    assert names.resumable() == found | {str(tmp_path / "checkpoint_t_last.pth.tar"): LAST}
    assert names.outdated(2) == [str(tmp_path / "checkpoint_t_0000.pth.tar")]
    assert sorted(names.outdated(3)) == [str(tmp_path / f"checkpoint_t_000{i}.pth.tar") for i in (0, 1)]
    assert pretraining(tmp_path).outdated(99) == []


def test_files_of_linear_classification(tmp_path):
    names = CheckpointNames(str(tmp_path), "checkpoint", numbered=False, best="model_best")
    assert names.of_epoch(0) == names.of_epoch(9) == str(tmp_path / "checkpoint.pth.tar")
    assert names.of_best() == str(tmp_path / "model_best.pth.tar")
    for name in ["checkpoint.pth.tar", "checkpoint_last.pth.tar", *OTHERS]:
        (tmp_path / name).touch()
    files = {str(tmp_path / "checkpoint.pth.tar"): None, str(tmp_path / "checkpoint_last.pth.tar"): LAST}
    assert names.resumable() == files and names.outdated(5) == []


@pytest.mark.parametrize("existing, keep, files", [((), None, 6), (("last",), None, 5), ((), 2, 3), (("0000",), 2, 2)])
def test_files_that_five_more_epochs_add(existing, keep, files, tmp_path):
    for name in existing:
        (tmp_path / f"checkpoint_t_{name}.pth.tar").touch()
    assert pretraining(tmp_path, keep).files_to_come(5, fresh=False) == files
    assert pretraining(tmp_path, keep).files_to_come(5, fresh=True) == (6 if keep is None else 3)


def test_a_folder_that_is_missing_has_no_checkpoints(tmp_path):
    assert pretraining(tmp_path / "nowhere").resumable() == {}


@pytest.mark.parametrize("tag", ["a/b", "x" * 201, "a\nb"])
def test_a_tag_that_can_not_be_in_a_file_name_is_refused(tag):
    with pytest.raises(ValueError, match=r"--tag .* must have at most 200 bytes, no path separator and no con"):
        CheckpointNames(".", f"checkpoint_{tag}", numbered=True)
