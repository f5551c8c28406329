"""MoCo's step against Algorithm 1 written out slowly: every device simulated in turn, loops, no shared helpers."""

import copy
import functools
import math
import pickle
from argparse import Namespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from main_moco import train_step
from moco import builder
from moco.asymmetry.mean_encoding import mean_encoding
from moco.asymmetry.multicrop import contrastive_loss
from moco.builder import MoCo
from moco.distributed import data_parallel
from moco.engine.meters import AverageMeter
from moco.optim import sgd
from moco.precision import grad_scaler
from tests.conftest import run_ranks
from tests.test_device import compiles

N, DIM, K, M, T, LR, STEPS, SEED = 4, 8, 40, 0.9, 0.2, 0.1, 3, 5  # N: images a device


class TinyNet(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, num_classes)

    def forward(self, x):
        return self.fc(self.bn(self.conv(x)).relu().mean((2, 3)))


def images(step, views, size, world):
    """The global batch of each view, the same on every rank."""
    g = torch.Generator().manual_seed(1000 * step + size)
    return [torch.randn(N * world, 3, size, size, generator=g, dtype=torch.float64) for _ in range(views)]


def views_of(design):
    """(224 px source views, small source views, target views, AsymBN)."""
    return {
        "baseline": (1, 0, 1, False),
        "multicrop": (1, 6, 1, False),
        "asym_bn": (1, 0, 1, True),
        "mean_encoding": (1, 0, 2, False),
        "all": (1, 6, 2, True),
    }[design]


def our_steps(design, world, splits=1):
    """A few steps on one rank, which acts as `splits` devices; returns everything the oracle computes."""
    n_q, n_mini, n_k, asym_bn = views_of(design)
    model = MoCo(TinyNet, DIM, K, M, T, asym_bn, seed=SEED, bn_splits=splits).double()
    net = data_parallel(model, torch.device("cpu"), lambda net: loss_of_noise(net, N * splits, n_q, n_mini, n_k))
    rank = torch.distributed.get_rank() if world > 1 else 0
    optimizer = torch.optim.SGD(model.parameters(), LR)
    out = []
    for step in range(STEPS):
        mine = [
            [x.chunk(world)[rank] for x in images(step, views, size, world * splits)]
            for views, size in ((n_q, 12), (n_mini, 8), (n_k, 12 + 1))
        ]
        logits, labels = net(*mine, step=step)
        loss = contrastive_loss(logits, labels, n_q)
        optimizer.zero_grad()
        loss.backward()
        grads = [p.grad.clone() for p in model.encoder_q.parameters()]
        optimizer.step()
        state = {k: v.clone() for k, v in model.state_dict().items()}
        out.append((([x.detach() for x in logits]), loss.item(), grads, state))
    return out


def loss_of_noise(net, batch, *counts):
    views = [[torch.randn(batch, 3, 9, 9, dtype=torch.float64)] * n for n in counts]
    return contrastive_loss(*net(*views, step=0), counts[0])


def oracle_projector_bn(bn, x_of_devices):
    """BN over the rows of all devices together, by the formula; updates the running statistics of `bn`."""
    rows = [row for x in x_of_devices for row in x]
    mean = sum(rows) / len(rows)
    var = sum((row - mean) ** 2 for row in rows) / len(rows)
    bn.running_mean.copy_(0.9 * bn.running_mean + 0.1 * mean)
    bn.running_var.copy_(0.9 * bn.running_var + 0.1 * var * len(rows) / (len(rows) - 1))
    bn.num_batches_tracked += 1
    return [(x - mean) / (var + 1e-5).sqrt() * bn.weight + bn.bias for x in x_of_devices]


