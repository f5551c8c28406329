"""The tensor path against the PIL path: each operation, whole recipes, distributions; the same draws for both."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image, ImageFilter

from moco.asymmetry.asym_aug import asym_aug_plan
from moco.asymmetry.mean_encoding import mean_encoding_plan
from moco.asymmetry.multicrop import multicrop_plan
from moco.asymmetry.scalemix import mix_box, scalemix_plan
from moco.views import augment_on_device
from moco.views.augment_on_device import Layout, apply, apply_recipes, crop_resized
from moco.views.augment_with_pillow import apply_recipe, render
from moco.views.augmentation_recipes import Side, View, ViewPlan, baseline_plan
from moco.views.normalize import STD, normalize_images
from moco.views.pillow_ops_as_tensors import box_kernel, gaussian_blur
from moco.views.randaugment import ARGUMENTS, NAMES, Operation
from moco.views.random_parameters import JITTER, Crop, Draw, draw_view, uniforms_needed
from moco.views.steps_on_device import GEOMETRIC, row_of, steps_of
from tests.views.photographs import hard_cases, photograph

SIZE = 48
IMAGES = {"photograph": photograph(SIZE, SIZE), **hard_cases(SIZE, SIZE)}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
WHOLE = Crop(0, 0, SIZE, SIZE)
MAGNITUDES = (2.5, 7.5, 9.6, 10.0)


def jittered(name, low, high):
    return [Draw(WHOLE, jitter=((name, factor),)) for factor in np.linspace(low, high, 9).tolist()]


def operated(name, bicubic=False):
    to_argument = ARGUMENTS[name] or (lambda f, sign: None)
    arguments = [to_argument(m / 10, sign) for m in MAGNITUDES for sign in (-1, 1)]
    return [Draw(WHOLE, operations=(Operation(name, a, bicubic),)) for a in arguments]


# Name to (draws, the mean absolute difference in levels that an image may have).
OPERATIONS = {
    **{name: (jittered(name, 0.6, 1.4), 1.5) for name in JITTER[:3]},
    "hue": (jittered("hue", -0.1, 0.1), 1.5),
    "gray": ([Draw(WHOLE, gray=True)], 1.5),
    "blur": ([Draw(WHOLE, sigma=s) for s in np.linspace(0.1, 2.0, 9).tolist()], 1.5),
    "flip": ([Draw(WHOLE, flip=True)], 0.5),
    **{name: (operated(name), 0.5 if name in ("Invert", "Posterize", "Solarize") else 1.5) for name in NAMES},
    **{f"{name}, bicubic": (operated(name, bicubic=True), 1.5) for name in GEOMETRIC},
}


def on_device(x, rows, device="cpu"):
    y, place = apply_recipes(x.to(device), torch.tensor(rows, dtype=torch.float32))
    return y.cpu()[place]


@pytest.mark.parametrize("device", DEVICES)
def test_every_operation_is_pillows(device):
    table = []
    for name, (draws, limit) in OPERATIONS.items():
        gaps = {}
        for key, image in IMAGES.items():
            x = TF.pil_to_tensor(image).expand(len(draws), -1, -1, -1)
            expected = torch.stack([TF.pil_to_tensor(apply_recipe(d, SIZE, image)) for d in draws]).float()
            result = on_device(x, [row_of(d) for d in draws], device)
            assert torch.equal(result, result.round()) and result.min() >= 0 and result.max() <= 255
            gaps[key] = (result - expected).abs().mean((1, 2, 3)).max().item()
        table.append(f"{name:24s}" + "".join(f"{gap:12.3f}" for gap in gaps.values()))
        assert max(gaps.values()) <= limit, "\n".join(table)
    print("\n" + f"{'mean difference, levels':24s}" + "".join(f"{key:>12s}" for key in IMAGES), *table, sep="\n")


@pytest.mark.parametrize("height, width", [(1, 1), (2, 5), (16, 3), (40, 64)])
def test_a_blur_of_any_width_is_pillows(height, width):
    sigmas = [0.01, 1.9, 2.4, 2.45, 2.5, 3, 5, 10, 31, 50, 1000]
    for image in (photograph(width, height), hard_cases(width, height)["stripes"]):
        x = TF.pil_to_tensor(image).float().repeat(len(sigmas), 1, 1, 1)
        expected = [TF.pil_to_tensor(image.filter(ImageFilter.GaussianBlur(sigma))) for sigma in sigmas]
        result = gaussian_blur(x, box_kernel(torch.tensor(sigmas), max(height, width)))
        assert (result - torch.stack(expected)).abs().max() <= 1


def test_the_blur_of_the_recipes_keeps_its_five_taps():
    assert box_kernel(torch.tensor([0.1, 2.0]), 224).shape == (2, 5) and box_kernel(torch.empty(0), 224).shape == (
        0,
        5,
    )
    assert box_kernel(torch.tensor([2.0, 3.0]), 224).shape == (2, 7)
    assert box_kernel(torch.tensor([1000.0]), 224).shape == (1, 2 * 223 + 1)  # no memory for taps outside the image


def test_crops_are_pillows():
    image = photograph(301, 199, seed=4)
    pixels = TF.pil_to_tensor(image).permute(1, 2, 0).contiguous()
    for size, crop in ((32, Crop(10, 20, 150, 200)), (224, Crop(0, 0, 199, 301)), (96, Crop(50, 60, 40, 31))):
        out = torch.zeros(size, size, 3, dtype=torch.uint8)
        crop_resized(pixels, crop, out)
        expected = TF.pil_to_tensor(TF.resized_crop(image, *crop, [size, size])).permute(1, 2, 0)
        gap = (out.float() - expected.float()).abs()
        assert gap.mean() <= 0.5 and gap.max() <= 1


def drawn(plan, images, draws_each, seed):
    """Yields (image, the draws of the plan's views) for M = len(images) * draws_each draws."""
    for i in range(len(images) * draws_each):
        image, rng = images[i // draws_each], np.random.default_rng((seed, i))
        yield image, [draw_view(v, *image.size, rng.random(uniforms_needed(v)).tolist()) for v in plan.views]


def tensor_path(plan, images, draws_each, seed=0, device="cpu"):
    """Each view of the plan by the tensor path: a list of M x 3 x size x size, normalised."""
    layout = Layout(plan.views)
    n = len(images) * draws_each
    crops = {s: torch.empty(n, len(r), s, s, 3, dtype=torch.uint8) for s, r in layout.rows.items()}
    rows = []
    for i, (image, draws) in enumerate(drawn(plan, images, draws_each, seed)):
        pixels = TF.pil_to_tensor(image).permute(1, 2, 0).contiguous()
        layout.crop(pixels, draws, {size: x[i] for size, x in crops.items()})
        rows.append(layout.rows_of(draws))
    views = layout.finish({size: x.to(device) for size, x in crops.items()}, torch.tensor(rows))
    return [x.cpu() for x in views]


def pil_path(plan, images, draws_each, seed=0):
    """As `tensor_path`, by PIL."""
    views = [
        [render(d, v.size, image) for d, v in zip(draws, plan.views, strict=True)]
        for image, draws in drawn(plan, images, draws_each, seed)
    ]
    return [normalize_images(torch.stack(view)) for view in zip(*views, strict=True)]


def levels(x):
    """The size of a difference of normalised values, in levels."""
    return x.abs() * torch.tensor(STD).view(3, 1, 1) * 255


def plans():
    base = baseline_plan(48)
    every = mean_encoding_plan(asym_aug_plan(scalemix_plan(multicrop_plan(base, 24))))
    named = {"baseline": base, "multicrop": multicrop_plan(base, 24), "scalemix": scalemix_plan(base)}
    named |= {"asym_aug": asym_aug_plan(base), "mean_encoding": mean_encoding_plan(base), "all": every}
    mixed, small = (View(size, mix_box=mix_box) for size in (48, 24))
    return named | {"every view is mixed": ViewPlan(Side((mixed,), (small,)), Side((mixed,), (small,)))}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", plans())
def test_whole_recipes_are_pillows(name, device):
    images = [photograph(160, 120, seed=s) for s in range(4)]
    plan = plans()[name]
    for ours, theirs in zip(tensor_path(plan, images, 12, device=device), pil_path(plan, images, 12), strict=True):
        gaps = levels(ours - theirs).mean((1, 2, 3))
        # Equalize and autocontrast stretch a last bit where a crop has few levels, in any implementation.
        assert gaps.mean() <= 0.75 and gaps.quantile(0.9) <= 1.5
        assert gaps.max() <= (64 if name in ("asym_aug", "all") else 1.5)


def statistics(x):
    """M x 14: each view's channel means, deviations, and mean squared gradient; then their squares."""
    gradient = x.diff(dim=-1).square().mean((1, 2, 3)) + x.diff(dim=-2).square().mean((1, 2, 3))
    first = torch.cat((x.mean((2, 3)), x.std((2, 3)), gradient[:, None]), dim=1).double()
    return torch.cat((first, first.square()), dim=1)


@pytest.mark.parametrize(
    "view", [View(24), View(24, randaugment=True), View(24, mix_box=mix_box), View(12, (0.05, 0.14))]
)
def test_both_paths_have_the_same_distribution(view):
    """Over thousands of draws, not the same ones, on several images: each statistic within its sampling error."""
    images = [photograph(60, 45, seed=s) for s in range(3)]
    plan = SimpleNamespace(views=(view,))
    ours = statistics(tensor_path(plan, images, 700, seed=1)[0])
    theirs = statistics(pil_path(plan, images, 700, seed=2)[0])
    error = (ours.var(0) / len(ours) + theirs.var(0) / len(theirs)).sqrt()
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 4.5 * error).all()


def test_a_result_does_not_depend_on_its_batch(monkeypatch):
    plan, images = plans()["all"], [photograph(160, 120)]
    whole = tensor_path(plan, images, 9)
    monkeypatch.setattr(augment_on_device, "PIXELS_AT_ONCE", 4 * 48 * 48)
    parts = tensor_path(plan, images, 9)
    fewer = tensor_path(plan, images, 2)
    for a, b, c in zip(whole, parts, fewer, strict=True):
        assert levels(a - b).mean() < 0.01 and levels(a[:2] - c).mean() < 0.01


@pytest.mark.parametrize("size", [1, 2, 3])
def test_views_of_a_few_pixels(size):
    image = photograph(size, size)
    draws = [Draw(Crop(0, 0, size, size), operations=d.operations) for name in NAMES for d in operated(name)]
    x = TF.pil_to_tensor(image).expand(len(draws), -1, -1, -1)
    expected = torch.stack([TF.pil_to_tensor(apply_recipe(d, size, image)) for d in draws]).float()
    assert (on_device(x, [row_of(d) for d in draws]) - expected).abs().mean() < 0.5


@pytest.mark.gpu
def test_the_host_never_waits_for_the_device():
    plan = plans()["all"]
    layout = Layout(plan.views)
    crops = {s: torch.zeros(8, len(r), s, s, 3, dtype=torch.uint8).cuda() for s, r in layout.rows.items()}
    rows = []
    for i in range(8):
        rng = np.random.default_rng(i)
        draws = [draw_view(v, 48, 48, rng.random(uniforms_needed(v)).tolist()) for v in plan.views]
        rows.append(layout.rows_of(draws))
    rows = torch.tensor(rows)
    layout.finish(dict(crops), rows)
    torch.cuda.set_sync_debug_mode("error")
    try:
        layout.finish(crops, rows)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_layout_of_all_designs():
    layout = Layout(plans()["all"].views)
    assert layout.rows == {48: [0, 1, 8, 9], 24: [2, 3, 4, 5, 6, 7]}


def test_mixed_views_show_the_other_draws_box():
    plan = scalemix_plan(baseline_plan(24))
    image = Image.fromarray(np.full((40, 50, 3), 77, np.uint8))
    flat = [
        Draw(Crop(0, 0, 40, 50), box=(3, 5, 9, 24), other=Draw(Crop(0, 0, 40, 50), operations=(Operation("Invert"),)))
    ]
    layout = Layout(plan.source.full)
    crops = {24: torch.empty(1, 2, 24, 24, 3, dtype=torch.uint8)}
    layout.crop(TF.pil_to_tensor(image).permute(1, 2, 0).contiguous(), flat, {24: crops[24][0]})
    (view,) = layout.finish(crops, torch.tensor([layout.rows_of(flat)]))
    expected = torch.full((1, 3, 24, 24), 77, dtype=torch.uint8)
    expected[..., 3:9, 5:24] = 255 - 77
    assert torch.equal(view, normalize_images(expected))


@pytest.mark.slow
@pytest.mark.parametrize(
    "device, backend", [("cpu", "eager"), pytest.param("cuda", "inductor", marks=pytest.mark.gpu)]
)
def test_torch_compile_takes_it(device, backend):
    plan = plans()["asym_aug"]
    rng = np.random.default_rng(0)
    view = plan.source.full[0]
    draws = [draw_view(view, 48, 48, rng.random(uniforms_needed(view)).tolist()) for _ in range(24)]
    rows = torch.tensor([row_of(d) for d in draws])
    operations, images, arguments, _ = zip(*steps_of(rows, 48, 48), strict=True)
    images, arguments = ([tensor.to(device) for tensor in tensors] for tensors in (images, arguments))

    def run(x):
        for step in zip(operations, images, arguments, strict=True):
            apply(step[0], x, *step[1:])
        return x

    x = torch.stack([TF.pil_to_tensor(photograph(48, 48, seed=s)) for s in range(24)]).float().to(device)
    compiled = torch.compile(run, dynamic=True, fullgraph=True, backend=backend)
    assert (run(x.clone()) - compiled(x.clone())).abs().mean((1, 2, 3)).max() < 0.5
