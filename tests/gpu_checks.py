"""The parts of a run that touch the GPU, each run on a FakeGPU, which raises RuleBroken where a rule is broken."""

import contextlib
import io
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from torchvision import models

import main_moco
from moco.data import prefetch_to_device
from moco.data.prefetch_to_device import finisher, prefetched
from moco.engine import preemption
from moco.engine.checkpoint_background_writer import on_cpu
from moco.engine.checkpoint_format import checkpoint_of
from moco.engine.checkpoint_resume import restore
from moco.engine.ddp_wrapper import check_equal
from moco.engine.design_flags import DESIGNS, PAPER_SIDES
from moco.engine.json_log import JsonLog
from moco.engine.nonfinite_loss import NonfiniteGuard
from moco.engine.preemption import StopListener
from moco.engine.tensorboard_log import TensorBoardLog
from moco.engine.training_epoch import Epoch
from moco.engine.training_statistics import LearningMonitor
from moco.precision import grad_scaler
from moco.views import normalize
from moco.views.augment_on_device import Layout
from moco.views.random_parameters import draw_view, uniforms_needed
from tests.fake_gpu import CUDA, FakeGPU
from tests.fake_nccl import FakeNCCL
from tests.tiny_net import TinyNet

ALL = PAPER_SIDES
BOTH = tuple(f"{name}:both" for name in DESIGNS)
OTHER = tuple(f"{name}:{'target' if design.side == 'source' else 'source'}" for name, design in DESIGNS.items())


@contextlib.contextmanager
def fake_gpu():
    """A FakeGPU; what the project keeps for a device is made anew."""
    kept = (normalize._constants, prefetch_to_device._side_stream)
    clear = [function.cache_clear for function in kept if hasattr(function, "cache_clear")]
    try:
        for function in clear:
            function()
        with FakeGPU() as gpu:
            yield gpu
    finally:
        for function in clear:
            function()


def arguments(designs=(), batch=8, crop=224, mini=96, **more):
    """The options of main_moco.py for some designs, words of --design."""
    words = [".", "-b", str(batch), "--crop-size", str(crop), "--mini-crop-size", str(mini)]
    args = main_moco.build_parser().parse_args(words)
    vars(args).update(design=list(designs), seed=0, compile=False, total_batch=batch, **more)
    return args


def batch_of_crops(plan, batch):
    """A batch as RandomCrops makes it, on the CPU; the crops are not filled."""
    layout, rows = Layout(plan.views), []
    for i in range(batch):
        rng = np.random.default_rng(i)
        rows.append(
            layout.rows_of([draw_view(v, 500, 375, rng.random(uniforms_needed(v)).tolist()) for v in plan.views])
        )
    crops = {size: torch.empty(batch, len(r), size, size, 3, dtype=torch.uint8) for size, r in layout.rows.items()}
    return crops, torch.tensor(rows), torch.zeros(batch, dtype=torch.long)


def pinned(gpu, batch):
    """Pins a batch, as the loader's thread does."""
    if isinstance(batch, torch.Tensor):
        gpu.pin(batch)
    else:
        for part in batch.values() if isinstance(batch, dict) else batch:
            pinned(gpu, part)
    return batch


def check_copies(designs, batch, augment_on="device", crop=224, mini=96, batches=2):
    """Two epochs of batches on their way to the GPU. Counts those of the second epoch; returns the FakeGPU."""
    plan = main_moco.view_plan(arguments(designs, batch, crop, mini))
    if augment_on == "device":
        one = batch_of_crops(plan, batch)
    else:
        images = [torch.empty(batch, 3, view.size, view.size, dtype=torch.uint8) for view in plan.views]
        one = images, torch.zeros(batch, dtype=torch.long)
    finish = finisher(plan.views, augment_on, CUDA)
    with fake_gpu() as gpu:
        pinned(gpu, one)
        with gpu.waits_allowed():  # constants are copied once
            assert len(list(prefetched([one], finish, CUDA))) == 1
        torch.zeros(1, device=CUDA)  # a step that still runs
        gpu.reset()
        for views, labels in prefetched([one] * batches, finish, CUDA):
            assert all(view.device == CUDA and view.dtype == torch.float32 for view in views)
            assert [view.shape for view in views] == [(batch, 3, view.size, view.size) for view in plan.views]
            sum(view.sum() for view in views) + labels.sum()  # a step, on the main stream
            gpu.launches -= 2 * len(views) + 1
            del views, labels
    assert len(gpu.sides) == 1, "one side stream for all epochs"
    assert not gpu.sides[0].clock["main"], "the side stream waits for the steps, so nothing runs beside them"
    return gpu


def check_step(designs, batch, precision=None, splits=1, tiny=True, steps=3, crop=32, mini=16, **more):
    """Steps of the pretraining with what follows each of them. The last one counts; returns the FakeGPU."""
    args = arguments(designs, batch, crop, mini, precision=precision, bn_splits=splits, **{"moco_k": 256, **more})
    plan = main_moco.view_plan(args)
    with fake_gpu() as gpu, tiny_net() if tiny else contextlib.nullcontext():
        with gpu.waits_allowed():
            model, optimizer = main_moco.build(args, CUDA)
            scaler = grad_scaler(CUDA, precision)
            images = [torch.randn(batch, 3, v.size, v.size, device=CUDA) for v in plan.views]
            main_moco.train_step(model, optimizer, scaler, plan, images, 0, precision)  # e.g. the scaler's first scale
        assert {p.device for p in model.state_dict().values()} == {CUDA}
        for step in range(1, steps):
            gpu.reset()
            main_moco.train_step(model, optimizer, scaler, plan, images, step, precision)
    return gpu