@functools.cache
def oracle_steps(design, world):
    """Algorithm 1 on `world` devices, rank 0's state dict and everyone's results."""
    n_q, n_mini, n_k, asym_bn = views_of(design)
    start = MoCo(TinyNet, DIM, K, M, T, seed=SEED).double()
    devices_q = [copy.deepcopy(start.encoder_q) for _ in range(world)]
    devices_k = [copy.deepcopy(start.encoder_k) for _ in range(world)]
    queue, pointer = start.queue.T.clone(), 0  # rows are keys
    out = []
    for step in range(STEPS):
        im_q, im_mini = images(step, n_q, 12, world), images(step, n_mini, 8, world)
        im_k = images(step, n_k, 13, world)
        q = []
        for r in range(world):
            q.append([])
            for x in im_q + im_mini:
                f = devices_q[r](x[r * N : (r + 1) * N])
                q[r].append([f_i / f_i.norm() for f_i in f])

        for k_net, q_net in zip(devices_k, devices_q, strict=True):
            for p_k, p_q in zip(k_net.parameters(), q_net.parameters(), strict=True):
                p_k.data = M * p_k.data + (1 - M) * p_q.data

        with torch.no_grad():
            total = n_k * N * world
            order = (
                np.random.default_rng((1, SEED, step)).permutation(total).tolist() if world > 1 else list(range(total))
            )
            everything = [image for view in im_k for image in view]
            per_device = total // world
            hidden = []
            for r in range(world):
                x = torch.stack([everything[order[j]] for j in range(r * per_device, (r + 1) * per_device)])
                net = devices_k[r]
                x = net.bn(net.conv(x)).relu().mean((2, 3))
                hidden.append(net.fc[0](x))
            if asym_bn:
                stats = [copy.deepcopy(net.fc[1]) for net in devices_k]
                hidden = oracle_projector_bn(stats[0], hidden)
                for net in devices_k:
                    net.fc[1].load_state_dict(stats[0].state_dict())
            else:
                hidden = [devices_k[r].fc[1](hidden[r]) for r in range(world)]
            encoded = []
            for r in range(world):
                fc = devices_k[r].fc
                encoded += list(fc[5](fc[3](hidden[r].relu()).relu()))
            unshuffled = [None] * total
            for j in range(total):
                unshuffled[order[j]] = encoded[j]
            keys = []
            for sample in range(N * world):
                mean = sum(unshuffled[view * N * world + sample] for view in range(n_k)) / n_k
                keys.append(mean / mean.norm())

        device_logits, device_losses = [], []
        for r in range(world):
            view_logits, view_losses = [], []
            for queries in q[r]:
                rows = []
                for i, query in enumerate(queries):
                    candidates = [keys[r * N + i], *queue]
                    rows.append(torch.stack([(query * c).sum() / T for c in candidates]))
                view_logits.append(torch.stack(rows))
                view_losses.append(sum(torch.logsumexp(row, 0) - row[0] for row in rows) / N)
            loss = view_losses[0]
            if n_mini:
                loss = loss + sum(view_losses[1:]) / n_mini
            device_logits.append([x.detach() for x in view_logits])
            device_losses.append(loss)
        for net in devices_q:
            net.zero_grad()
        (sum(device_losses) / world).backward()
        gradients = []
        for parameters in zip(*(net.parameters() for net in devices_q), strict=True):
            g = sum(p.grad for p in parameters)
            gradients.append(g)
            for p in parameters:
                p.data = p.data - LR * g

        for key in keys:
            queue[pointer] = key
            pointer = (pointer + 1) % K
        state = {f"encoder_q.{n}": t.clone() for n, t in devices_q[0].state_dict().items()}
        state |= {f"encoder_k.{n}": t.clone() for n, t in devices_k[0].state_dict().items()}
        state |= {"queue": queue.T.clone(), "queue_ptr": torch.tensor([pointer])}
        out.append((device_logits, [x.item() for x in device_losses], gradients, state))
    return out


DESIGNS = ["baseline", "multicrop", "asym_bn", "mean_encoding", "all"]


