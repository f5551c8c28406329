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


# Each design on each side, as far as it changes the model: (views of the source, its small views, views of the target,
# its small views, the sides whose projectors are synchronised). Several views are averaged.
DESIGNS = {
    "baseline": (1, 0, 1, 0, ""),
    "multicrop:source": (1, 2, 1, 0, ""),
    "multicrop:target": (1, 0, 1, 2, ""),
    "multicrop:both": (1, 2, 1, 2, ""),
    "asym_bn:source": (1, 0, 1, 0, "source"),
    "asym_bn:target": (1, 0, 1, 0, "target"),
    "asym_bn:both": (1, 0, 1, 0, "both"),
    "mean_encoding:source": (2, 0, 1, 0, ""),
    "mean_encoding:target": (1, 0, 2, 0, ""),
    "mean_encoding:both": (2, 0, 2, 0, ""),
    "all, on the paper's sides": (1, 6, 2, 0, "target"),
    "all, on the other sides": (2, 0, 1, 2, "source"),
    "all, on both sides": (2, 2, 2, 2, "both"),
    "all, in groups of 2 devices": (2, 2, 2, 2, "both"),
}
SIZES = (12, 8, 13, 9)  # in pixels, of the views in that order


def our_steps(design, world, splits=1):
    """A few steps on one rank, which acts as `splits` devices; returns everything the oracle computes."""
    *counts, side = DESIGNS[design]
    how = {"asym_bn_on": side or "target", "mean_source": counts[0] > 1, "bn_splits": splits}
    how["asym_bn_group"] = group_of(design)
    model = MoCo(TinyNet, DIM, K, M, T, bool(side), seed=SEED, **how).double()
    net = data_parallel(model, torch.device("cpu"), lambda net: loss_of_noise(net, N * splits, counts))
    rank = torch.distributed.get_rank() if world > 1 else 0
    optimizer = torch.optim.SGD(model.parameters(), LR)
    out = []
    for step in range(STEPS):
        im_q, im_q_mini, im_k, im_k_mini = (
            [x.chunk(world)[rank] for x in images(step, views, size, world * splits)]
            for views, size in zip(counts, SIZES, strict=True)
        )
        logits, labels = net(im_q, im_q_mini, im_k, step, im_k_mini)
        loss = contrastive_loss(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        grads = [p.grad.clone() for p in model.encoder_q.parameters()]
        optimizer.step()
        state = {k: v.clone() for k, v in model.state_dict().items()}
        out.append((([x.detach() for x in logits]), loss.item(), grads, state))
    return out


def group_of(design):
    """The number of devices whose statistics AsymBN computes together; None means all."""
    return 2 if design.endswith("groups of 2 devices") else None


def loss_of_noise(net, batch, counts):
    im_q, im_q_mini, im_k, im_k_mini = ([torch.randn(batch, 3, 9, 9, dtype=torch.float64)] * n for n in counts)
    return contrastive_loss(*net(im_q, im_q_mini, im_k, 0, im_k_mini))


def oracle_projector_bn(bns, x_of_devices):
    """BN over the rows of all devices together, by the formula; updates the running statistics of each device's BN."""
    rows = [row for x in x_of_devices for row in x]
    mean = sum(rows) / len(rows)
    var = sum((row - mean) ** 2 for row in rows) / len(rows)
    with torch.no_grad():
        for bn in bns:
            bn.running_mean.copy_(0.9 * bn.running_mean + 0.1 * mean)
            bn.running_var.copy_(0.9 * bn.running_var + 0.1 * var * len(rows) / (len(rows) - 1))
            bn.num_batches_tracked += 1
    return [(x - mean) / (var + 1e-5).sqrt() * bn.weight + bn.bias for bn, x in zip(bns, x_of_devices, strict=True)]


def oracle_encode(nets, x_of_devices, synchronised):
    """The raw encodings on each device, whose batch each of its BN layers normalises by itself.

    The projectors' statistics cover `synchronised` consecutive devices.
    """
    pairs = list(zip(nets, x_of_devices, strict=True))
    hidden = [net.fc[0](net.bn(net.conv(x)).relu().mean((2, 3))) for net, x in pairs]
    if synchronised > 1:
        groups = [slice(first, first + synchronised) for first in range(0, len(nets), synchronised)]
        bns = [net.fc[1] for net in nets]
        hidden = [x for group in groups for x in oracle_projector_bn(bns[group], hidden[group])]
    else:
        hidden = [net.fc[1](x) for net, x in zip(nets, hidden, strict=True)]
    return [net.fc[5](net.fc[3](x.relu()).relu()) for net, x in zip(nets, hidden, strict=True)]


def oracle_keys(nets, views, address, synchronised):
    """The key of each image of the global batch: the mean over its `views`, which are shuffled together."""
    world, total = len(nets), len(views) * len(views[0])
    order = np.random.default_rng((1, SEED, *address)).permutation(total).tolist() if world > 1 else range(total)
    everything = [image for view in views for image in view]
    shuffled = torch.stack([everything[i] for i in order]).chunk(world)
    encoded = [row for device in oracle_encode(nets, shuffled, synchronised) for row in device]
    unshuffled = [None] * total
    for j in range(total):
        unshuffled[order[j]] = encoded[j]
    means = [sum(unshuffled[sample :: len(views[0])]) / len(views) for sample in range(len(views[0]))]
    return [mean / mean.norm() for mean in means]


@functools.cache
def oracle_steps(design, world):
    """Algorithm 1 on `world` devices, rank 0's state dict and everyone's results."""
    *counts, side = DESIGNS[design]
    together = {name: (group_of(design) or world) if side in (name, "both") else 1 for name in ("source", "target")}
    start = MoCo(TinyNet, DIM, K, M, T, seed=SEED).double()
    devices_q = [copy.deepcopy(start.encoder_q) for _ in range(world)]
    devices_k = [copy.deepcopy(start.encoder_k) for _ in range(world)]
    queue, pointer = start.queue.T.clone(), 0  # rows are keys
    out = []
    for step in range(STEPS):
        im_q, im_q_mini, im_k, im_k_mini = (
            images(step, views, size, world) for views, size in zip(counts, SIZES, strict=True)
        )
        q = [[] for _ in range(world)]
        for views in [im_q, *([view] for view in im_q_mini)]:  # the views of an image that are averaged
            batches = [torch.cat([view[r * N : (r + 1) * N] for view in views]) for r in range(world)]
            for r, encoded in enumerate(oracle_encode(devices_q, batches, together["source"])):
                means = [sum(encoded[i::N]) / len(views) for i in range(N)]
                q[r].append([mean / mean.norm() for mean in means])

        for k_net, q_net in zip(devices_k, devices_q, strict=True):
            for p_k, p_q in zip(k_net.parameters(), q_net.parameters(), strict=True):
                p_k.data = M * p_k.data + (1 - M) * p_q.data

        with torch.no_grad():
            keys = oracle_keys(devices_k, im_k, (step,), together["target"])
            mini_keys = [
                oracle_keys(devices_k, [view], (step, which), together["target"])
                for which, view in enumerate(im_k_mini, start=1)
            ]

        device_logits, device_losses = [], []
        for r in range(world):
            pair_logits, pair_losses = [], []
            for queries, keys_of_pair in [(x, keys) for x in q[r]] + [(q[r][0], x) for x in mini_keys]:
                rows = []
                for i, query in enumerate(queries):
                    candidates = torch.stack([keys_of_pair[r * N + i], *queue])
                    rows.append((candidates * query).sum(1) / T)
                pair_logits.append(torch.stack(rows))
                pair_losses.append(sum(torch.logsumexp(row, 0) - row[0] for row in rows) / N)
            loss = pair_losses[0]
            if len(pair_losses) > 1:
                loss = loss + sum(pair_losses[1:]) / (len(pair_losses) - 1)
            device_logits.append([x.detach() for x in pair_logits])
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


@pytest.mark.parametrize(
    "world, splits", [(1, 1), (2, 1), (4, 1), pytest.param(8, 1, marks=pytest.mark.slow), (4, 2), (2, 4), (1, 8)]
)
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
