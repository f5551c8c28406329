"""Checkpoints: the published format, what a resume refuses, backbones of any MoCo-style file."""

import functools

import pytest
import torch
from torchvision import models

from moco import checkpoint as ckpt
from moco.builder import MoCo
from moco.optim import sgd
from tests.conftest import run_ranks

OPTIONS = {"arch": "resnet18", "lr": 0.03, "seed": 3, "total_batch": 256}


def moco(arch="resnet18", dim=8, K=16, lr=0.03, momentum=0.9):
    model = MoCo(functools.partial(models.get_model, arch), dim, K)
    return model, torch.optim.SGD(model.parameters(), lr, momentum, weight_decay=1e-4)


def stepped(model, optimizer):
    im = [torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))]
    logits, _ = model(im, [], im, step=0)
    logits[0].square().mean().backward()
    optimizer.step()
    return ckpt.of_run(5, model, optimizer, OPTIONS)


@pytest.fixture(scope="module")
def saved():
    torch.set_num_threads(1)
    return stepped(*moco())


def test_a_checkpoint_has_the_published_format(saved, tmp_path):
    ckpt.save(saved, tmp_path / "c.pth.tar")
    assert [f.name for f in tmp_path.iterdir()] == ["c.pth.tar"]
    read = ckpt.read(str(tmp_path / "c.pth.tar"))
    assert read["epoch"] == 5 and read["arch"] == "resnet18"
    names = set(read["state_dict"])
    assert all(name.startswith("module.") for name in names)
    assert {"module.queue", "module.queue_ptr", "module.encoder_q.conv1.weight", "module.encoder_k.fc.5.bias"} <= names
    model, _ = moco()
    model.load_state_dict({n.removeprefix("module."): t for n, t in read["state_dict"].items()}, strict=True)
    # The optimizer counts all parameters in order; only the source's have a state.
    (group,) = read["optimizer"]["param_groups"]
    parameters = list(model.parameters())
    assert group["params"] == list(range(len(parameters)))
    assert set(read["optimizer"]["state"]) == {i for i, p in enumerate(parameters) if p.requires_grad}


