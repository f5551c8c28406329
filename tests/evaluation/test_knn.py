"""kNN: compared with loops, with scikit-learn if it is installed, and over processes; broken images are left out."""

import math

import numpy as np
import pytest
import torch

from moco.data.file_list import ImageFolder
from moco.data.image_reading import BadImageError
from moco.evaluation import knn
from moco.evaluation.features import encode, encode_all
from moco.evaluation.frozen_backbone import freeze
from moco.evaluation.knn import NearestNeighbours, hits, knn_accuracy, votes
from moco.loader import central_loader
from moco.views.normalize import normalize_images
from tests.ranks import run_ranks
from tests.tiny_net import TinyNet

KS = (1, 5, 20)


def vectors(n, seed):
    """n x 16, of norm 4. Their similarities are exact in float32, so there are many ties."""
    return torch.randn(n, 16, generator=torch.Generator().manual_seed(seed)).sign()


def neighbours_in_loops(queries, items, k):
    """For each query, the k pairs (similarity, index) that come first."""
    found = []
    for q in queries:
        pairs = []
        for i, x in enumerate(items):
            similarity = sum(float(a) * float(b) for a, b in zip(q, x, strict=True))
            pairs.append((similarity / math.sqrt(float(q @ q) * float(x @ x)), i))
        found.append(sorted(pairs, key=lambda pair: (-round(pair[0], 5), pair[1]))[:k])
    return found


def accuracy_in_loops(queries, items, targets, labels, classes, k):
    """(Acc@1, Acc@5) in percent."""
    right = [0, 0]
    for nearest, target in zip(neighbours_in_loops(queries, items, k), targets, strict=True):
        scores = [0.0] * classes
        for similarity, i in nearest:
            scores[labels[i]] += math.exp(similarity / 0.07)
        order = sorted((c for c in range(classes) if scores[c]), key=lambda c: -scores[c])
        right[0] += target in order[:1]
        right[1] += target in order[:5]
    return tuple(100 * n / len(targets) for n in right)


@pytest.mark.parametrize("cells", [1, 100, 2**20])
@pytest.mark.parametrize("block", [1, 7, 50])
def test_neighbours_are_those_of_loops(cells, block, monkeypatch):
    monkeypatch.setattr(knn, "CELLS", cells)
    queries, items = vectors(9, 0), vectors(50, 1)
    nearest = NearestNeighbours(queries, 8)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(2))  # the order of the stream changes nothing
    for indices in order.split(block):
        nearest.add(indices, items[indices])
    similarities, indices = nearest.result()
    expected = neighbours_in_loops(queries, items, 8)
    assert indices.tolist() == [[i for _, i in pairs] for pairs in expected]
    torch.testing.assert_close(similarities, torch.tensor([[s for s, _ in pairs] for pairs in expected]))


def test_the_keys_are_in_the_order_of_the_floats():
    values = torch.tensor([-1.0, -0.5, -1e-40, -0.0, 0.0, 1e-40, 0.5, 1.0])
    nearest = NearestNeighbours(torch.ones(1, 1), 8)
    nearest.keys = knn._keys(values[None], torch.arange(8)).sort(descending=True).values
    similarities, indices = nearest.result()
    assert similarities[0].tolist() == values.flip(0).tolist()
    assert indices[0].tolist() == [7, 6, 5, 3, 4, 2, 1, 0]  # 0 and -0 are equal, so the lower index comes first


def test_missing_neighbours_do_not_vote():
    nearest = NearestNeighbours(vectors(2, 0), 4)
    nearest.add(torch.tensor([3]), vectors(1, 1))
    similarities, indices = nearest.result()
    assert indices.tolist() == [[3, -1, -1, -1]] * 2 and similarities[:, 1:].eq(-torch.inf).all()
    scores = votes(similarities, torch.tensor([[1, 0, 0, 0]] * 2), 3, 4)
    assert (scores > 0).tolist() == [[False, True, False]] * 2


def test_ties_between_classes_and_classes_without_votes():
    scores = torch.tensor([[0.0, 2.0, 2.0, 0.0]] * 4)
    targets = torch.tensor([0, 1, 2, 3])
    assert hits(scores, targets, 1).tolist() == [False, True, False, False]
    assert hits(scores, targets, 2).tolist() == hits(scores, targets, 5).tolist() == [False, True, True, False]


def loaders(imagenet, batch=5, **more):
    return [central_loader(ImageFolder(imagenet / split), 24, batch, 0, **more) for split in ("val", "train")]


def tiny_network():
    torch.manual_seed(0)
    return freeze(TinyNet(4))


def accuracies(imagenet, batch=5, skip_bad=False):
    network, dim = tiny_network()
    done = []
    found = knn_accuracy(
        network, dim, *loaders(imagenet, batch, skip_bad=skip_bad), KS, torch.device("cpu"), None, done.append
    )
    return *found, len(done)


