"""LARS against its formula, in loops; the fused SGD against the plain one."""

import math

import pytest
import torch

from moco.optim import LARS, cosine_lr, set_lr, sgd


@pytest.mark.parametrize("decay", [0.0, 0.05])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_lars_equals_the_formula(decay, momentum):
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 4, generator=g, dtype=torch.float64).requires_grad_()
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    still = torch.ones(2, dtype=torch.float64, requires_grad=True)
    optimizer = LARS([weight, bias, still], 0.5, momentum, decay, trust_coefficient=0.01)
    expected = [p.detach().clone() for p in (weight, bias, still)]
    buffers = [None] * 3
    for step in range(4):
        gradients = [torch.randn(p.shape, generator=g, dtype=torch.float64) for p in (weight, bias)]
        gradients.append(torch.zeros(2, dtype=torch.float64))
        for p, gradient in zip((weight, bias, still), gradients, strict=True):
            p.grad = gradient.clone()
        optimizer.step()
        for i, w in enumerate(expected):
            d = gradients[i]
            w_norm = math.sqrt(sum(x * x for x in w.flatten().tolist()))
            g_norm = math.sqrt(sum(x * x for x in d.flatten().tolist()))
            if w_norm > 0 and g_norm > 0:
                d = (d + decay * w) * 0.01 * w_norm / (g_norm + decay * w_norm + 1e-8)
            buffers[i] = d if buffers[i] is None else momentum * buffers[i] + d
            expected[i] = w - 0.5 * buffers[i]
        for p, w in zip((weight, bias, still), expected, strict=True):
            torch.testing.assert_close(p.detach(), w, rtol=1e-12, atol=1e-14, msg=f"step {step}")
    assert optimizer.param_groups[0]["weight_decay"] == decay


def test_lars_state_dict_is_that_of_sgd():
    def stepped(make):
        p = torch.ones(3, requires_grad=True)
        optimizer = make([p])
        p.grad = torch.ones(3)
        optimizer.step()
        return optimizer.state_dict()

    lars, sgd = stepped(lambda p: LARS(p, 0.1, 0.9)), stepped(lambda p: torch.optim.SGD(p, 0.1, 0.9))
    assert lars["param_groups"] == sgd["param_groups"]
    assert lars["state"].keys() == sgd["state"].keys() and lars["state"][0].keys() == sgd["state"][0].keys()


def test_lars_equals_apex():
    larc = pytest.importorskip("apex.parallel.LARC", reason="an apex that still has LARC")
    p, q = (torch.randn(5, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    ours = LARS([p], 0.3, 0.9, 0.01)
    theirs = larc.LARC(torch.optim.SGD([q], 0.3, 0.9, weight_decay=0.01), trust_coefficient=0.001, clip=False)
    for step in range(3):
        p.grad = torch.randn(5, generator=torch.Generator().manual_seed(step))
        q.grad = p.grad.clone()
        ours.step()
        theirs.step()
        torch.testing.assert_close(p, q)


def test_cosine_schedule():
    assert cosine_lr(0.03, 0, 100) == 0.03
    assert math.isclose(cosine_lr(0.03, 50, 100), 0.015)
    assert math.isclose(cosine_lr(0.03, 99, 100), 0.03 * 0.5 * (1 + math.cos(math.pi * 0.99)))
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], 1.0)
    set_lr(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] == 0.25


@pytest.mark.parametrize("epoch, epochs", [(11, 10), (-1, 10), (0, 0), (math.nan, 10)])
def test_an_epoch_beyond_the_schedule_is_refused(epoch, epochs):
    assert cosine_lr(0.1, 10, 10) == 0
    with pytest.raises(ValueError, match=f"epoch {epoch} is not one of {epochs} epochs"):
        cosine_lr(0.1, epoch, epochs)


@pytest.mark.parametrize("make", [sgd, LARS])
def test_options_that_would_diverge_or_train_nothing_are_refused(make):
    bad = [
        ("momentum", 2),
        *((name, x) for name in ("lr", "momentum", "weight_decay") for x in (-1, math.nan, math.inf)),
    ]
    bad += [("trust_coefficient", x) for x in (0, -1, math.nan)] if make is LARS else []
    for name, value in bad:
        with pytest.raises(ValueError, match=f"the optimizer's {name} is {value}, but must be a finite number, "):
            make([torch.ones(2, requires_grad=True)], **{"lr": 0.1, name: value})


def descend(make, momentum, skipped=()):
    """Some steps of SGD on a convolution's weight, of which a scaler skips some; the weight after each."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, 2, 2, generator=g).to(memory_format=torch.channels_last).requires_grad_()
    frozen = torch.ones(2)
    optimizer, out = make([weight, frozen], 0.5, momentum, weight_decay=0.01), []
    for step in range(5):
        weight.grad = torch.randn(weight.shape, generator=g).to(memory_format=torch.channels_last)
        if optimizer.defaults["fused"]:
            optimizer.found_inf = torch.tensor(float(step in skipped))
        elif step in skipped:
            continue
        optimizer.step()
        out.append(weight.detach().clone())
    return out, optimizer.state_dict()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_fused_sgd_equals_the_plain_one(momentum):
    (ours, state), (theirs, plain) = descend(sgd, momentum), descend(torch.optim.SGD, momentum)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert state["state"].keys() == (plain["state"].keys() if momentum else set())  # none of what is frozen
    if momentum:
        torch.testing.assert_close(state["state"], plain["state"], rtol=1e-6, atol=1e-6)


def test_the_fused_sgd_survives_a_first_step_that_the_scaler_skips():
    (ours, _), (theirs, _) = descend(sgd, 0.9, skipped=(0, 3)), descend(torch.optim.SGD, 0.9, skipped=(0, 3))
    torch.testing.assert_close([ours[i] for i in (1, 2, 4)], theirs, rtol=1e-6, atol=1e-6)
    assert torch.equal(ours[3], ours[2])
