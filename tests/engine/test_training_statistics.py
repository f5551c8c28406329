"""The figures of the log beside the loss, against loops and torch's own functions; the notes on a collapse."""

import math

import pytest
import torch
from torch import nn

from moco.engine.training_statistics import LearningMonitor, contrast_sums, gradient_norm, statistics_of
from moco.precision import grad_scaler

T = 0.2


def queries_and_logits(n=12, dim=8, keys=20):
    generator = torch.Generator().manual_seed(0)
    q, k, queue = (torch.randn(rows, dim, generator=generator) for rows in (n, n, keys))
    q, k, queue = (nn.functional.normalize(x + 0.5, dim=1) for x in (q, k, queue))
    return q, k, queue, torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], dim=1) / T


@pytest.mark.parametrize("processes", [1, 3])
def test_figures_are_those_of_the_global_batch(processes):
    q, k, queue, logits = queries_and_logits()
    sums = torch.stack(
        [contrast_sums(*share, T) for share in zip(q.chunk(processes), logits.chunk(processes), strict=True)]
    )
    figures = statistics_of(torch.full((processes,), 3.5), sums)
    positive = [float(torch.dot(q[i], k[i])) for i in range(len(q))]
    negative = [float(torch.dot(x, y)) for x in q for y in queue]
    assert figures["grad_norm"] == 3.5
    assert math.isclose(figures["positive"], sum(positive) / len(positive), rel_tol=1e-5)
    assert math.isclose(figures["negative"], sum(negative) / len(negative), rel_tol=1e-5)
    std = sum(float(q[:, c].double().std()) for c in range(8)) / 8 * math.sqrt(8)
    assert math.isclose(figures["std"], std, rel_tol=1e-6)


def test_the_spread_is_1_if_spread_out_and_0_if_collapsed():
    spread = nn.functional.normalize(torch.randn(4000, 128, generator=torch.Generator().manual_seed(0)), dim=1)
    logits = torch.zeros(4000, 3)
    std = statistics_of(torch.zeros(1), contrast_sums(spread, logits, T)[None])["std"]
    assert abs(std - 1) < 0.01
    equal = spread[:1].expand(4000, -1)
    assert statistics_of(torch.zeros(1), contrast_sums(equal, logits, T)[None])["std"] < 1e-6


def test_without_a_contrast_only_the_gradient_is_shown():
    assert statistics_of(torch.tensor([2.0, 2.0]), torch.empty(2, 0)) == {"grad_norm": 2.0}


@pytest.mark.parametrize("precision", [None, "fp16"])
def test_the_gradients_norm_is_without_the_loss_scale(precision):
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2).requires_grad_(False))
    scaler = grad_scaler(torch.device("cpu"), precision)
    scaler.scale(net(torch.ones(5, 3)).square().sum()).backward()
    by_hand = math.sqrt(sum(float(x) ** 2 for p in net.parameters() if p.grad is not None for x in p.grad.flatten()))
    factor = scaler.get_scale() if precision else 1
    assert math.isclose(float(gradient_norm(net, scaler)), by_hand / factor, rel_tol=1e-5)
    assert math.isclose(float(gradient_norm(net)), by_hand, rel_tol=1e-5)


def see(monitor, steps, loss=8.0, std=0.5):
    for step in steps:
        monitor.see(step, loss, std)


def test_a_collapse_is_said_once(capsys):
    monitor = LearningMonitor(guess=9.0, start=0)
    see(monitor, range(0, 200, 10), std=0.05)
    see(monitor, [200], std=0.2)  # one print without
    see(monitor, range(210, 410, 10), std=0.05)
    assert capsys.readouterr().out == ""
    see(monitor, range(410, 2000, 10), std=0.05)
    out = capsys.readouterr().out
    assert out.count("the encodings have collapsed") == 1 and "try a tenth of --lr" in out


def test_a_loss_at_the_blind_guess_is_said_once_the_queue_is_full(capsys):
    monitor = LearningMonitor(guess=9.0, start=256)
    see(monitor, range(0, 1250, 50), loss=8.95)
    see(monitor, [1250], loss=8.9)  # more than 1 % below
    see(monitor, range(1300, 2300, 50), loss=9.05)
    assert capsys.readouterr().out == ""
    see(monitor, range(2300, 5000, 50), loss=9.05)
    assert capsys.readouterr().out.count("within 1% of a blind guess (9.0000) for 1000 steps") == 1
    see(LearningMonitor(guess=9.0, start=0), [0, 10, 20], loss=float("nan"), std=float("nan"))
    assert capsys.readouterr().out == ""
