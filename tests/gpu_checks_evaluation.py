"""The evaluations that run on a GPU, on a FakeGPU: see gpu_checks.py."""

import contextlib
import io
from unittest import mock

import numpy as np
import torch

import main_lincls
from moco.builder import add_projector
from moco.data.view_datasets import CentralViews
from moco.engine import preemption
from moco.engine.preemption import StopListener
from moco.evaluation.frozen_backbone import freeze
from moco.evaluation.knn import knn_accuracy
from moco.evaluation.validation_accuracy import validate
from moco.evaluation.variance import Recipe, WholeBatches, needed_views, variances
from moco.views import normalize
from moco.views.augmentation_recipes import View
from tests.fake_gpu import CUDA
from tests.fake_nccl import FakeNCCL
from tests.gpu_checks import FakeLoader, fake_gpu, pinned, tiny_net
from tests.tiny_net import TinyNet


def check_linear_classification(precision=None, lars=True, world=1):
    """Steps and a validation of the linear classification; returns what made the host wait in the validation.

    With several ranks, all of them look for stop signals in each step of the validation, which waits, too.
    """
    args = main_lincls.build_parser().parse_args([".", "--lars"] if lars else ["."])
    vars(args).update(seed=0, compile=False, init_lr=0.1)
    with contextlib.ExitStack() as stack:
        gpu = stack.enter_context(fake_gpu())
        stack.enter_context(tiny_net())
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stop, each_step = StopListener(1), lambda i: None
        if world > 1:
            stack.enter_context(FakeNCCL(world, rank=1).installed())
            stack.enter_context(mock.patch.object(preemption, "rank", lambda: 1))
            each_step = lambda i: stop.asked(True)  # noqa: E731
        with gpu.waits_allowed():
            model, optimizer = main_lincls.build(args, 5, CUDA)
            normalize._constants(CUDA)
            main_lincls.noise_output(24, precision, model, 8)
            frozen = main_lincls.frozen_tensors(model)
            with mock.patch.object(torch, "equal", lambda a, b: a.device == b.device == CUDA):
                main_lincls.check_frozen(frozen, model)
        images, labels = torch.randn(8, 3, 24, 24, device=CUDA), torch.zeros(8, dtype=torch.long, device=CUDA)
        for _ in range(2):
            main_lincls.train_step(model, optimizer, images, labels, precision)
        batches = [
            pinned(gpu, (torch.empty(n, 3, 24, 24, dtype=torch.uint8), torch.zeros(n, dtype=torch.long)))
            for n in (8, 8, 3)
        ]
        with gpu.waits_allowed() as waits:
            validate(model, FakeLoader(batches), 19 * world, CUDA, precision, 1, True, each_step)
    return waits


class FakeCentralLoader(FakeLoader):
    """Batches of central crops in place of a `central_loader`.

    Args:
        gpu: the FakeGPU. sizes: of the batches.
        world: number of ranks, whose shares are equal; this is rank 1, or 0 of one.
        bad: whether the first image of each batch can't be decoded.
    """

    def __init__(self, gpu, sizes, world, bad):
        batches = []
        for n in sizes:
            labels = torch.arange(n)
            labels[0] = CentralViews.BAD if bad else 0
            batches.append(pinned(gpu, (torch.empty(n, 3, 24, 24, dtype=torch.uint8), labels)))
        super().__init__(batches)
        images, first = sum(sizes), sum(sizes) * (world > 1)
        self.dataset, self.sampler = FakeFolder(images * world), range(first, first + images)


class FakeFolder:
    """An ImageFolder and its CentralViews in one."""

    BAD = CentralViews.BAD

    def __init__(self, images):
        self.labels, self.classes, self.folder = np.arange(images, dtype=np.int32) % 4, list("abcd"), self

    def __len__(self):
        return len(self.labels)


def check_knn(precision=None, world=1, bad=False):
    """A kNN classification; returns what made the host wait, and how often it had waited after each step."""
    with contextlib.ExitStack() as stack:
        gpu = stack.enter_context(fake_gpu())
        if world > 1:
            stack.enter_context(FakeNCCL(world, rank=1).installed())
            for module in ("features", "knn"):  # NCCL's objects are bytes that the host reads
                stack.enter_context(mock.patch(f"moco.evaluation.{module}.from_all", lambda x: [x] * world))
        network, dim = freeze(TinyNet(4))
        val, train = (FakeCentralLoader(gpu, sizes, world, bad) for sizes in ((8, 5), (8, 8, 8, 3)))
        with gpu.waits_allowed():
            network.to(CUDA)
            normalize._constants(CUDA)
        waited = []
        with gpu.waits_allowed() as waits:
            before = len(gpu.waits)
            done = lambda _: waited.append(len(gpu.waits) - before)  # noqa: E731
            accuracies, _ = knn_accuracy(network, dim, val, train, (1, 20), CUDA, precision, done)
            assert len(accuracies) == 2
    return waits, waited


def check_knn_waits(**how):
    """Raises AssertionError if the host waits for the GPU before the result of a kNN classification."""
    waits, waited = check_knn(**how)
    assert not any(waited), f"waits between the batches: {waits}"
    assert len(waits) == 1, f"more than one wait: {waits}"


def check_variance(precision=None, world=1):
    """Measures the variance; raises AssertionError if the host waits between the first batch and the result."""
    view, small = View(24), View(12)
    recipes = {"mean": Recipe((view, view)), "small": Recipe((small,), synchronised=True)}
    batches, views = WholeBatches(40, 16, 8, 4, seed=0), needed_views(recipes)
    with contextlib.ExitStack() as stack:
        gpu = stack.enter_context(fake_gpu())
        if world > 1:
            stack.enter_context(FakeNCCL(world, rank=1).installed())
        loader = FakeLoader(
            [
                pinned(gpu, ([torch.empty(8, 3, v.size, v.size, dtype=torch.uint8) for v in views], torch.zeros(8)))
                for _ in batches
            ]
        )
        loader.batch_sampler, waited = batches, []
        with gpu.waits_allowed():
            network = add_projector(TinyNet(4)).to(CUDA)
            normalize._constants(CUDA)
        with gpu.waits_allowed() as waits:
            before = len(gpu.waits)
            done = lambda _: waited.append(len(gpu.waits) - before)  # noqa: E731
            variances(network, 4, recipes, loader, "cpu", 2, CUDA, precision, done)
    assert len(waited) == 8 // world and len(set(waited)) == 1, f"waits between the batches: {waits}"
    assert len(waits) == waited[0] + 1, f"more than one wait after the batches: {waits}"
