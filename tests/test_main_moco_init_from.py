"""--init-from, --recipe and --stem of main_moco.py, from the command line to the checkpoint and its continuation."""

import pytest
import torch
from torchvision import models

import main_moco
from tests.ranks import run_ranks, script_in_rank
from tests.tiny_net import ARCH, use_tiny_net

WORDS = ["-a", ARCH, "--crop-size", "16", "-b", "12", "-j", "0", "--moco-k", "12", "--moco-dim", "8", "--seed", "3"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of torchvision, with a classifier and with statistics that are not those of a new network."""
    torch.manual_seed(7)
    network, path = models.get_model(ARCH), str(tmp_path_factory.mktemp("weights") / "w.pth")
    for name, buffer in network.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 2)
    torch.save(network.state_dict(), path)
    return path


def at_the_start(words):
    """Runs main_moco.py with --dry-run in this rank; returns the state that would train, and what was printed."""
    seen, build = [], main_moco.build
    main_moco.build = lambda *args: seen.append(build(*args)) or seen[-1]
    try:
        out = script_in_rank(main_moco, [*words, "--dry-run"])
    finally:
        main_moco.build = build
    return {name: tensor.clone() for name, tensor in seen[-1][0].state_dict().items()}, out


def test_both_encoders_of_all_ranks_start_from_the_file(few_images, weights, tmp_path):
    """Only the backbone differs from a run without the flag, which the second rank lacks, as another node might."""
    words = [str(few_images), *WORDS, "--output-dir", str(tmp_path / "out")]
    ranks = run_ranks(on_rank_0_only, 2, words, ["--init-from", weights])
    ((fresh, _),) = run_ranks(at_the_start, 1, words)
    file = torch.load(weights, weights_only=True)
    for state, _ in ranks:
        for name, tensor in state.items():
            encoder, _, own = name.partition(".")
            from_file = encoder in ("encoder_q", "encoder_k") and not own.startswith("fc.")
            assert torch.equal(tensor, file[own] if from_file else fresh[name]), name
    assert {name.partition(".")[0] for name in fresh} == {"encoder_q", "encoder_k", "queue", "queue_ptr"}
    backbone = sum(not name.startswith("fc.") for name in file)
    assert f"init-from: {backbone} tensors of {weights!r}, the whole backbone of both encoders\n" in ranks[0][1]
    assert not torch.equal(fresh["encoder_q.conv1.0.weight"], file["conv1.0.weight"])


def on_rank_0_only(words, more):
    return at_the_start([*words, *more] if torch.distributed.get_rank() == 0 else words)


def test_a_resume_needs_no_file_and_says_that_it_takes_none(few_images, weights, tmp_path, call):
    words = [few_images, *WORDS, "--output-dir", tmp_path, "--epochs", "2"]
    code, out, error = call(main_moco.main, *words, "--init-from", weights)
    assert (code, error) == (0, "") and "init-from: " in out
    start = ["--resume", tmp_path / "checkpoint__0000.pth.tar"]
    for more in ([], ["--init-from", "nowhere.pth"]):
        code, out, error = call(main_moco.main, *words, *start, *more, "--dry-run")
        note = "note: --init-from 'nowhere.pth' is not used, since the resumed checkpoint has the backbone\n"
        assert (code, error) == (0, "") and (note in out) == bool(more)
    code, out, error = call(main_moco.main, *words, "--init-from", "nowhere.pth")
    assert (code, out, error.count("\n")) == (2, "", 1) and "no checkpoint 'nowhere.pth'" in error


def test_a_file_that_is_moved_aside_is_followed(few_images, tmp_path, call):
    """The backbone of the run whose checkpoints lie in --output-dir."""
    words = [few_images, *WORDS, "--output-dir", tmp_path, "--epochs", "1"]
    assert call(main_moco.main, *words)[0] == 0
    code, out, error = call(main_moco.main, *words, "--init-from", tmp_path / "checkpoint__0000.pth.tar")
    assert (code, error) == (0, "") and f"tensors of '{tmp_path}/earlier-" in out


RECIPE = ["--recipe", "blur_p=0", "--recipe", "scale=0.2,1"]


@pytest.mark.parametrize(
    "then, now, message",
    [
        (RECIPE, ["--recipe", "scale=0.20,1.0", "--recipe", "blur_p=0.0"], None),
        (RECIPE, RECIPE[:2], "--recipe is blur_p=0, but the checkpoint "),
        (RECIPE, [], "--recipe is none, but the checkpoint "),
        ([], RECIPE, "was trained with none; "),
        (None, [], None),
        (None, RECIPE, "--recipe is blur_p=0 scale=0.2,1, but the checkpoint "),
    ],
)
def test_the_recipe_is_stored_and_compared(then, now, message, few_images, tmp_path, call, monkeypatch):
    """`then` is None for a file from before the flags, whose options know neither the recipe nor the stem."""
    use_tiny_net(monkeypatch)
    words = [few_images, *WORDS, "--output-dir", tmp_path, "--epochs", "2"]
    assert call(main_moco.main, *words, *(then or []))[0] == 0
    path = tmp_path / "checkpoint__0000.pth.tar"
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["options"]["recipe"] == [word for word in then or [] if "=" in word]
    if then is None:
        del checkpoint["options"]["recipe"], checkpoint["options"]["stem"]
        torch.save(checkpoint, path)
    code, out, error = call(main_moco.main, *words, "--resume", path, *now, "--dry-run")
    assert (code == 0 and not error) if message is None else (code == 2 and message in error)
    assert ("[16px crop 0.2-1 jitter gray flip]" in out) == (message is None and then is not None)
