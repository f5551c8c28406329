"""The intra-image variance: compared with loops, its laws, over processes and workers, and what does not change."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from moco.asymmetry.multicrop import MINI_SCALE
from moco.builder import add_projector
from moco.data.file_list import ImageFolder
from moco.data.sampler import EpochBatchSampler
from moco.data.view_datasets import RandomViews
from moco.evaluation import variance
from moco.evaluation.variance import Recipe, WholeBatches, needed_views, paper_recipes, variances, view_loader
from moco.views.augmentation_recipes import View
from moco.views.normalize import normalize_images
from tests.ranks import run_ranks
from tests.tiny_net import TinyNet

CPU = torch.device("cpu")
WEAK, STRONG, SMALL = View(20, jitter_p=0.0), View(20, randaugment=True), View(12, MINI_SCALE)
RECIPES = {
    "baseline": Recipe((STRONG,)),
    "small": Recipe((SMALL,)),
    "weak": Recipe((WEAK,)),
    "mean": Recipe((STRONG, STRONG)),
    "both": Recipe((WEAK, STRONG), synchronised=True),
    "synchronised": Recipe((STRONG,), synchronised=True),
}


def tiny_network():
    torch.manual_seed(0)
    return add_projector(TinyNet(4))


def found_by(imagenet, augment_on="cpu", workers=0, network=None, batch=9, splits=3):
    folder = ImageFolder(imagenet / "val")
    batches = WholeBatches(len(folder), 27, batch, 3, seed=5)
    loader = view_loader(folder, RECIPES, batches, workers, augment_on)
    steps = []
    found = variances(network or tiny_network(), 4, RECIPES, loader, augment_on, splits, CPU, None, steps.append)
    return found, steps


def in_loops(folder, batches, splits):
    """(variance, standard error) of each of RECIPES, with torch's own batch normalisation, image by image."""
    views = (STRONG, STRONG, SMALL, WEAK)
    dataset, network, of_images = RandomViews(folder, views, batches.seed), tiny_network().train(), {}
    projector, network.fc = network.fc, nn.Identity()
    places = {"baseline": [0], "small": [2], "weak": [3], "mean": [0, 1], "both": [3, 0], "synchronised": [0]}
    for addresses in batches:
        groups = np.split(np.arange(len(addresses)), splits)
        made = [dataset[address][0] for address in addresses]
        with torch.no_grad():
            features = []
            for i in range(len(views)):
                x = normalize_images(torch.stack([one[i] for one in made]))
                features.append(torch.cat([network(x[group]) for group in groups]))
            for name, recipe in RECIPES.items():
                parts = [np.arange(len(addresses))] if recipe.synchronised else groups
                raw = [torch.cat([projector(features[i][part]) for part in parts]) for i in places[name]]
                for (_, index), *encodings in zip(addresses, *raw, strict=True):
                    z = sum(x.double().numpy() for x in encodings) / len(encodings)
                    of_images.setdefault(name, {}).setdefault(index, []).append(z / np.sqrt((z**2).sum()))
    assert needed_views(RECIPES) == views
    return {name: summed_up(images.values()) for name, images in of_images.items()}


def summed_up(images):
    """(mean, standard error) in hundredths of the traces of the covariances of some images' encodings."""
    traces = np.array([sum(np.var(column, ddof=1) for column in zip(*z, strict=True)) for z in images])
    return 100 * traces.mean(), 100 * traces.std(ddof=1) / len(traces) ** 0.5


def test_the_variances_are_those_of_loops(imagenet):
    folder = ImageFolder(imagenet / "val")
    expected = in_loops(folder, WholeBatches(len(folder), 27, 9, 3, seed=5), 3)
    found, steps = found_by(imagenet)
    assert steps == [9] * 3 * 3 and list(found) == list(RECIPES)
    for name, figures in expected.items():
        assert tuple(found[name]) == pytest.approx(figures, rel=1e-4), name
    assert len({round(one.variance, 3) for one in found.values()}) == len(RECIPES)


def test_workers_and_paths_change_nothing(imagenet):
    alone, _ = found_by(imagenet)
    assert found_by(imagenet, workers=2)[0] == alone
    device, _ = found_by(imagenet, augment_on="device")
    for name, (value, error) in alone.items():
        assert tuple(device[name]) == pytest.approx((value, error), rel=0.02), name  # a pixel may differ by a level


@pytest.mark.parametrize("world, batch, common", [(2, 9, 4), (2, 27, 1)])  # of 9 batches, and of 3
def test_processes_share_whole_batches(world, batch, common, imagenet):
    alone, _ = found_by(imagenet, batch=batch)
    for shared, steps in run_ranks(found_by, world, imagenet, "cpu", 0, None, batch):
        assert steps == [batch] * common  # as often on every rank
        for name, figures in alone.items():
            assert tuple(shared[name]) == pytest.approx(tuple(figures), rel=1e-9), name


def test_nothing_of_the_network_changes(imagenet):
    network = tiny_network().eval()
    before = copy.deepcopy(network)
    found_by(imagenet, network=network)
    assert not any(module.training for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert list(map(type, network.modules())) == list(map(type, before.modules()))
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before.state_dict()[name]), name


