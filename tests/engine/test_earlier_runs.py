"""Checkpoints of other runs are moved out of a run's way; nothing is overwritten, deleted or continued by mistake."""

import io
import json
import os
import re
import sys

import pytest
import torch

import main_lincls
import main_moco
from moco.engine.checkpoint_names import CheckpointNames
from moco.engine.earlier_runs import files_of_others, move_files_of_others, new_id
from tests.tiny_net import use_tiny_net

A, B = "aaaaaaaa", "bbbbbbbb"


def write(folder, name, run=None, epoch=0, step=0):
    checkpoint = {"epoch": epoch, "step": step, "state_dict": {}} | ({"run": run} if run else {})
    torch.save(checkpoint, folder / name)
    return str(folder / name)


def names_in(folder):
    return CheckpointNames(str(folder), "checkpoint_", numbered=True)


def test_ids_are_random_and_can_be_part_of_a_name():
    ids = {new_id() for _ in range(50)}
    assert len(ids) == 50 and all(re.fullmatch("[0-9a-f]{8}", x) for x in ids)


def test_which_files_are_in_the_way_of_which_run(tmp_path):
    a0, a1 = (write(tmp_path, f"checkpoint__000{e}.pth.tar", A, e + 1) for e in (0, 1))
    last = write(tmp_path, "checkpoint__last.pth.tar", A, 1, 3)
    old = write(tmp_path, "checkpoint__0009.pth.tar", None, 10)
    odd = write(tmp_path, "checkpoint__0008.pth.tar", "../../etc", 9)  # an id that is none
    (tmp_path / "checkpoint__0007.pth.tar").write_bytes(b"damaged")
    write(tmp_path, "checkpoint_other_0003.pth.tar", B, 4)  # of another --tag
    write(tmp_path, "checkpoint.pth.tar", B, 4)  # of linear classification
    names = names_in(tmp_path)
    damaged = str(tmp_path / "checkpoint__0007.pth.tar")
    others = {"unknown": [odd, old], "": [damaged]}
    assert files_of_others(names, B, None) == {A: [a0, last, a1], **others}
    assert files_of_others(names, A, None) == files_of_others(names, B, None)  # a fresh run owns nothing
    assert files_of_others(names, A, (2, 0)) == others
    assert files_of_others(names, A, (1, 0)) == {A: [last, a1], **others}
    assert files_of_others(names, "unknown", (10, 0)) == {A: [a0, last, a1], "": [damaged]}


def test_a_move_overwrites_nothing_and_says_how_to_go_back(tmp_path, capsys):
    names = names_in(tmp_path)
    (tmp_path / "bad_images.txt").write_text("1")
    first = write(tmp_path, "checkpoint__0000.pth.tar", A, 1)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert move_files_of_others(names, B, None, dry_run=True) == {}
    assert "would be moved to" in (line := capsys.readouterr().out) and f"give --resume {first}\n" in line
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    target = str(tmp_path / f"earlier-{A}" / "checkpoint__0000.pth.tar")
    assert move_files_of_others(names, B, None)[first] == target
    assert capsys.readouterr().out == (
        f"note: 1 checkpoint of the earlier run {A} was moved to {str(tmp_path / f'earlier-{A}')!r}; to continue from "
        f"there instead, give --resume {target}\n"
    )
    assert (tmp_path / f"earlier-{A}" / "bad_images.txt").read_text() == "1"
    write(tmp_path, "checkpoint__0000.pth.tar", A, 2)  # the earlier run was continued meanwhile, and wrote its name
    move_files_of_others(names, B, None)
    assert torch.load(target, weights_only=True)["epoch"] == 1
    second = tmp_path / f"earlier-{A}-2" / "checkpoint__0000.pth.tar"
    assert torch.load(second, weights_only=True)["epoch"] == 2
    capsys.readouterr()
    assert move_files_of_others(names, B, None) == {} and capsys.readouterr().out == ""


