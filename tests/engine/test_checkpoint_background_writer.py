"""Checkpoints written beside the training: copied at once, whole or not at all, and what a failing disk does."""

import threading

import pytest
import torch

from moco.engine import checkpoint_atomic_write
from moco.engine.checkpoint_background_writer import BackgroundWriter, on_cpu
from moco.engine.checkpoint_file_read import read
from moco.engine.checkpoint_format import CheckpointError


def state(value):
    return {"epoch": value, "state_dict": {"w": torch.full((3, 2), float(value))}, "list": [torch.zeros(1), "a"]}


def test_what_is_written_is_the_state_at_the_call(tmp_path, monkeypatch):
    """The write is held up until the state has changed."""
    changed, save = threading.Event(), checkpoint_atomic_write.save

    def late(checkpoint, path):
        assert changed.wait(30)
        save(checkpoint, path)

    monkeypatch.setattr(checkpoint_atomic_write, "save", late)
    live, path = state(1), str(tmp_path / "c")
    with BackgroundWriter() as writer:
        writer.save(live, path)
        live["state_dict"]["w"].fill_(9)
        assert not (tmp_path / "c").exists()
        changed.set()
    assert torch.equal(read(path)["state_dict"]["w"], state(1)["state_dict"]["w"])


def test_one_write_at_a_time_several_names_and_removal(tmp_path):
    with BackgroundWriter() as writer:
        for i in range(4):
            writer.save(
                state(i), *(str(tmp_path / name) for name in (f"{i}", "last")), remove=[str(tmp_path / f"{i - 1}")]
            )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "last"]
    assert read(str(tmp_path / "last"))["epoch"] == 3


def full_disk(monkeypatch, failures):
    """The first `failures` writes end half-way, as on a full disk."""
    save, left = torch.save, [failures]

    def failing(checkpoint, file):
        if left[0]:
            left[0] -= 1
            file.write(b"half")
            raise OSError(28, "No space left on device")
        save(checkpoint, file)

    monkeypatch.setattr(torch, "save", failing)


def test_a_failed_write_keeps_the_file_before_it_and_is_reported(tmp_path, monkeypatch, capsys):
    path = str(tmp_path / "c")
    checkpoint_atomic_write.save(state(0), path)
    full_disk(monkeypatch, 1)
    with BackgroundWriter() as writer:
        writer.save(state(1), path)
        writer.wait()
        assert read(path)["epoch"] == 0 and [p.name for p in tmp_path.iterdir()] == ["c"]
        writer.save(state(2), path)
    assert read(path)["epoch"] == 2
    warning = f"warning: can't write {path!r}: [Errno 28] No space left on device; the previous file is kept"
    assert capsys.readouterr().out.startswith(warning)


def test_what_could_not_be_written_is_tried_again_after_the_next(tmp_path, monkeypatch):
    """As model_best beside the checkpoint of an epoch."""
    save, broken = checkpoint_atomic_write.save, [True]

    def failing(checkpoint, path):
        if path.endswith("best") and broken.pop():
            broken.append(False)
            raise OSError(28, "No space left on device")
        save(checkpoint, path)

    monkeypatch.setattr(checkpoint_atomic_write, "save", failing)
    checkpoint, best, last = (str(tmp_path / name) for name in ("checkpoint", "best", "last"))
    with BackgroundWriter() as writer:
        writer.save(state(1), best, checkpoint)
        writer.save(state(2), last)
        assert writer.last_path() == last
    assert [read(path)["epoch"] for path in (checkpoint, best, last)] == [1, 1, 2]
    assert writer.jobs == []  # no copy is kept


def test_a_write_that_does_not_count_never_ends_the_run(tmp_path, monkeypatch, capsys):
    save = checkpoint_atomic_write.save

    def failing(checkpoint, path):
        if path.endswith("best"):
            raise OSError(1, "Operation not permitted")
        save(checkpoint, path)

    monkeypatch.setattr(checkpoint_atomic_write, "save", failing)
    with BackgroundWriter() as writer:
        for i in range(4):
            writer.save(state(i), str(tmp_path / "best"), str(tmp_path / "checkpoint"))
    assert read(str(tmp_path / "checkpoint"))["epoch"] == 3
    assert "Operation not permitted; it is tried again" in capsys.readouterr().out


def test_an_error_of_the_run_does_not_hide_that_of_the_disk(tmp_path, monkeypatch, capsys):
    full_disk(monkeypatch, 1)
    with pytest.raises(KeyError), BackgroundWriter() as writer:
        writer.save(state(1), str(tmp_path / "c"))
        raise KeyError
    assert "No space left on device" in capsys.readouterr().out


def test_an_older_state_never_replaces_a_newer_one(tmp_path, monkeypatch):
    full_disk(monkeypatch, 1)
    path = str(tmp_path / "last")
    with BackgroundWriter() as writer:
        writer.save(state(1), path)
        writer.save(state(2), path)
    assert read(path)["epoch"] == 2


def test_the_last_path_is_told_where_a_write_failed(tmp_path, monkeypatch):
    full_disk(monkeypatch, 2)
    with pytest.raises(KeyError), BackgroundWriter("of the resume") as writer:
        for name in "ab":
            writer.save(state(1), str(tmp_path / name))
        assert writer.last_path() == "of the resume"
        raise KeyError


def test_a_second_failure_ends_the_run(tmp_path, monkeypatch):
    full_disk(monkeypatch, 9)
    message = "No space left on device; the checkpoint before it could not be written either"
    with pytest.raises(CheckpointError, match=message), BackgroundWriter() as writer:
        for name in "abc":
            writer.save(state(1), str(tmp_path / name))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failures", [1, 2])
def test_the_last_write_is_tried_again(failures, tmp_path, monkeypatch):
    full_disk(monkeypatch, failures)
    path = str(tmp_path / "c")
    if failures == 1:
        with BackgroundWriter() as writer:
            writer.save(state(5), path)
        assert read(path)["epoch"] == 5
    else:
        with pytest.raises(CheckpointError, match="the run ends"), BackgroundWriter() as writer:
            writer.save(state(5), path)


def test_an_error_of_the_run_waits_for_the_write_and_stays_itself(tmp_path):
    with pytest.raises(KeyError, match="of the run"), BackgroundWriter() as writer:
        writer.save(state(1), str(tmp_path / "c"))
        raise KeyError("of the run")
    assert read(str(tmp_path / "c"))["epoch"] == 1


def test_copies_keep_values_types_and_memory_formats():
    weight = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    copied = on_cpu({"a": [weight, (1, "x")], "b": None})
    assert torch.equal(copied["a"][0], weight) and copied["a"][0].stride() == weight.stride()
    assert copied["a"][0].data_ptr() != weight.data_ptr() and copied["a"][1] == (1, "x") and copied["b"] is None
