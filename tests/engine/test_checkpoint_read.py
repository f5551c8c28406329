"""Checkpoints: the published format, what a resume refuses, backbones of any MoCo-style file."""

import functools
import resource

import pytest
import torch
from torchvision import models

from moco import checkpoint as ckpt
from moco.builder import MoCo
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


def test_a_damaged_file_is_refused_though_torch_would_read_it(saved, tmp_path):
    path = tmp_path / "c.pth"
    ckpt.save(saved, str(path))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    torch.load(path, weights_only=True)
    with pytest.raises(ckpt.CheckpointError, match="is damaged"):
        ckpt.read(str(path))


def test_the_disks_error_is_the_one_that_is_raised(tmp_path):
    """Here a limit of the file's size, of which torch's writer only says "unexpected pos"."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            ckpt.save({"x": torch.zeros(100_000)}, str(tmp_path / "c"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_what_is_being_written_can_be_removed(tmp_path, monkeypatch):
    def interrupted(checkpoint, file):
        assert (tmp_path / "c.tmp").exists()
        ckpt.remove_temporaries()
        assert not (tmp_path / "c.tmp").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ckpt.save({}, str(tmp_path / "c"))
    ckpt.remove_temporaries()


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