def plain_features(network, loader):
    views, labels = zip(*[loader.dataset[i] for i in range(len(loader.dataset))], strict=True)
    with torch.no_grad():
        return network(normalize_images(torch.stack(views))), list(labels)


def test_the_accuracy_is_that_of_loops(imagenet):
    network, _ = tiny_network()
    (queries, targets), (items, labels) = (plain_features(network, loader) for loader in loaders(imagenet))
    found, left_out, steps = accuracies(imagenet)
    assert left_out == 0 and steps == 8 + 20  # 36 and 96 images in batches of 5
    for k, accuracy in zip(KS, found, strict=True):
        assert accuracy == pytest.approx(accuracy_in_loops(queries, items, targets, labels, 12, k), abs=1e-9), k
    assert len(set(found)) > 1 and all(0 < acc1 < 100 and acc1 <= acc5 for acc1, acc5 in found)


def test_the_accuracy_is_that_of_scikit_learn(imagenet):
    neighbors = pytest.importorskip("sklearn.neighbors")
    network, _ = tiny_network()
    (queries, targets), (items, labels) = (plain_features(network, loader) for loader in loaders(imagenet))
    queries, items = (torch.nn.functional.normalize(x).double().numpy() for x in (queries, items))
    for k, (acc1, _) in zip(KS, accuracies(imagenet)[0], strict=True):
        theirs = neighbors.KNeighborsClassifier(
            k, algorithm="brute", weights=lambda d: np.exp((1 - d**2 / 2) / 0.07)
        ).fit(items, labels)
        assert acc1 == pytest.approx(100 * theirs.score(queries, targets), abs=1e-9), k


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_work_and_agree(imagenet, world):
    alone = accuracies(imagenet)[:2]
    shared = run_ranks(accuracies, world, imagenet)
    assert all(one[:2] == alone for one in shared)
    assert {one[2] for one in shared} == {math.ceil(36 // world / 5) + math.ceil(96 // world / 5)}


def everything(imagenet):
    network, dim = tiny_network()
    val, train = loaders(imagenet, 7)
    indices, features = encode_all(network, dim, val, torch.device("cpu"))
    nearest = NearestNeighbours(features, 20)
    for block in encode(network, train, torch.device("cpu")):
        nearest.add(*block)
    nearest.merge_ranks()
    return indices, features, *nearest.result()


def test_features_and_neighbours_do_not_depend_on_the_processes(imagenet):
    alone = everything(imagenet)
    assert alone[0].tolist() == list(range(36))
    for shared in run_ranks(everything, 4, imagenet):
        torch.testing.assert_close(shared[1:3], alone[1:3], rtol=0, atol=1e-6)
        same = (shared[3] == alone[3]) | (shared[2] - alone[2]).abs().le(1e-6)
        assert same.all() and torch.equal(shared[0], alone[0])


def more_ranks_than_images(folder):
    network, dim = tiny_network()
    return encode_all(network, dim, central_loader(ImageFolder(folder), 24, 3, 0), torch.device("cpu"))


def test_a_rank_without_images(imagenet, tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("0000.jpg", "0001.jpg"):
        (tmp_path / "a" / name).write_bytes((imagenet / "val" / "star_dots" / name).read_bytes())
    for indices, features in run_ranks(more_ranks_than_images, 4, tmp_path):
        assert indices.tolist() == [0, 1] and features.shape == (2, 6) and features.abs().sum() > 0


def test_broken_images_are_left_out(imagenet, tmp_path):
    """Without them, the result is that of the other images."""
    for split in ("train", "val"):
        for source in (imagenet / split).glob("*/*.jpg"):
            target = tmp_path / "broken" / source.relative_to(imagenet)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(b"no image" if source.name == "0001.jpg" else source.read_bytes())
            if source.name != "0001.jpg":
                target = tmp_path / "without" / source.relative_to(imagenet)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read_bytes())
    without = accuracies(tmp_path / "without")[0]
    for world in (1, 2):
        (found, left_out, _), *_ = run_ranks(accuracies, world, tmp_path / "broken", 5, True)
        assert found == without and left_out == 24
    with pytest.raises(BadImageError, match=r"0001\.jpg"):
        accuracies(tmp_path / "broken")


@pytest.mark.gpu
def test_a_gpu_finds_what_a_cpu_finds(imagenet):
    found = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        network, dim = tiny_network()
        found.append(knn_accuracy(network.to(device), dim, *loaders(imagenet), KS, device)[0])
    cpu, gpu = found
    assert cpu == [pytest.approx(accuracy, abs=100 / 36 + 1e-6) for accuracy in gpu]  # rounding may turn one image