@pytest.mark.parametrize("world, splits", [(1, 1), (2, 1), (4, 1), (8, 1), (4, 2), (2, 4), (1, 8)])
def test_steps_equal_algorithm_1(world, splits):
    """Processes times BN groups act as so many devices, in whatever way they are spread."""
    per_rank = run_ranks(all_designs, world, world, splits) if world > 1 else [all_designs(1, splits)]
    for design, *ranks in zip(DESIGNS, *per_rank, strict=True):
        for step, (logits, losses, gradients, state) in enumerate(oracle_steps(design, world * splits)):
            for r in range(world):
                our_logits, our_loss, our_gradients, our_state = ranks[r][step]
                where = f"{design}, step {step}, rank {r}"
                devices = slice(r * splits, (r + 1) * splits)
                expected = [torch.cat(views) for views in zip(*logits[devices], strict=True)]
                torch.testing.assert_close(our_logits, expected, msg=lambda m, w=where: f"{w}: {m}")
                assert math.isclose(our_loss, sum(losses[devices]) / splits, rel_tol=1e-9), where
                torch.testing.assert_close(our_gradients, gradients, msg=lambda m, w=where: f"{w}: {m}")
                assert torch.equal(our_state["queue"], ranks[0][step][3]["queue"]), where
            assert our_state.keys() == state.keys()
            for name, value in ranks[0][step][3].items():
                torch.testing.assert_close(value, state[name], msg=lambda m, w=f"{design} {name}": f"{w}: {m}")


def all_designs(world, splits):
    return [our_steps(design, world, splits) for design in DESIGNS]


