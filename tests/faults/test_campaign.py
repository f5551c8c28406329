"""A short form of the fault campaign: real runs that are hurt, continued, and compared to the bit."""

import pytest

from moco.faults import campaign
from moco.faults.internal import fault_injections, faulty_run

SHORT = (
    "SIGKILL of rank 0, in a checkpoint write",
    "SIGTERM to the whole group",
    "broken JPEG, --on-bad-image skip, SIGKILL",
    "SIGKILL of a rank, torchrun --max-restarts",
)


@pytest.mark.slow
def test_every_fault_ends_equal_and_tidy(capsys):
    assert campaign.campaign(SHORT, seed=1, rounds=1) == 0, capsys.readouterr().out
    table = capsys.readouterr().out.splitlines()
    assert [line[:52].strip() for line in table[1:5]] == list(SHORT)
    assert all(line.split()[-2:] == ["yes", "yes"] for line in table[1:5])
    assert "4 faults, 0 of them" in table[5]


def test_a_difference_or_something_left_behind_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(campaign, "trial", lambda name, *_: (name, name != SHORT[1]))
    assert campaign.campaign(SHORT, seed=1, rounds=2) == 2
    out, error = capsys.readouterr()
    assert "8 faults, 2 of them" in out and "campaign:" not in out
    lines = error.splitlines()
    assert len(lines) == 8 and lines[0] == f"campaign: 0 of 8 faults (0%); now: {SHORT[0]}"
    assert lines[6].startswith("campaign: 6 of 8 faults (75%), 0:00:0") and lines[6].endswith(f"; now: {SHORT[3]}")
    place = faulty_run.Workplace(str(tmp_path), "images", {})
    (tmp_path / "tmp").mkdir()
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "checkpoint__0000.pth.tar.tmp").touch()
    (tmp_path / "tmp" / "pymp-x").touch()
    assert place.tidy() == "checkpoint__0000.pth.tar.tmp, pymp-x"
    (tmp_path / "output" / "checkpoint__0000.pth.tar").write_bytes(b"damaged")
    assert place.newest() == (0, None)


def test_faults_are_at_least_forty_and_of_every_kind():
    assert sum(times for times, *_ in fault_injections.FAULTS.values()) >= 40
    for word in ("SIGKILL", "SIGTERM", "write", "between epochs", "disk full", "damaged", "JPEG", "data worker"):
        assert any(word in name for name in fault_injections.FAULTS)


@pytest.mark.parametrize("lines, done", [([], 0), (["Epoch: [0][0/4]\tTime"], 1), (["x\n", "Epoch: [2][3/4]\t"], 12)])
def test_steps_are_read_from_the_log(lines, done):
    assert faulty_run.steps_done(type("Run", (), {"lines": lines})) == done


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            ["--only", "nosuchfault"],
            "--only 'nosuchfault' is in no fault's name; give a part of a name; the most similar",
        ),
        (["--only", "JPEGs"], "; the most similar are: broken JPEG"),
        (["--rounds", "0"], "--rounds: '0' is not an integer >= 1"),
        (["--seed", "-1"], "--seed: '-1' is not an integer >= 0"),
    ],
)
def test_what_it_refuses(flags, message, call, monkeypatch):
    monkeypatch.setattr(campaign, "campaign", lambda *_: pytest.fail("it worked"))
    code, out, error = call(campaign.main, *flags)
    assert code == 2 and not out and error.count("\n") == 1 and message in error


def test_faults_are_chosen_by_a_part_of_their_names():
    assert campaign.chosen("") == list(fault_injections.FAULTS)
    assert campaign.chosen("data WORKER") == ["SIGKILL of a data worker", "SIGTERM to a data worker"]
