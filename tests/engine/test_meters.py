import torch

from moco.engine.meters import AverageMeter, ProgressMeter, accuracy


def test_accuracy_counts_by_hand():
    output = torch.tensor([[0.1, 0.9, 0.0], [0.8, 0.1, 0.2], [0.3, 0.4, 0.5], [0.5, 0.3, 0.2]])
    target = torch.tensor([1, 2, 0, 0])
    top1, top2, top5 = accuracy(output, target, (1, 2, 5))
    assert (top1.item(), top2.item(), top5.item()) == (50.0, 75.0, 100.0)


def test_average_and_line(capsys):
    loss = AverageMeter("Loss", ":.2f")
    loss.update(torch.tensor(1.0), 1)
    loss.update(4.0, 2)
    assert float(loss.avg) == 3.0
    ProgressMeter(100, [loss], "Epoch: [3]").display(7, "Left 0:00:01")
    assert capsys.readouterr().out == "Epoch: [3][  7/100]\tLoss 4.00 (3.00)\tLeft 0:00:01\n"
