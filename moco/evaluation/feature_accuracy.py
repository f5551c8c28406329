"""The accuracy that features reach: kNN classification and logistic regression, by a split or by cross-validation."""

import torch

from moco.evaluation.knn import K, NearestNeighbours
from moco.evaluation.logistic_regression import fit, predict

ITEMS = 4096  # features that are compared with those of the test images at a time


def folds_of(labels, folds):
    """Divides images into folds, each with an equal share of every class; a function of its arguments.

    Args:
        labels: N, long. folds: their number, 2 to N.

    Returns:
        N, long, from 0 to `folds` - 1. The sizes of two folds differ by at most 1, and so do the numbers of images
        of each class in them.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    order = order[labels[order].argsort(stable=True)]
    return torch.empty_like(labels).scatter_(0, order, torch.arange(len(labels)) % folds)


def accuracies(features, labels, classes, parts):
    """Classifies every image of some parts by means of the images outside of that part.

    Args:
        features: N x d. labels: N, long, on the same device. classes: their number.
        parts: bool masks of N images, on the same device: the images that are classified together. No two overlap.

    Returns:
        dict of percentages over all images of all parts: `knn_acc1` and `knn_acc5` (by K neighbours), and
        `regression_acc1` (by logistic regression).
    """
    found, images = torch.zeros(3, dtype=torch.float64, device=features.device), 0
    for test in parts:
        train, known, val, targets = features[~test], labels[~test], features[test], labels[test]
        nearest = NearestNeighbours(val, K)
        for indices, items in zip(torch.arange(len(train)).split(ITEMS), train.split(ITEMS), strict=True):
            nearest.add(indices, items)
        found[:2] += nearest.count_hits(known, targets, classes, [K])[0]
        found[2] += (predict(val, *fit(train, known, classes)) == targets).sum()
        images += len(targets)
    return dict(zip(("knn_acc1", "knn_acc5", "regression_acc1"), (100 * found / images).tolist(), strict=True))