def faster_steps(kind, world=1, splits=2):
    """A few float32 steps of all designs; logits, gradients and the state after each."""
    rank = torch.distributed.get_rank() if world > 1 else 0
    model = MoCo(TinyNet, DIM, K, M, T, True, seed=SEED, asym_bn_group=splits, bn_splits=splits)
    if kind == "channels_last":
        model.to(memory_format=torch.channels_last)
    if kind == "compile":
        for encoder in (model.encoder_q, model.encoder_k):
            encoder.compile(dynamic=False)
    sizes = ((1, 12), (6, 8), (2, 13))

    def noise(net):
        views = [[torch.randn(2 * N, 3, size, size)] * n for n, size in sizes]
        return contrastive_loss(*net(*views, step=0))

    net = data_parallel(model, torch.device("cpu"), noise)
    optimizer, out = sgd(model.parameters(), LR, 0.9), []
    for step in range(STEPS):
        views = [[x.float().chunk(world)[rank] for x in images(step, n, size, 2 * world)] for n, size in sizes]
        logits, labels = net(*views, step=step)
        optimizer.zero_grad()
        contrastive_loss(logits, labels).backward()
        gradients = [p.grad.clone() for p in model.encoder_q.parameters()]
        optimizer.step()
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        out.append(([x.detach() for x in logits], gradients, state))
    return out


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("kind", ["channels_last", pytest.param("compile", marks=compiles)])
def test_faster_forms_of_the_step_equal_the_plain_one(kind, world):
    if world == 1:
        plain, fast = faster_steps("plain"), faster_steps(kind)
    else:
        plain, fast = (run_ranks(faster_steps, 2, k, 2)[1] for k in ("plain", kind))
    for a, b in zip(fast, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@compiles
def test_compiled_without_bn_groups_it_equals_the_plain_step():
    for a, b in zip(faster_steps("compile", splits=1), faster_steps("plain", splits=1), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("precision, compiled", [(None, False), ("bf16", False), ("fp16", False), ("bf16", True)])
def test_a_step_never_waits_for_the_device(precision, compiled):
    device = torch.device("cuda")
    model = MoCo(TinyNet, DIM, K, M, T, True, seed=SEED, bn_splits=2).to(device, memory_format=torch.channels_last)
    optimizer, scaler = sgd(model.parameters(), LR, 0.9, 1e-4), grad_scaler(device, precision)
    meter = AverageMeter("Loss")
    if compiled:
        for encoder in (model.encoder_q, model.encoder_k):
            encoder.compile(dynamic=False)
    views = [[x.float().to(device) for x in images(0, n, size, 2)] for n, size in ((1, 12), (6, 8), (2, 13))]
    try:
        for step in range(5):
            torch.cuda.set_sync_debug_mode("error" if step > 1 else "default")  # the first set things up
            loss, *_ = train_step(model, optimizer, scaler, views, step, Namespace(precision=precision))
            meter.update(loss, N)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert math.isfinite(meter.avg.item())


def test_state_dict_names_and_shapes():
    model = MoCo(TinyNet, DIM, K)
    state = model.state_dict()
    assert {n.split(".")[0] for n in state} == {"encoder_q", "encoder_k", "queue", "queue_ptr"}
    assert {n.split(".")[2] for n in state if n.startswith("encoder_q.fc.")} == {"0", "1", "3", "5"}
    assert state["queue"].shape == (DIM, K) and state["queue_ptr"].dtype == torch.long
    assert state["queue_ptr"].shape == (1,)
    torch.testing.assert_close(state["queue"].norm(dim=0), torch.ones(K))
    for (name, q), k in zip(model.encoder_q.named_parameters(), model.encoder_k.parameters(), strict=True):
        assert torch.equal(q, k), name
        assert q.requires_grad and not k.requires_grad


def test_queue_is_a_ring_for_a_batch_that_does_not_divide_K():
    model = MoCo(TinyNet, dim=2, K=7)
    expected, pointer = model.queue.clone(), 0
    for step in range(5):
        keys = F.normalize(torch.randn(3, 2, generator=torch.Generator().manual_seed(step)), dim=1)
        model.enqueue(keys)
        for key in keys:
            expected[:, pointer] = key
            pointer = (pointer + 1) % 7
        assert torch.equal(model.queue, expected) and model.queue_ptr.item() == pointer
    with pytest.raises(ValueError, match="a batch of 8 keys does not fit into a queue of 7"):
        model.enqueue(torch.zeros(8, 2))


def test_weights_are_a_function_of_the_seed_alone():
    torch.manual_seed(1)
    a, before = MoCo(TinyNet, DIM, K, seed=3), torch.random.get_rng_state()
    torch.manual_seed(2)
    b, c = MoCo(TinyNet, DIM, K, seed=3), MoCo(TinyNet, DIM, K, seed=4)
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert not torch.equal(a.queue, c.queue)
    torch.manual_seed(1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_logits_are_at_least_fp32_under_autocast():
    model = MoCo(TinyNet, DIM, K)
    im = [torch.randn(4, 3, 12, 12)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, labels = model(im, [], im)
    assert logits[0].dtype == torch.float32 and model.queue.dtype == torch.float32
    assert logits[0].shape == (4, 1 + K) and labels[0].tolist() == [0] * 4


def test_the_momentum_may_change_on_the_way():
    model = MoCo(TinyNet, DIM, K, m=0.999)
    with torch.no_grad():
        for p in model.encoder_q.parameters():
            p.add_(1)
    before = [p.clone() for p in model.encoder_k.parameters()]
    for m in (0.9, 0.0):
        model.m = m
        model.update_momentum_encoder()
        now = list(zip(before, model.encoder_k.parameters(), model.encoder_q.parameters(), strict=True))
        for old, k, q in now:
            torch.testing.assert_close(k, m * old + (1 - m) * q)
        before = [k.clone() for _, k, _ in now]
    pickle.loads(pickle.dumps(model))


def test_mean_encoding_averages_in_fp32_under_autocast(monkeypatch):
    seen = []
    monkeypatch.setattr(builder, "mean_encoding", lambda k: seen.append(k.dtype) or mean_encoding(k))
    model = MoCo(TinyNet, DIM, K)
    im = torch.randn(4, 3, 12, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model([im], [], [im, im])
    assert seen == [torch.float32]


def test_steps_count_themselves_and_are_not_saved():
    model = MoCo(TinyNet, DIM, K)
    im = [torch.randn(4, 3, 12, 12)]
    model(im, [], im)
    assert model.step == 1
    model(im, [], im, step=10)
    assert model.step == 11
    assert not any("step" in name for name in model.state_dict())