def test_restore_takes_the_state_and_leaves_the_hyper_parameters(saved):
    model, optimizer = moco(lr=0.5, momentum=0.8)
    published = {**saved, "optimizer": {**saved["optimizer"]}}
    published["optimizer"]["param_groups"] = [
        {k: v for k, v in g.items() if k in ("lr", "momentum", "dampening", "weight_decay", "nesterov", "params")}
        for g in saved["optimizer"]["param_groups"]
    ]  # an older torch's
    ckpt.restore(published, model, optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.5 and optimizer.param_groups[0]["momentum"] == 0.8
    for name, tensor in ckpt.state_dict_of(model).items():
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
    ckpt.restore(saved, model, optimizer)
    i, weight = next((i, p) for i, p in enumerate(model.parameters()) if p.shape[2:] == (3, 3))
    momentum = optimizer.state[weight]["momentum_buffer"]
    assert momentum.stride() == weight.stride() != momentum.contiguous().stride()
    assert torch.equal(momentum, saved["optimizer"]["state"][i]["momentum_buffer"])
    stepped(model, optimizer)


def check(saved, options=OPTIONS, force=False, **kwargs):
    ckpt.check_resumable(saved, "c.pth", *moco(**kwargs), options, force)


def without(saved, key):
    return {k: v for k, v in saved.items() if k != key}


def test_a_resume_that_fits_passes(saved):
    check(saved)
    check(without(saved, "options"), {**OPTIONS, "lr": 9.0})  # published files lack them
    check(saved, {**OPTIONS, "lr": 9.0}, force=True)
    check(saved, {**OPTIONS, "a_flag_of_a_later_version": 1})


def test_a_resume_that_does_not_fit_is_refused(saved):
    refused = pytest.raises(ckpt.CheckpointError, match=r"--lr is 9.0, but .*'c.pth' was trained with 0.03.*--force")
    with refused:
        check(saved, {**OPTIONS, "lr": 9.0})
    with pytest.raises(ckpt.CheckpointError, match=r"--batch-size times the nodes is 2, .* with 256"):
        check(saved, {**OPTIONS, "total_batch": 2})
    with pytest.raises(ckpt.CheckpointError, match="--arch resnet18, not resnet34"):
        check(saved, {**OPTIONS, "arch": "resnet34"}, arch="resnet34", force=True)
    with pytest.raises(ckpt.CheckpointError, match=r"queue of shape \(8, 16\), this run of \(8, 32\)"):
        check(saved, K=32, force=True)
    for key in ("epoch", "arch", "state_dict", "optimizer"):
        with pytest.raises(ckpt.CheckpointError, match=f"no '{key}'"):
            check(without(saved, key))
    fewer = {**saved, "state_dict": without(saved["state_dict"], "module.queue")}
    with pytest.raises(ckpt.CheckpointError, match=r"lacks the tensor module\.queue"):
        check(fewer)
    for broken in ({}, {"state": {}, "param_groups": [{"params": [0]}]}):
        with pytest.raises(ckpt.CheckpointError, match="optimizer state"):
            check({**saved, "optimizer": broken})


def test_files_that_can_not_be_read(tmp_path):
    with pytest.raises(ckpt.CheckpointError, match="no checkpoint"):
        ckpt.read(str(tmp_path / "none.pth"))
    (tmp_path / "garbage.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(ckpt.CheckpointError, match="can't read the checkpoint"):
        ckpt.read(str(tmp_path / "garbage.pth"))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ckpt.CheckpointError, match="list, not a dict"):
        ckpt.read(str(tmp_path / "list.pth"))
    torch.save({"state_dict": functools.partial(print)}, tmp_path / "code.pth")
    with pytest.raises(ckpt.CheckpointError, match="can't read"):
        ckpt.read(str(tmp_path / "code.pth"))


def read_here(path, other):
    rank = torch.distributed.get_rank()
    return ckpt.read_on_all_ranks(path if rank == 0 else other)


def test_only_rank_0_touches_the_file(tmp_path):
    torch.save({"epoch": 2, "x": torch.arange(5)}, tmp_path / "c.pth")
    for read in run_ranks(read_here, 2, str(tmp_path / "c.pth"), str(tmp_path / "nowhere.pth")):
        assert read["epoch"] == 2 and torch.equal(read["x"], torch.arange(5))


def backbone_files(saved):
    """Kind of file to its content, all of the same source encoder."""
    state = saved["state_dict"]
    source = {n.removeprefix("module.encoder_q."): t for n, t in state.items() if n.startswith("module.encoder_q.")}
    bare = {n: t for n, t in source.items() if not n.startswith("fc.")}
    return {
        "ours": saved,
        "without module.": {"state_dict": {n.removeprefix("module."): t for n, t in state.items()}},
        "a state dict alone": state,
        "a bare backbone": bare,
        "a classifier": {"state_dict": {**bare, "fc.weight": torch.zeros(9, 512), "fc.bias": torch.zeros(9)}},
        "module. and bare": {"state_dict": {f"module.{n}": t for n, t in bare.items()}},
        "old, without counters": {n: t for n, t in bare.items() if not n.endswith("num_batches_tracked")},
    }


def test_a_backbone_is_found_in_any_moco_style_file(saved):
    kinds = backbone_files(saved)
    for kind, content in kinds.items():
        model = models.resnet18(num_classes=7)
        found = ckpt.backbone_for(model, content, "c.pth", "resnet18")
        assert len(found) == (120 if kind != "old, without counters" else 100), kind
        model.load_state_dict(found, strict=False)
        for name, tensor in model.state_dict().items():
            if not name.startswith("fc.") and not name.endswith("num_batches_tracked"):
                assert torch.equal(tensor, saved["state_dict"][f"module.encoder_q.{name}"]), (kind, name)


def test_a_backbone_that_does_not_fit_is_refused(saved):
    bare = backbone_files(saved)["a bare backbone"]

    def refused(content, match, arch="resnet18"):
        model = models.get_model(arch)
        before = {n: t.clone() for n, t in model.state_dict().items()}
        with pytest.raises(ckpt.CheckpointError, match=match):
            ckpt.backbone_for(model, content, "c.pth", arch)
        assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())

    refused({"state_dict": {}}, "holds no tensors")
    refused({"epoch": 3}, "holds no tensors")
    refused({"something.weight": torch.zeros(1)}, "matches no tensor")
    refused({n: t for n, t in bare.items() if n != "layer3.0.conv1.weight"}, r"lacks the backbone's layer3\.0\.conv1")
    # Every tensor of ResNet-18 fits into a ResNet-34, and the other way round some are left over.
    refused(bare, r"lacks the backbone's layer1\.2.*--arch resnet34", arch="resnet34")
    refused(models.resnet34().state_dict(), r"has layer1\.2\..*, which the backbone lacks")
    refused(models.resnet50().state_dict(), "resnet18")
    refused({**bare, "conv1.weight": torch.zeros(64, 1, 7, 7)}, r"conv1\.weight of shape \(64, 1, 7, 7\)")