def test_what_is_damaged_is_moved_but_not_recommended(tmp_path, capsys):
    first, second = (write(tmp_path, f"checkpoint__000{e}.pth.tar", A, e + 1) for e in (0, 1))
    torch.save(torch.load(second, weights_only=True) | {"state_dict": {"x": torch.zeros(999)}}, second)
    data = bytearray((tmp_path / "checkpoint__0001.pth.tar").read_bytes())
    data[len(data) // 2] ^= 1  # of the tensor; it can still be read, but differs from its checksum
    (tmp_path / "checkpoint__0001.pth.tar").write_bytes(data)
    (tmp_path / "checkpoint__0002.pth.tar").write_bytes(b"x")
    moved = move_files_of_others(names_in(tmp_path), A, (0, 0))
    out = capsys.readouterr().out
    assert f"note: 2 newer checkpoints of this run were moved to {str(tmp_path / f'earlier-{A}')!r}; to" in out
    assert f"give --resume {moved[first]}\n" in out and moved[second] not in out
    assert f"note: 1 unreadable checkpoint was moved to {str(tmp_path / 'earlier-unknown')!r}\n" in out


def test_a_link_still_works_after_the_move(tmp_path):
    (tmp_path / "store").mkdir()
    write(tmp_path / "store", "x.pth.tar", A, 1)
    (tmp_path / "checkpoint__0000.pth.tar").symlink_to("store/x.pth.tar")
    (target,) = move_files_of_others(names_in(tmp_path), B, None).values()
    assert (
        torch.load(target, weights_only=True)["run"] == A and not (tmp_path / "checkpoint__0000.pth.tar").is_symlink()
    )


def test_a_list_of_bad_images_alone_is_moved_too(tmp_path, capsys):
    (tmp_path / "bad_images.txt").touch()
    lists = [str(tmp_path / "bad_images_t.txt"), str(tmp_path / "bad_images-lincls.txt")]
    assert CheckpointNames(str(tmp_path), "checkpoint_t", numbered=True).bad_images() == lists[0]
    assert CheckpointNames(str(tmp_path), "checkpoint", numbered=False).bad_images() == lists[1]
    move_files_of_others(names_in(tmp_path), B, (1, 0))
    assert (tmp_path / "bad_images.txt").exists()
    move_files_of_others(names_in(tmp_path), B, None)
    assert (tmp_path / "earlier-unknown" / "bad_images.txt").exists()
    assert capsys.readouterr().out.startswith("note: the list of bad images of an earlier run was moved to ")


def test_files_that_can_not_be_moved_end_the_start(tmp_path, monkeypatch):
    path = write(tmp_path, "checkpoint__0000.pth.tar", A, 1)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(ValueError, match=r"can't move .*Permission denied; give another --output-dir"):
        move_files_of_others(names_in(tmp_path), B, None)
    assert os.path.exists(path)


WORDS = ["-a", "resnet18", "--crop-size", "32", "-b", "12", "-j", "0", "-p", "1"]


@pytest.fixture
def train(few_images, tmp_path, capsys, monkeypatch):
    """Runs a script with a tiny network in tmp_path; returns what it printed."""

    def train(script, *more):
        use_tiny_net(monkeypatch)
        own = ["--moco-k", "12"] if script is main_moco else ["--pretrained", "none"]
        script.main([str(few_images), "--output-dir", str(tmp_path), *WORDS, *own, *map(str, more)])
        return capsys.readouterr().out

    return train


def run_id(log):
    return re.search(r"^run: ([0-9a-f]{8})$", log, re.M)[1]


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def test_runs_in_one_folder_stay_apart(train, tmp_path):
    """Fresh run beside fresh run, with --keep 1; then the first is continued from its new place."""
    first = run_id(train(main_moco, "--epochs", "2", "--seed", "1"))
    files = {name: (tmp_path / name).read_bytes() for name in ("checkpoint__0000.pth.tar", "checkpoint__0001.pth.tar")}
    log = train(main_moco, "--epochs", "1", "--keep", "1")
    second = run_id(log)
    assert f"note: 2 checkpoints of the earlier run {first} were moved to" in log and first != second
    assert all((tmp_path / f"earlier-{first}" / name).read_bytes() == data for name, data in files.items())
    assert torch.load(tmp_path / "checkpoint__0000.pth.tar", weights_only=True)["run"] == second

    log = train(main_moco, "--epochs", "1", "--resume", "auto")  # the second run, not the first
    assert run_id(log) == second and "1 of 1 epochs are done" in log and "moved" not in log

    file = tmp_path / f"earlier-{first}" / "checkpoint__0000.pth.tar"
    log = train(main_moco, "--epochs", "2", "--resume", file)
    assert run_id(log) == first and f"1 checkpoint of the earlier run {second} was moved to" in log
    assert (tmp_path / f"earlier-{second}" / "checkpoint__0000.pth.tar").exists()
    again, before = (weights(folder / "checkpoint__0001.pth.tar") for folder in (tmp_path, file.parent))
    assert all(torch.equal(tensor, again[name]) for name, tensor in before.items())

    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["run"] for line in lines if line["kind"] in ("start", "resume")] == [first, second, second, first]
    assert all(line["run"] in (first, second) and line["script"] for line in lines)


def test_a_resume_from_an_older_file_keeps_the_newer_ones(train, tmp_path):
    run = run_id(train(main_moco, "--epochs", "3", "--seed", "1"))
    newer = weights(tmp_path / "checkpoint__0002.pth.tar")
    middle = tmp_path / "checkpoint__0000.pth.tar"
    log = train(main_moco, "--epochs", "3", "--resume", middle, "--lr", "1", "--force")
    assert "note: 2 newer checkpoints of this run were moved to" in log
    kept, other = (weights(folder / "checkpoint__0002.pth.tar") for folder in (tmp_path / f"earlier-{run}", tmp_path))
    assert all(torch.equal(tensor, kept[name]) for name, tensor in newer.items())
    assert not torch.equal(newer["module.queue"], other["module.queue"])
    # --start-epoch 0 goes behind the file that it resumes, which moves too and is still found
    log = train(main_moco, "--epochs", "3", "--resume", middle, "--start-epoch", "0", "--force")
    assert "note: 3 newer checkpoints of this run were moved to" in log and f"earlier-{run}-2" in log
    # A file elsewhere is continued as the note says: both branches have the same id, and neither loses a file.
    older = {path: path.read_bytes() for path in (tmp_path / f"earlier-{run}").iterdir()}
    current = (tmp_path / "checkpoint__0002.pth.tar").read_bytes()
    back = tmp_path / f"earlier-{run}" / "checkpoint__0002.pth.tar"
    log = train(main_moco, "--epochs", "4", "--resume", back, "--keep", "1", "--force")
    assert "note: 3 other checkpoints of this run were moved to" in log
    assert (tmp_path / f"earlier-{run}-3" / "checkpoint__0002.pth.tar").read_bytes() == current
    assert all(path.read_bytes() == data for path, data in older.items())


