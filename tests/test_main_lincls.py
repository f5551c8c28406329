"""main_lincls.py: what trains, what is exact, what is refused."""

import copy
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torchvision import models, transforms
from torchvision.datasets import ImageFolder as TorchvisionFolder

import main_lincls
from tests import readme

ROOT = os.path.dirname(readme.README)


def words(imagenet, output_dir, *more):
    small = ["-a", "resnet18", "--crop-size", "32", "-b", "40", "-j", "0", "--epochs", "3", "--seed", "2"]
    return [str(imagenet), *small, "--output-dir", str(output_dir), *map(str, more)]


def test_only_fc_trains_and_the_accuracy_is_exact(imagenet, tmp_path, capsys):
    torch.manual_seed(0)
    backbone = models.resnet18()
    torch.save(backbone.state_dict(), tmp_path / "backbone.pth")
    main_lincls.main(words(imagenet, tmp_path, "--lr", "3", "--pretrained", tmp_path / "backbone.pth"))
    log = capsys.readouterr().out
    saved = torch.load(tmp_path / "checkpoint.pth.tar", weights_only=True)
    state = {name.removeprefix("module."): tensor for name, tensor in saved["state_dict"].items()}
    assert state["fc.weight"].shape == (12, 512)
    for name, tensor in backbone.state_dict().items():
        assert name.startswith("fc.") or torch.equal(state[name], tensor), name
    assert len(saved["optimizer"]["state"]) == 2

    # Validation once more, image by image, with torchvision's own folder and transforms.
    model = models.resnet18(num_classes=12)
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
    assert f" * Acc@1 {100 * hits1 / n:.3f} Acc@5 {100 * hits5 / n:.3f} Loss {loss / n:.4f}" in log.splitlines()[-1]
    best = torch.load(tmp_path / "model_best.pth.tar", weights_only=True)
    accuracies = [float(line.split()[2]) for line in log.splitlines() if line.startswith(" * Acc@1")]
    assert len(accuracies) == 3
    assert abs(best["best_acc1"] - max(accuracies)) < 1e-3 and best["epoch"] == 1 + accuracies.index(max(accuracies))

    main_lincls.main(words(imagenet, tmp_path, "-e", "--resume", tmp_path / "checkpoint.pth.tar"))
    assert capsys.readouterr().out.splitlines()[-1] == log.splitlines()[-1]


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


def program(*args):
    command = [sys.executable, "main_lincls.py", *args]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("world", [1, 4])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(world, imagenet, tmp_path, monkeypatch):
    def run(folder, *more):
        line = words(imagenet, folder, "--lars", "--lr", "50", *more)
        return main_lincls.main(line) if world == 1 else program(*line, "--nproc", str(world))

    kept = []
    run(tmp_path / "whole", "--pretrained", "none")
    if world == 1:
        save = main_lincls.ckpt.save
        monkeypatch.setattr(main_lincls.ckpt, "save", lambda c, path: (kept.append(copy.deepcopy(c)), save(c, path)))
        run(tmp_path / "again", "--pretrained", "none")
        torch.save(kept[0], tmp_path / "first.pth.tar")
        run(tmp_path / "resumed", "--resume", tmp_path / "first.pth.tar", "-j", "2")
    else:
        # Two epochs of three, by stopping at the checkpoint of the best that an epoch leaves.
        best = torch.load(tmp_path / "whole" / "model_best.pth.tar", weights_only=True)
        run(tmp_path / "resumed", "--resume", tmp_path / "whole" / "model_best.pth.tar", "-j", "0")
        if best["epoch"] == 3:
            pytest.fail("the last epoch was the best; choose a seed for which it is not")
    a, b = (torch.load(tmp_path / run / "checkpoint.pth.tar", weights_only=True) for run in ("whole", "resumed"))
    assert all(torch.equal(tensor, b["state_dict"][name]) for name, tensor in a["state_dict"].items())
    assert a["best_acc1"] == b["best_acc1"] and a["options"] == b["options"] and b["epoch"] == 3


def test_validation_is_the_same_for_any_number_of_processes(imagenet, tmp_path):
    torch.manual_seed(1)
    main_lincls.main(words(imagenet, tmp_path, "--pretrained", "none", "--epochs", "1", "--lr", "20"))
    lines = []
    for nproc in (1, 4):
        line = words(imagenet, tmp_path, "-e", "--nproc", nproc, "--resume", tmp_path / "checkpoint.pth.tar")
        lines.append(program(*line).splitlines()[-1].split(" Loss "))
    assert lines[0][0] == lines[1][0] and lines[0][0].startswith(" * Acc@1")
    assert float(lines[0][1]) == pytest.approx(float(lines[1][1]), rel=1e-5)  # batches of other sizes round otherwise


def test_a_backbone_that_moves_stops_the_run(imagenet, tmp_path, monkeypatch):
    train_epoch = main_lincls.train_epoch

    def moving(net, *args):
        train_epoch(net, *args)
        net.bn1.running_mean.add_(1e-3)

    monkeypatch.setattr(main_lincls, "train_epoch", moving)
    with pytest.raises(RuntimeError, match=r"bn1\.running_mean changed"):
        main_lincls.main(words(imagenet, tmp_path, "--pretrained", "none"))
    assert not (tmp_path / "checkpoint.pth.tar").exists()
