"""Which checkpoint a run can continue from, and what is loaded from it."""

import re

import pytest
import torch

from moco.engine.checkpoint_file_read import newest_intact, read
from moco.engine.checkpoint_format import CheckpointError, checkpoint_of, state_dict_of
from moco.engine.checkpoint_resume import check_resumable, restore
from moco.optim import sgd
from tests.engine.test_checkpoint_format import OPTIONS, moco, stepped
from tests.tiny_net import ARCH


@pytest.fixture(scope="module")
def saved():
    torch.set_num_threads(1)
    return stepped(*moco())


def test_restore_takes_the_state_and_leaves_the_hyper_parameters(saved):
    model, optimizer = moco(lr=0.5, momentum=0.8)
    published = {**saved, "optimizer": {**saved["optimizer"]}}
    published["optimizer"]["param_groups"] = [
        {k: v for k, v in g.items() if k in ("lr", "momentum", "dampening", "weight_decay", "nesterov", "params")}
        for g in saved["optimizer"]["param_groups"]
    ]  # an older torch's
    restore(published, model, optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.5 and optimizer.param_groups[0]["momentum"] == 0.8
    for name, tensor in state_dict_of(model).items():
        assert torch.equal(tensor, saved["state_dict"][name])
    state = optimizer.state_dict()["state"]
    for i, entry in saved["optimizer"]["state"].items():
        assert torch.equal(state[i]["momentum_buffer"], entry["momentum_buffer"])
    stepped(model, optimizer)


def test_the_momentum_takes_the_memory_format_of_its_parameter(saved):
    """A published file is NCHW; the fused update wants one format."""
    model, _ = moco()
    model.to(memory_format=torch.channels_last)
    optimizer = sgd(model.parameters(), 0.03, 0.9)
    restore(saved, model, optimizer)
    i, weight = next((i, p) for i, p in enumerate(model.parameters()) if p.shape[2:] == (3, 3))
    momentum = optimizer.state[weight]["momentum_buffer"]
    assert momentum.stride() == weight.stride() != momentum.contiguous().stride()
    assert torch.equal(momentum, saved["optimizer"]["state"][i]["momentum_buffer"])
    stepped(model, optimizer)


def check(saved, options=OPTIONS, force=False, **kwargs):
    check_resumable(saved, "c.pth", *moco(**kwargs), options, force)


def without(saved, key):
    return {k: v for k, v in saved.items() if k != key}


def test_a_resume_that_fits_passes(saved):
    check(saved)
    check(without(saved, "options"), {**OPTIONS, "lr": 9.0})  # published files lack them
    check(saved, {**OPTIONS, "lr": 9.0}, force=True)
    check(saved, {**OPTIONS, "a_flag_of_a_later_version": 1})


def test_a_resume_that_does_not_fit_is_refused(saved):
    refused = pytest.raises(CheckpointError, match=r"--lr is 9.0, but .*'c.pth' was trained with 0.03.*--force")
    with refused:
        check(saved, {**OPTIONS, "lr": 9.0})
    with pytest.raises(CheckpointError, match=r"--batch-size times the nodes is 2, .* with 256"):
        check(saved, {**OPTIONS, "total_batch": 2})
    with pytest.raises(CheckpointError, match=f"--arch {ARCH}, not shufflenet_v2_x0_5"):
        check(saved, {**OPTIONS, "arch": "shufflenet_v2_x0_5"}, arch="shufflenet_v2_x0_5", force=True)
    with pytest.raises(
        CheckpointError, match=r"queue has the shape \(8, 16\) in the checkpoint .*, but \(8, 32\) in this run"
    ):
        check(saved, K=32, force=True)
    for key in ("epoch", "arch", "state_dict", "optimizer"):
        with pytest.raises(CheckpointError, match=f"no '{key}'"):
            check(without(saved, key))
    fewer = {**saved, "state_dict": without(saved["state_dict"], "module.queue")}
    with pytest.raises(CheckpointError, match=r"lacks the tensor module\.queue"):
        check(fewer)
    with pytest.raises(CheckpointError, match=r"is one of linear classification; only main_lincls\.py can resume it"):
        check({**saved, "best_acc1": 1.0})
    with pytest.raises(CheckpointError, match=r"is one of pretraining; main_moco\.py resumes it"):
        check_resumable(saved, "c.pth", torch.nn.Linear(2, 2), None, OPTIONS)
    for broken in ({}, {"state": {}, "param_groups": [{"params": [0]}]}):
        with pytest.raises(CheckpointError, match="optimizer state"):
            check({**saved, "optimizer": broken})


def test_a_resume_with_another_stem_is_refused(zero_weights):
    options = {**OPTIONS, "arch": "resnet18"}
    saved = checkpoint_of(5, *moco("resnet18"), options)  # as from before the flag
    with pytest.raises(CheckpointError, match=r"'c\.pth' is of --stem imagenet, not small; give --stem imagenet$"):
        check(saved, {**options, "stem": "small"}, arch="resnet18", stem="small", force=True)


@pytest.mark.parametrize(
    "key, junk",
    [
        ("epoch", "x"),
        ("epoch", 2**70),
        ("epoch", True),
        ("step", -1),
        ("step", torch.zeros(2)),
        ("processes", 0),
        ("state_dict", {1: torch.zeros(2)}),
        ("options", [1]),
        ("optimizer", {"state": {}, "param_groups": [{"params": torch.tensor(1)}]}),
        ("optimizer", {"state": {0: 3}, "param_groups": []}),
    ],
)
def test_junk_in_the_place_of_values_is_refused(saved, tmp_path, key, junk, capsys):
    """Found by moco.faults.fuzz."""
    path = str(tmp_path / "c.pth")
    torch.save({**saved, key: junk}, path)
    with pytest.raises(CheckpointError, match=r"c\.pth"):
        check(read(path))
    if key in ("epoch", "step", "processes", "state_dict"):
        assert newest_intact([path]) is None and "it is skipped" in capsys.readouterr().out


def test_the_newest_may_be_of_an_old_format(saved, tmp_path):
    old, new = str(tmp_path / "old"), str(tmp_path / "new")
    torch.save({**saved, "epoch": 9}, old, _use_new_zipfile_serialization=False)
    torch.save(saved, new)
    assert newest_intact([new, old]) == old


def test_junk_in_the_place_of_a_tensor_or_an_option_is_refused(saved, tmp_path):
    name = next(iter(saved["state_dict"]))
    with pytest.raises(CheckpointError, match=f"{re.escape(name)} has the shape"):
        check({**saved, "state_dict": {**saved["state_dict"], name: "x"}})
    option = next(iter(saved["options"]))
    with pytest.raises(CheckpointError, match="was trained with"):
        check({**saved, "options": {**saved["options"], option: torch.zeros(2)}})