def check_compiled_batchnorm(designs=ALL):
    """A step on the path of the batch normalisation that torch.compile takes."""
    with mock.patch.object(torch.compiler, "is_compiling", lambda: True):
        check_step(designs, 8, splits=2)


def check_start_and_save():
    """The start of a run, a checkpoint and a resume, which may wait for the GPU; then a step, which may not."""
    args = arguments((), 8, 32, moco_k=64)
    plan = main_moco.view_plan(args)
    with fake_gpu() as gpu, tiny_net():
        with gpu.waits_allowed():
            model, optimizer = main_moco.build(args, CUDA)
            conv = model.encoder_q.conv.weight
            assert conv.is_contiguous(memory_format=torch.channels_last), "the network must be channels last"
            check_equal(model.state_dict())
            with gpu.waits_allowed() as waits:
                guard = NonfiniteGuard(FakeLoader([(torch.zeros(8),)]), optimizer, None)
                gpu.answer = lambda x: torch.tensor([[-1, 0]]) if x.dim() else torch.tensor(0)
                guard.check()
            assert len(waits) == 1, waits
            gpu.answer = lambda x: torch.zeros(x.shape, dtype=x.dtype)
            saved = on_cpu(checkpoint_of(1, model, optimizer, {"arch": "resnet18"}))
            for state in saved["optimizer"]["state"].values():  # as in published files
                state["momentum_buffer"] = state["momentum_buffer"].contiguous()
            restore(saved, model, optimizer)
            main_moco.noise_loss(plan, None, model, 8)
        images = [torch.randn(8, 3, 32, 32, device=CUDA) for _ in plan.views]
        main_moco.train_step(model, optimizer, grad_scaler(CUDA, None), plan, images, 1, None)


def check_rank(designs, world, rank, group=8, batch=4, **more):
    """Steps as one rank of several with NCCL; returns (FakeGPU, FakeNCCL)."""
    nccl = FakeNCCL(world, rank)
    with nccl.installed():
        return check_step(designs, batch, asym_bn_group=group, **more), nccl


class FakeLoader:
    """Batches in place of a DataLoader; `taken` is the number of those that were asked for."""

    def __init__(self, batches):
        self.batches, self.taken, self.num_workers = batches, 0, 0
        self.batch_sampler, self.batch_size = SimpleNamespace(start=0, epoch=0), len(batches[0][-1])

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        for batch in self.batches:
            self.taken += 1
            yield batch


def check_epoch(steps=5, print_freq=2, world=1):
    """The loop of the pretraining with its log, of one process or as rank 1 of several.

    Returns:
        For each step, how many batches the loader had given whenever the host waited for the GPU.

    Raises:
        AssertionError: the log's `Wait` leaves out the augmentation, or the memory grows.
    """
    args = arguments((), 4, 16, print_freq=print_freq, save_every=None, epochs=1, moco_k=64, augment_on="device")
    plan, waits, memory = main_moco.view_plan(args), [], []
    with contextlib.ExitStack() as stack:
        gpu = stack.enter_context(fake_gpu())
        stack.enter_context(tiny_net())
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        if world > 1:
            stack.enter_context(FakeNCCL(world, rank=1).installed())
            stack.enter_context(mock.patch.object(preemption, "rank", lambda: 1))
        loader = FakeLoader([pinned(gpu, batch_of_crops(plan, 4)) for _ in range(steps)])

        def all_is_well(x):
            """What the ranks' notes look like if every loss is finite and no signal came."""
            answer = torch.zeros(x.shape, dtype=x.dtype)
            if x.dim():
                answer[..., 1] = print_freq  # steps until the ranks look for signals again
                answer[..., 2] = -1  # the first step with a loss that is not finite
            return answer

        def wait(what):
            waits[-1].append(loader.taken)
            FakeGPU.wait(gpu, what)

        gpu.answer = all_is_well
        with gpu.waits_allowed():
            model, optimizer = main_moco.build(args, CUDA)
            normalize._constants(CUDA)
        run = SimpleNamespace(
            **{"args": args, "device": CUDA, "loader": loader, "transform": finisher(plan.views, "device", CUDA)},
            **{"workers": 0, "place": (0, 0), "stop": StopListener(print_freq), "optimizer": optimizer},
            **{"guard": NonfiniteGuard(loader, optimizer, None), "monitor": LearningMonitor(5.0, 0)},
            **{"log": JsonLog(None), "tensorboard": TensorBoardLog(None)},
        )
        epoch, gpu.wait = Epoch(run, 0), wait
        for step, images, _ in epoch.steps():
            waits.append([])
            scaler = grad_scaler(CUDA, None)
            result = main_moco.train_step(model, optimizer, scaler, plan, images, step, None, epoch.prints)
            with gpu.waits_allowed():
                epoch.report(*result)
            memory.append(gpu.live)
        epoch.timer.share_waited()
        side = gpu.sides[0]  # whose operations, all of them of the augmentation, take a millisecond each
        expected = side.clock[side.name] * (steps - 1) / steps  # the first batch follows no step
        assert round(1000 * epoch.timer.idle) == expected, (
            "waiting lasts from a step's end until the batch is augmented"
        )
        assert memory[3] == memory[1], "the memory grows from step to step"
    return waits


def check_waits(waits):
    """Raises AssertionError if the host waited more than once in a step, or before it had fetched the next batch."""
    assert all(len(step) <= 1 for step in waits), f"more than one wait in a step: {waits}"
    fetched = [[min(i + 2, len(waits))] for i, step in enumerate(waits) if step]
    assert len(waits) == 1 or [step for step in waits if step] == fetched, f"waits before the next batch: {waits}"


def tiny_net():
    """A context in which both scripts build a TinyNet."""
    return mock.patch.object(models, "get_model", lambda arch, num_classes=1000: TinyNet(num_classes))
