"""main_lincls.py: what trains, what is exact, what is refused."""

import copy
import os
import shutil

import pytest
import torch
import torch.nn.functional as F
from torchvision import models, transforms
from torchvision.datasets import ImageFolder as TorchvisionFolder

import main_lincls
from moco.data.file_list import ImageFolder
from moco.data.sampler import EpochBatchSampler
from moco.data.view_datasets import RandomViews
from moco.engine import checkpoint_atomic_write
from moco.views.augmentation_recipes import View
from moco.views.normalize import normalize_images
from tests import readme
from tests.ranks import run_ranks, run_script, script_in_rank
from tests.tiny_net import ARCH, WIDTH, use_tiny_net

ROOT = os.path.dirname(readme.README)


def words(imagenet, output_dir, *more):
    small = ["-a", ARCH, "--crop-size", "32", "-b", "40", "-j", "0", "--epochs", "3", "--seed", "2"]
    return [str(imagenet), *small, "--output-dir", str(output_dir), *map(str, more)]


def test_only_fc_trains_and_the_accuracy_is_exact(imagenet, tmp_path, capsys):
    torch.manual_seed(0)
    backbone = models.get_model(ARCH)
    torch.save(backbone.state_dict(), tmp_path / "backbone.pth")
    main_lincls.main(words(imagenet, tmp_path, "--lr", "3", "--pretrained", tmp_path / "backbone.pth"))
    log = capsys.readouterr().out
    saved = torch.load(tmp_path / "checkpoint.pth.tar", weights_only=True)
    state = {name.removeprefix("module."): tensor for name, tensor in saved["state_dict"].items()}
    assert state["fc.weight"].shape == (12, WIDTH)
    for name, tensor in backbone.state_dict().items():
        assert name.startswith("fc.") or torch.equal(state[name], tensor), name
    assert len(saved["optimizer"]["state"]) == 2

    # Validation once more, image by image, with torchvision's own folder and transforms.
    model = models.get_model(ARCH, num_classes=12)
    model.load_state_dict(state)
    model.eval()
    pipeline = [transforms.Resize(37), transforms.CenterCrop(32), transforms.ToTensor()]
    pipeline.append(transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    folder = TorchvisionFolder(imagenet / "val", transforms.Compose(pipeline))
    hits1, hits5, loss = 0, 0, 0.0
    with torch.no_grad():
        for image, label in folder:
            (output,) = model(image[None])
            order = output.argsort(descending=True).tolist()
            hits1 += order[0] == label
            hits5 += label in order[:5]
            loss += F.cross_entropy(output, torch.tensor(label)).item()
    n = len(folder)
    lines = [line for line in log.splitlines() if line.startswith(" * Acc@1")]
    assert lines[-1] == f" * Acc@1 {100 * hits1 / n:.3f} Acc@5 {100 * hits5 / n:.3f} Loss {loss / n:.4f}"
    best = torch.load(tmp_path / "model_best.pth.tar", weights_only=True)
    accuracies = [float(line.split()[2]) for line in lines]
    assert len(accuracies) == 3
    assert abs(best["best_acc1"] - max(accuracies)) < 1e-3 and best["epoch"] == 1 + accuracies.index(max(accuracies))

    main_lincls.main(words(imagenet, tmp_path, "-e", "--resume", tmp_path / "checkpoint.pth.tar"))
    assert capsys.readouterr().out.splitlines()[-1] == lines[-1]


def test_the_frozen_backbone_runs_in_bf16_and_fc_in_float32(imagenet, tmp_path, monkeypatch):
    compiled, seen, build = [], {"backbone": [], "fc": []}, main_lincls.build
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: compiled.append((self, how)))

    def recording(*args):
        model, optimizer = build(*args)
        model.conv5.register_forward_hook(lambda module, x, out: seen["backbone"].append((out.dtype, out.grad_fn)))
        model.fc.register_forward_hook(lambda module, x, out: seen["fc"].append((out.dtype, module.weight.dtype)))
        seen["model"] = model
        return model, optimizer

    monkeypatch.setattr(main_lincls, "build", recording)
    more = ["--pretrained", "none", "--precision", "bf16", "--compile", "--epochs", "1"]
    main_lincls.main(words(imagenet, tmp_path, *more))
    model = seen["model"]
    assert compiled == [(model, {"dynamic": False})]
    assert len(seen["backbone"]) == 3 + 1 and set(seen["backbone"]) == {(torch.bfloat16, None)}  # no graph is kept
    assert set(seen["fc"]) == {(torch.float32, torch.float32)}
    assert model.conv1[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.load(tmp_path / "checkpoint.pth.tar", weights_only=True)["options"]["precision"] == "bf16"


def test_the_new_classifier_starts_as_it_should(imagenet):
    args = main_lincls.build_parser().parse_args(words(imagenet, ".", "-b", "4096", "--lars"))
    args.init_lr = 1.6
    model, optimizer = main_lincls.build(args, 1000)
    assert not model.fc.bias.any() and abs(model.fc.weight.std().item() - 0.01) < 1e-4
    assert abs(model.fc.weight.mean().item()) < 1e-4
    assert [p.requires_grad for p in model.parameters()].count(True) == 2
    assert type(optimizer).__name__ == "LARS" and not any(m.training for m in model.modules())
    assert torch.equal(model.fc.weight, main_lincls.build(args, 1000)[0].fc.weight)


def test_the_learning_rate_follows_the_batch_and_the_cosine(imagenet, tmp_path, monkeypatch):
    rates = []
    monkeypatch.setattr(main_lincls, "set_lr", lambda optimizer, lr: rates.append(lr))
    main_lincls.main(words(imagenet, tmp_path, "--pretrained", "none", "--lr", "0.1"))
    start = 0.1 * 40 / 256
    assert rates == pytest.approx([start, start * 0.75, start * 0.25])


def kept(words, tiny):
    """Runs main_lincls.py in this rank; rank 0 keeps the checkpoint of each epoch."""
    save, checkpoints = checkpoint_atomic_write.save, []

    def keeping(checkpoint, path):
        checkpoints.append(copy.deepcopy(checkpoint))
        save(checkpoint, path)

    checkpoint_atomic_write.save = keeping
    try:
        script_in_rank(main_lincls, words, tiny)
    finally:
        checkpoint_atomic_write.save = save
    return {c["epoch"]: c for c in checkpoints}


@pytest.mark.parametrize("world, tiny", [(1, True), (2, True), pytest.param(4, False, marks=pytest.mark.slow)])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(world, tiny, imagenet, tmp_path):
    line = words(imagenet, tmp_path, "--lars", "--lr", "50")
    whole = run_ranks(kept, world, [*line, "--pretrained", "none"], tiny)
    torch.save(whole[0][1], tmp_path / "first.pth.tar")
    resumed = run_ranks(kept, world, [*line, "--resume", str(tmp_path / "first.pth.tar")], tiny)
    assert set(whole[0]) == {1, 2, 3} and set(resumed[0]) == {2, 3} and not any(whole[1:])
    a, b = whole[0][3], resumed[0][3]
    assert all(torch.equal(tensor, b["state_dict"][name]) for name, tensor in a["state_dict"].items())
    assert a["best_acc1"] == b["best_acc1"] and a["options"] == b["options"]
    assert not torch.equal(a["state_dict"]["module.fc.weight"], whole[0][1]["state_dict"]["module.fc.weight"])


def test_a_run_resumed_within_an_epoch_is_the_uninterrupted_one_to_the_bit(imagenet, tmp_path, capsys):
    more = ["--pretrained", "none", "--save-every", "2", "--epochs", "2", "--lars", "--resume", "auto"]
    main_lincls.main(words(imagenet, tmp_path / "whole", *more))
    assert "this run starts from the beginning" in capsys.readouterr().out
    (tmp_path / "resumed").mkdir()
    shutil.copy(tmp_path / "whole" / "checkpoint_last.pth.tar", tmp_path / "resumed")
    main_lincls.main(words(imagenet, tmp_path / "resumed", *more))
    assert "1 of 2 epochs and 2 steps are done" in capsys.readouterr().out
    a, b = (torch.load(tmp_path / run / "checkpoint.pth.tar", weights_only=True) for run in ("whole", "resumed"))
    assert all(torch.equal(tensor, b["state_dict"][name]) for name, tensor in a["state_dict"].items())
    assert (a["epoch"], a["best_acc1"]) == (b["epoch"], b["best_acc1"])


def test_auto_that_finds_nothing_needs_a_backbone(imagenet, tmp_path, capsys):
    for more, message in (([], "a backbone is needed; give --pretrained FILE"), (["-e"], "--evaluate needs --resume")):
        with pytest.raises(SystemExit) as stop:
            main_lincls.main(words(imagenet, tmp_path, "--resume", "auto", *more))
        assert stop.value.code == 2 and message in capsys.readouterr().err


def what_trains(words):
    seen, build = [], main_lincls.build

    def recording(*args):
        model, optimizer = build(*args)
        model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        recording.groups = optimizer.param_groups
        return model, optimizer

    main_lincls.build = recording
    script_in_rank(main_lincls, words, tiny=True)
    return seen, [{k: v for k, v in g.items() if k != "params"} for g in recording.groups]


def test_what_the_flags_say_is_what_trains(imagenet, tmp_path):
    """2 processes, 2 epochs of 3 steps and 2 batches of validation."""
    line = words(imagenet, tmp_path, "--pretrained", "none", "--wd", "0.01", "--momentum", "0.7", "--epochs", "2")
    ranks = run_ranks(what_trains, 2, line)
    views = (View(32, scale=(0.08, 1.0), jitter_p=0, gray_p=0, blur_p=0),)
    dataset = RandomViews(ImageFolder(imagenet / "train"), views, seed=2)
    order = EpochBatchSampler(96, 40, seed=2, drop_last=False)
    for epoch in range(2):
        order.epoch = epoch
        for i, addresses in enumerate(order):
            half = len(addresses) // 2
            for rank, (seen, _) in enumerate(ranks):
                images = [dataset[address][0][0] for address in addresses[half * rank : half * (rank + 1)]]
                assert torch.equal(seen[2 + 4 * epoch + i], normalize_images(torch.stack(images)))
    for seen, (group,) in ranks:
        assert len(seen) == 2 + 2 * (3 + 1)  # the start's, then training and validation
        assert group["momentum"] == 0.7 and group["weight_decay"] == 0.01


def test_both_paths_train_alike(imagenet, tmp_path):
    for path in ("cpu", "device"):
        line = words(imagenet, tmp_path / path, "--pretrained", "none", "--lr", "3", "--augment-on", path)
        main_lincls.main(line)
    a, b = (torch.load(tmp_path / p / "checkpoint.pth.tar", weights_only=True) for p in ("cpu", "device"))
    x, y = (c["state_dict"]["module.fc.weight"] for c in (a, b))
    assert not torch.equal(x, y) and (x - y).norm() < 0.05 * x.norm()


def test_evaluation_needs_no_training_images_and_writes_nothing(imagenet, tmp_path, capsys):
    main_lincls.main(words(imagenet, tmp_path / "out", "--pretrained", "none", "--epochs", "1"))
    shutil.copytree(imagenet / "val", tmp_path / "data" / "val")
    (last,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(" * Acc@1")]
    line = [str(tmp_path / "data"), "-a", ARCH, "--crop-size", "32", "-e", "-j", "0", "--output-dir", "/nowhere"]
    main_lincls.main([*line, "--resume", str(tmp_path / "out" / "checkpoint.pth.tar"), "--pretrained", "none"])
    out = capsys.readouterr().out
    assert out.splitlines()[-1].split(" Loss")[0] == last.split(" Loss")[0]
    assert "--pretrained 'none' is not used" in out


def test_validation_is_the_same_for_any_number_of_processes(imagenet, tmp_path, monkeypatch):
    use_tiny_net(monkeypatch)
    torch.manual_seed(1)
    main_lincls.main(words(imagenet, tmp_path, "--pretrained", "none", "--epochs", "1", "--lr", "20"))
    lines = []
    for nproc in (1, 4):
        line = words(imagenet, tmp_path, "-e", "--nproc", nproc, "--resume", tmp_path / "checkpoint.pth.tar")
        lines.append(run_script("main_lincls", nproc, line, tiny=True).splitlines()[-1].split(" Loss "))
    assert lines[0][0] == lines[1][0] and lines[0][0].startswith(" * Acc@1")
    assert float(lines[0][1]) == pytest.approx(float(lines[1][1]), rel=1e-5)  # batches of other sizes round otherwise


def test_a_backbone_that_moves_stops_the_run(imagenet, tmp_path, monkeypatch):
    train_step = main_lincls.train_step

    def moving(net, *args):
        result = train_step(net, *args)
        net.conv1[1].running_mean.add_(1e-3)
        return result

    monkeypatch.setattr(main_lincls, "train_step", moving)
    with pytest.raises(RuntimeError, match=r"conv1\.1\.running_mean changed"):
        main_lincls.main(words(imagenet, tmp_path, "--pretrained", "none"))
    assert not (tmp_path / "checkpoint.pth.tar").exists()
