"""MoCo's step against Algorithm 1 written out slowly: every device simulated in turn, loops, no shared helpers."""

import copy
import functools
import math

import numpy as np
import pytest
import torch

from moco.builder import MoCo
from moco.engine.ddp_wrapper import data_parallel
from moco.loss import contrastive_loss
from tests.ranks import run_ranks
from tests.tiny_net import TinyNet

N, DIM, K, M, T, LR, STEPS, SEED = 4, 8, 40, 0.9, 0.2, 0.1, 3, 5  # N: images per device


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
                    candidates = torch.stack([keys[r * N + i], *queue])
                    rows.append((candidates * query).sum(1) / T)
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
