"""The rules of a GPU, kept on a CPU: what runs on a GPU mixes no devices, waits for nothing and races with nothing."""

from types import SimpleNamespace
from unittest import mock

import pytest
import torch

import main_moco
from moco.asymmetry.asym_bn import _Normalised
from moco.views import augment_on_device
from moco.views.steps_on_device import TABLES, steps_of
from tests import gpu_checks as checks
from tests import gpu_checks_evaluation as evaluations
from tests.fake_gpu import CUDA
from tests.fake_nccl import FakeNCCL
from tests.gpu_checks import ALL, BOTH, OTHER

DESIGNS = [(), *((name,) for name in (*ALL, *OTHER)), ALL, OTHER, BOTH]
NAMES = {(): "baseline", ALL: "all", OTHER: "all on the other sides", BOTH: "all on both sides"}
SMALL = {"crop": 32, "mini": 16}


def named(designs):
    return NAMES.get(designs) or "+".join(designs)


@pytest.mark.parametrize("augment_on", ["device", "cpu"])
@pytest.mark.parametrize("designs", DESIGNS, ids=named)
def test_batches_are_copied_and_augmented_on_one_side_stream(designs, augment_on):
    checks.check_copies(designs, 12, augment_on, **SMALL)


def test_every_step_of_the_recipes_runs():
    seen = set()

    def spy(operation, *arguments):
        seen.add((getattr(operation, "func", operation).__name__, str(getattr(operation, "keywords", ""))))
        return apply(operation, *arguments)

    apply = augment_on_device.apply
    with mock.patch.object(augment_on_device, "apply", spy):
        checks.check_copies(ALL, 256, **SMALL)
    names = {"adjust", "hue", "gray", "gaussian_blur", "flip", "sharpness", "look_up", "autocontrast", "equalize"}
    affine = {("affine", "{'bicubic': True}"), ("affine", "{'bicubic': False}")}
    assert seen == affine | {(name, "") for name in names}
    # Both kinds of steps of the jitter, and all tables: the batch is large enough for each of them.
    plan = main_moco.view_plan(checks.arguments(ALL))
    rows = checks.batch_of_crops(plan, 256)[1][:, 0]
    assert [step.operation.__name__ for step in steps_of(rows, 32, 32)[:7]] == ["adjust"] * 3 + ["hue"] + [
        "adjust"
    ] * 3
    assert {*rows[:, 11].long().tolist(), *rows[:, 14].long().tolist()} == set(range(-1, 15)) and len(TABLES) == 4


# For the device's augmentation of a batch: kernels, GB that they move, and GB in use at most. Before steps were joined
# there were 939, 477, 6,246 and 1,748 kernels; they moved 42.8, 5.3, 91.3 and 10.9 GB.
AUGMENTATION = [
    ((), 256, 386, 40.7, 0.70),
    ((), 32, 198, 5.05, 0.13),
    (ALL, 256, 1100, 85.3, 1.60),
    (ALL, 32, 750, 10.2, 0.21),
]


@pytest.mark.parametrize("designs, batch, launches, moved, peak", AUGMENTATION)
def test_the_augmentation_keeps_its_budget(designs, batch, launches, moved, peak):
    gpu = checks.check_copies(designs, batch)
    assert gpu.launches / 2 <= launches, gpu.operations.most_common()
    assert gpu.moved / 2 <= moved * 1e9 and gpu.peak <= peak * 1e9


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("designs", [(), ALL, OTHER, BOTH], ids=named)
def test_no_step_of_the_pretraining_waits(designs, precision, splits):
    checks.check_step(designs, 8, precision, splits)


@pytest.mark.parametrize("designs, launches", [((), 1060), (ALL, 2237)], ids=["baseline", "all"])
def test_the_step_keeps_its_budget(designs, launches):
    """ResNet-50 in bf16; the backward pass counts one kernel for each node of its graph."""
    gpu = checks.check_step(designs, 32, "bf16", tiny=False, steps=2)
    assert gpu.launches <= launches, gpu.operations.most_common()


