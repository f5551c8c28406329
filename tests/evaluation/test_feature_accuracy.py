"""The accuracies of features: against loops, by a split and by cross-validation; and the folds."""

from collections import Counter

import pytest
import torch

from moco.evaluation import feature_accuracy, logistic_regression
from moco.evaluation.feature_accuracy import accuracies, folds_of
from moco.evaluation.logistic_regression import fit
from tests.evaluation.large_tensors import LargeTensors
from tests.evaluation.test_knn import accuracy_in_loops

N, CLASSES = 61, 6


@pytest.fixture
def data():
    """Features of overlapping classes, and their labels."""
    g = torch.Generator().manual_seed(3)
    labels = torch.randint(CLASSES, (N,), generator=g)
    return torch.randn(N, 5, generator=g) + torch.randn(CLASSES, 5, generator=g)[labels], labels


def regression_hits_in_loops(train, known, test, targets):
    """The number of rows of `test` that logistic regression, fitted to `train`, assigns to their class."""
    means = [sum(column) / len(column) for column in train.T.tolist()]
    columns = zip(train.T.tolist(), means, strict=True)
    stds = [(sum((x - mean) ** 2 for x in column) / len(column)) ** 0.5 for column, mean in columns]

    def scaled(rows):
        return torch.tensor([[(x - m) / s for x, m, s in zip(row, means, stds, strict=True)] for row in rows.tolist()])

    W, b = (tensor.tolist() for tensor in fit(scaled(train), known, CLASSES))
    found = 0
    for row, target in zip(scaled(test).tolist(), targets.tolist(), strict=True):
        scores = [sum(w * x for w, x in zip(W[c], row, strict=True)) + b[c] for c in range(CLASSES)]
        found += scores.index(max(scores)) == target
    return found


@pytest.mark.parametrize("folds", [None, 3])
def test_accuracies_are_those_of_loops(folds, data, monkeypatch):
    monkeypatch.setattr(feature_accuracy, "K", 7)
    monkeypatch.setattr(feature_accuracy, "ITEMS", 9)
    features, labels = data
    part = folds_of(labels, folds) if folds else (torch.arange(N) >= 40).long()
    parts = [part == n for n in (range(folds) if folds else [1])]
    found = accuracies(features, labels, CLASSES, parts)
    right, images = [0, 0, 0], 0
    for test in parts:
        rows, others = test.nonzero()[:, 0], (~test).nonzero()[:, 0]
        split = features[rows], features[others], labels[rows], labels[others]
        acc = accuracy_in_loops(split[0], split[1], split[2].tolist(), split[3].tolist(), CLASSES, 7)
        right[0] += acc[0] * len(rows) / 100
        right[1] += acc[1] * len(rows) / 100
        right[2] += regression_hits_in_loops(split[1], split[3], split[0], split[2])
        images += len(rows)
    assert images == (N if folds else 21)
    expected = [100 * n / images for n in right]
    assert list(found) == ["knn_acc1", "knn_acc5", "regression_acc1"]
    assert list(found.values()) == pytest.approx(expected)
    assert 100 / CLASSES < expected[0] < 100  # so that an error could show


def test_the_training_features_are_copied_once(data, monkeypatch):
    features, labels = data
    sizes = [(feature_accuracy, "ITEMS", 5), (feature_accuracy, "K", 2), (logistic_regression, "CELLS", 50)]
    for module, name, value in [*sizes, (logistic_regression, "GRADIENT", 1e-2)]:
        monkeypatch.setattr(module, name, value)
    with LargeTensors(40 * 5 - 1) as large:
        accuracies(features, labels, CLASSES, [torch.arange(N) >= 40])
    assert large.found == [("aten.index.Tensor", (40, 5))]


@pytest.mark.parametrize("folds", [2, 5, N])
def test_folds_have_equal_shares_of_every_class(folds, data):
    labels = data[1]
    part = folds_of(labels, folds)
    assert part.dtype == torch.int64 and torch.equal(part, folds_of(labels, folds))
    for rows in [part, *(part[labels == c] for c in range(CLASSES))]:
        sizes = Counter(rows.tolist())
        counts = [sizes[fold] for fold in range(folds)]
        assert sum(counts) == len(rows) and max(counts) - min(counts) <= 1
    assert not torch.equal(part, torch.arange(N) % folds)  # not by the order of the images


def test_folds_mix_the_images_of_a_class():
    part = folds_of(torch.zeros(100, dtype=torch.long), 2)
    assert 10 < part[:50].sum() < 40