class Passing(nn.Module):
    """A network whose input is the encoding."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Identity()

    def forward(self, x):
        return self.fc(x)


def variances_of(encodings, recipes, monkeypatch):
    """The variances of given encodings: r x views x N x C."""
    r, _, n, dim = encodings.shape
    monkeypatch.setattr(variance, "finisher", lambda *_: lambda batch: batch)
    batches = WholeBatches(n, n, n, r, seed=0)
    made = [(list(one[:, rows]), None) for (_, rows), one in zip(batches.rows(), encodings, strict=True)]

    class Loader(list):
        batch_sampler = batches

    return variances(Passing(), dim, recipes, Loader(made), "cpu", 1, CPU)


ONE, TWO = {"one": Recipe((WEAK,))}, {"one": Recipe((WEAK,)), "two": Recipe((WEAK, WEAK))}


def noise(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_one_view_repeated_has_no_variance(monkeypatch):
    (found,) = variances_of(noise(1, 1, 20, 16).repeat(5, 1, 1, 1) * 7, ONE, monkeypatch).values()
    assert found == pytest.approx((0, 0), abs=1e-9)


def test_random_directions_have_a_variance_of_100(monkeypatch):
    (found,) = variances_of(noise(16, 1, 100, 32), ONE, monkeypatch).values()
    assert found.variance == pytest.approx(100, abs=4 * found.standard_error) and found.standard_error < 0.5


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_the_mean_of_two_encodings_has_the_variance_that_theory_says(share, monkeypatch):
    centres = nn.functional.normalize(noise(1, 1, 200, 256, seed=2), dim=3) * (1 - share) ** 0.5
    encodings = centres + noise(8, 2, 200, 256) * (share / 256) ** 0.5
    one, two = (x.variance / 100 for x in variances_of(encodings, TWO, monkeypatch).values())
    assert one == pytest.approx(share, rel=0.03) and two == pytest.approx(one / (2 - one), rel=0.03)


def test_the_standard_error_is_that_of_the_mean_over_images(monkeypatch):
    found = [variances_of(x, ONE, monkeypatch)["one"] for x in noise(8, 1, 3200, 4).split(32, dim=2)]
    spread = np.std([one.variance for one in found], ddof=1)
    assert np.mean([one.standard_error for one in found]) == pytest.approx(spread, rel=0.25)


def test_batches(monkeypatch):
    def batches_of(world, seed=3):
        monkeypatch.setattr(variance, "world_size", lambda: world)
        found = []
        for r in range(world):
            monkeypatch.setattr(variance, "rank", lambda r=r: r)
            sampler = WholeBatches(50, 12, 4, 5, seed)
            assert len(list(sampler)) == len(sampler)
            found += sampler
        return found

    found = batches_of(1)
    assert len(found) == 3 * 5 and all(len({index for _, index in batch}) == 4 for batch in found)
    addresses = [address for batch in found for address in batch]
    assert len(set(addresses)) == 12 * 5 and len({index for _, index in addresses}) == 12
    companions = {frozenset(index for _, index in batch) for batch in found}
    assert len(companions) > 10  # other images meet in each view
    for world in (2, 4, 20):
        assert sorted(batches_of(world)) == sorted(found)
    assert {index for batch in batches_of(1, 4) for _, index in batch} != {index for _, index in addresses}
    training = EpochBatchSampler(50, 50, 3)
    assert not {epoch for epoch, _ in addresses} & {epoch for epoch, _ in next(iter(training))}


@pytest.mark.parametrize("images, batch, expected", [(36, 8, (32, 8)), (36, 36, (36, 36)), (36, 256, (36, 36))])
def test_incomplete_batches_are_dropped_but_one_is_kept(images, batch, expected):
    assert variance.whole_batches(images, batch) == expected


def test_the_recipes_are_those_of_the_designs():
    recipes = paper_recipes(64, ratio=(1.0, 1.0))
    base = {"size": 64, "ratio": (1.0, 1.0)}
    assert list(recipes) == [
        *("baseline", "multicrop_small", "multicrop_full", "scalemix", "stronger", "weaker", "mean_encoding"),
        "asym_bn",
    ]
    mixed = recipes.pop("scalemix").views
    assert [view.mixed for view in mixed] == [True]
    weak = {"scale": (0.08, 1.0), "jitter_p": 0.0, "gray_p": 0.0, "blur_p": 0.0}
    assert recipes == {
        "baseline": Recipe((View(**base),)),
        "multicrop_small": Recipe((View(**{**base, "size": 27}, scale=(0.05, 0.14)),)),
        "multicrop_full": Recipe((View(**base, scale=(0.14, 1.0)),)),
        "stronger": Recipe((View(**base, randaugment=True),)),
        "weaker": Recipe((View(**base, **weak),)),
        "mean_encoding": Recipe((View(**base), View(**base))),
        "asym_bn": Recipe((View(**base),), synchronised=True),
    }
    assert len(needed_views(recipes)) == 6  # asym_bn and mean_encoding use the baseline's view
    own = paper_recipes(64, 20, scale=(0.5, 1.0))
    assert own["multicrop_full"].views[0].scale == (0.5, 1.0) and own["multicrop_small"].views[0].size == 20
