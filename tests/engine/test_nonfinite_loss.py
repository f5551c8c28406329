"""A loss that is not finite is found on every rank, whoever's it was."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from moco.data.sampler import EpochBatchSampler
from moco.engine.nonfinite_loss import NonfiniteGuard
from tests.ranks import run_ranks


def guard_of(batch=4):
    batches = EpochBatchSampler(20, batch, seed=1)
    batches.epoch = 3
    dataset = SimpleNamespace(folder=SimpleNamespace(path=lambda index: f"image-{index}"))
    loader = SimpleNamespace(batch_sampler=batches, dataset=dataset)
    optimizer = torch.optim.SGD([torch.zeros(1)], 0.25)
    return NonfiniteGuard(loader, optimizer, lambda: "the.last"), batches


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_the_first_bad_step_is_named_with_its_images(value):
    guard, batches = guard_of()
    guard.check()  # nothing seen yet
    for step, loss in enumerate((1.0, 2.0, value, 1.0, value)):
        guard.see(torch.tensor(loss), step)
        if step < 2:
            guard.check()
    with pytest.raises(FloatingPointError) as stop:
        guard.check()
    first, *names = str(stop.value).splitlines()
    assert "rank 0 is not finite in step 2 of epoch 3, at learning rate 0.25; last good checkpoint: the.last" in first
    assert [name.strip() for name in names] == [f"image-{i}" for _, i in list(batches)[2]]


def test_a_weight_that_is_not_finite_is_found_before_it_is_saved():
    guard, _ = guard_of()
    guard.see(torch.tensor(1.0), 0)
    guard.check()
    guard.optimizer.param_groups[0]["params"][0].fill_(float("inf"))  # by the update of this step
    guard.judge([guard.first])  # the loss is finite
    with pytest.raises(FloatingPointError, match="a weight is no longer finite in epoch 3"):
        guard.check()


def test_weights_are_looked_at_before_the_first_step_too():
    guard, _ = guard_of()
    guard.check()
    guard.optimizer.param_groups[0]["params"][0].fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="a weight is no longer finite"):
        guard.check()


def one_of_two():
    guard, batches = guard_of()
    rank = dist.get_rank()
    guard.see(torch.tensor(float("nan") if rank == 1 else 1.0), 0)
    guard.see(torch.tensor(float("nan")), 1)  # by now it has reached everybody's weights
    try:
        guard.check()
    except FloatingPointError as error:
        return str(error), [i for _, i in next(iter(batches))]


def test_every_rank_stops_and_names_the_one_that_began():
    (first, _), (second, images) = run_ranks(one_of_two, 2)
    assert first == second and "rank 1 is not finite in step 0" in first
    assert [f"image-{i}" for i in images] == [name.strip() for name in first.splitlines()[1:]]