@pytest.mark.parametrize("world, rank, splits", [(8, 3, 1), (8, 7, 2), (16, 9, 1)])
@pytest.mark.parametrize("designs", [(), ALL], ids=named)
def test_a_rank_sends_what_nccl_accepts(designs, world, rank, splits):
    _, nccl = checks.check_rank(designs, world, rank, splits=splits)
    images = 4 * (2 if designs else 1)
    assert {name for name, *_ in nccl.calls} == {"all_to_all_single", "all_gather_single"}
    assert nccl.calls["all_to_all_single", (images, 3, 32, 32), (images, 3, 32, 32)] == 3
    if designs:
        group = 8 // splits
        assert nccl.calls["all_gather_single", (group, 2, 1, 6), (1, 2, 1, 6)] == 3
        assert [size for size, _ in nccl.groups] == ([group] * (world // group) if group < world else [])


def test_on_the_other_sides_each_small_view_is_shuffled_and_the_source_synchronised():
    _, nccl = checks.check_rank(OTHER, 8, 3)
    assert nccl.calls["all_to_all_single", (4, 3, 32, 32), (4, 3, 32, 32)] == 3
    assert nccl.calls["all_to_all_single", (4, 3, 16, 16), (4, 3, 16, 16)] == 3 * 6
    assert nccl.calls["all_gather_single", (8, 2, 1, 6), (1, 2, 1, 6)] == 3


def test_the_gradient_of_asym_bn_waits_for_nothing_and_is_one_sum():
    """Autograd does not run on the fake GPU, so its backward pass is called here."""
    nccl, shapes = FakeNCCL(8, 3), ((3, 4, 6), (6,), (3, 6), (3, 6))  # 3 views of 4 samples, 6 features
    with checks.fake_gpu(), nccl.installed():
        saved, gradient = [torch.zeros(shape, device=CUDA) for shape in shapes], torch.zeros(shapes[0], device=CUDA)
        for dtype in (torch.float32, torch.bfloat16):
            x = saved[0].to(dtype)
            step = SimpleNamespace(saved_tensors=(x, *saved[1:]), n=32, eps=1e-5, group=None)
            of_x, of_weight, of_bias, *_ = _Normalised.backward(step, gradient.to(dtype))
            assert of_x.shape == x.shape and of_x.dtype == dtype and of_weight.shape == of_bias.shape == (6,)
    assert dict(nccl.calls) == {("all_reduce", (2, 3, 6)): 2}


@pytest.mark.parametrize("world", [1, 8])
def test_a_log_line_waits_once_and_only_after_the_next_batch_is_queued(world):
    waits = checks.check_epoch(steps=6, print_freq=2, world=world)
    checks.check_waits(waits)
    assert [len(step) for step in waits] == [1, 0, 1, 0, 1, 0]


@pytest.mark.parametrize("lars", [True, False])
@pytest.mark.parametrize("precision", [None, "bf16"])
def test_linear_classification_waits_once_in_a_validation(precision, lars):
    assert len(evaluations.check_linear_classification(precision, lars)) == 1


def test_ranks_of_the_linear_classification_send_what_nccl_accepts():
    assert len(evaluations.check_linear_classification(world=8)) == 3 + 1  # 3 steps of the validation, and its end


@pytest.mark.parametrize("how", [{"precision": "bf16"}, {"bad": True}, {"world": 8}], ids=str)
def test_knn_waits_once(how):
    evaluations.check_knn_waits(**how)


# torch's own copy of a parameter asks for its address, and warns that a fake tensor has none.
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("how", [{"precision": "bf16"}, {"world": 4}], ids=str)
def test_the_variance_waits_once(how):
    evaluations.check_variance(**how)


def test_compiled_batch_normalisation_waits_for_nothing():
    checks.check_compiled_batchnorm()


def test_the_start_and_a_checkpoint_leave_a_model_that_trains():
    checks.check_start_and_save()
