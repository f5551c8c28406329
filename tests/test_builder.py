"""MoCo: the queue, the momentum, faster forms of the step, and what is never below float32."""

import math
import pickle

import pytest
import torch
import torch.nn.functional as F

from main_moco import train_step
from moco import builder
from moco.asymmetry.mean_encoding import mean_encoding, mean_encoding_plan
from moco.asymmetry.multicrop import multicrop_plan
from moco.builder import MoCo
from moco.engine.ddp_wrapper import data_parallel
from moco.engine.meters import AverageMeter
from moco.loss import contrastive_loss
from moco.optim import sgd
from moco.precision import grad_scaler
from moco.views.augmentation_recipes import baseline_plan
from tests.ranks import run_ranks
from tests.test_algorithm1 import DIM, LR, SEED, STEPS, K, M, N, T, images
from tests.test_precision import compiles
from tests.tiny_net import TinyNet


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
@pytest.mark.parametrize("kind", ["channels_last", pytest.param("compile", marks=[compiles, pytest.mark.slow])])
def test_faster_forms_of_the_step_equal_the_plain_one(kind, world):
    if world == 1:
        plain, fast = faster_steps("plain"), faster_steps(kind)
    else:
        plain, fast = (run_ranks(faster_steps, 2, k, 2)[1] for k in ("plain", kind))
    for a, b in zip(fast, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
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
    plan = mean_encoding_plan(multicrop_plan(baseline_plan(12), 8))
    views = [torch.randn(2 * N, 3, view.size, view.size, device=device) for view in plan.views]
    try:
        for step in range(5):
            torch.cuda.set_sync_debug_mode("error" if step > 1 else "default")  # the first set things up
            loss, *_ = train_step(model, optimizer, scaler, plan, views, step, precision)
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


@pytest.mark.parametrize(
    "name, values",
    [
        ("dim", (0, -1)),
        ("K", (0, -1)),
        ("m", (-0.1, 1.1, math.nan)),
        ("T", (0, -0.2, math.inf, math.nan)),
        ("seed", (-1,)),
    ],
)
def test_arguments_out_of_range_are_refused(name, values):
    for value in values:
        with pytest.raises(ValueError, match=f"^MoCo's {name} is {value}, but must be "):
            MoCo(TinyNet, **{"dim": DIM, "K": K, name: value})
    with pytest.raises(ValueError, match="in 0 parts is not possible"):
        MoCo(TinyNet, DIM, K, bn_splits=0)


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


def test_a_batch_that_the_groups_do_not_divide_is_refused():
    """With two averaged views, the groups would divide the number of rows."""
    model, im = MoCo(TinyNet, DIM, K, bn_splits=2, mean_source=True), torch.randn(3, 3, 12, 12)
    with pytest.raises(ValueError, match="a batch of 3 can't be normalised in 2 equal parts"):
        model([im, im], [], [im, im])
    with pytest.raises(ValueError, match="MoCo's asym_bn_on is 'left', but must be one of source, target, both"):
        MoCo(TinyNet, DIM, K, asym_bn_on="left")