def test_scripts_and_tags_do_not_move_each_others_files(train, tmp_path, monkeypatch):
    monkeypatch.setattr(main_lincls, "validate", lambda *_: 50.0)  # 0 would write no best checkpoint
    train(main_moco, "--epochs", "1")
    train(main_moco, "--epochs", "1", "--tag", "t")
    first = run_id(train(main_lincls, "--epochs", "1"))
    log = train(main_lincls, "--epochs", "1")
    moved = tmp_path / f"earlier-{first}"
    assert sorted(path.name for path in moved.iterdir()) == ["checkpoint.pth.tar", "model_best.pth.tar"]
    assert f"note: 2 checkpoints of the earlier run {first} were moved" in log
    assert {path.name for path in tmp_path.glob("*.tar")} == {
        *("checkpoint__0000.pth.tar", "checkpoint_t_0000.pth.tar"),
        *("checkpoint.pth.tar", "model_best.pth.tar"),
    }


def test_auto_names_what_an_earlier_run_has_left(train, tmp_path):
    train(main_moco, "--epochs", "1")
    folder = tmp_path / "earlier-12345678"
    folder.mkdir()
    (tmp_path / "checkpoint__0000.pth.tar").rename(folder / "checkpoint__0000.pth.tar")
    log = train(main_moco, "--epochs", "1", "--resume", "auto")
    assert (
        f"starts from the beginning, though there is {str(folder / 'checkpoint__0000.pth.tar')!r} of an earlier" in log
    )


def test_the_pretrained_file_may_be_one_that_is_moved(train, tmp_path):
    train(main_moco, "--epochs", "1")
    (tmp_path / "checkpoint__0000.pth.tar").rename(tmp_path / "checkpoint.pth.tar")
    log = train(main_lincls, "--epochs", "1", "--pretrained", tmp_path / "checkpoint.pth.tar")
    assert re.search(r"pretrained: \d+ tensors of '.*/earlier-[0-9a-f]{8}/checkpoint.pth.tar'", log)


def test_files_of_several_runs_are_not_continued_by_chance(train, tmp_path, capsys):
    train(main_moco, "--epochs", "1")
    other = torch.load(tmp_path / "checkpoint__0000.pth.tar", weights_only=True) | {"run": B, "epoch": 5}
    torch.save(other, tmp_path / "checkpoint__0004.pth.tar")
    with pytest.raises(SystemExit) as stop:
        train(main_moco, "--resume", "auto")
    assert stop.value.code == 2
    assert f"0004.pth.tar' of run {B}); give --resume with one of the files" in capsys.readouterr().err


def test_a_dry_run_shows_the_plan_and_changes_nothing(train, tmp_path):
    log = train(main_moco, "--epochs", "3", "--enable-multicrop", "--dry-run", "--output-dir", tmp_path / "new" / "x")
    assert not (tmp_path / "new").exists() and "steps: 2 per epoch, 6 in all" in log
    assert "memory: model" in log and "disk: the checkpoints take at most" in log
    where = repr(str(tmp_path / "new" / "x"))
    assert log.endswith(f"dry run: the training would start now; nothing in {where} was changed\n")
    first = run_id(train(main_moco, "--epochs", "2"))
    (tmp_path / "checkpoint__0001.pth.tar.tmp").touch()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    log = train(main_moco, "--epochs", "2", "--dry-run")
    assert f"2 checkpoints of the earlier run {first} would be moved" in log
    log = train(main_moco, "--epochs", "2", "--dry-run", "--resume", "auto")
    assert run_id(log) == first and "2 of 2 epochs are done" in log and "0 left" in log
    log = train(main_lincls, "--epochs", "2", "--dry-run")
    assert "steps: 2 per epoch, 4 in all" in log and log.endswith("was changed\n")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_start_whose_reader_has_gone_goes_on(train, tmp_path, monkeypatch):
    """As with `python main_moco.py ... | head -1`."""

    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

        def fileno(self):
            return os.open(os.devnull, os.O_WRONLY)

    monkeypatch.setattr(sys, "stdout", Closed())
    use_tiny_net(monkeypatch)
    train(main_moco, "--epochs", "1", "--dry-run")
