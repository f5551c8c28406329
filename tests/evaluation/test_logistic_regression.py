"""Logistic regression: its minimum by Newton's method and by scikit-learn, if it is installed; constant features."""

import numpy as np
import pytest
import torch

from moco.evaluation import logistic_regression
from moco.evaluation.logistic_regression import GRADIENT, fit, predict, standardise

N, D, CLASSES = 60, 4, 3


@pytest.fixture
def data():
    """Standardised features of classes that overlap, and their labels."""
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (N,), generator=g)
    features = 3 + torch.randn(N, D, generator=g) + torch.randn(CLASSES, D, generator=g)[labels]
    return standardise(features)[0], labels


def by_newton(features, labels, classes):
    """The minimum of 0.5 ||W||^2 + the sum of the cross entropies: W and the bias, whose mean is 0."""
    x = np.hstack([features.double().numpy(), np.ones((len(features), 1))])
    penalty = np.diag([1.0] * (x.shape[1] - 1) + [1e-9])  # the bias is free; the tiny share fixes its mean
    target, w = np.eye(classes)[labels.numpy()], np.zeros((classes, x.shape[1]))
    for _ in range(30):
        p = np.exp(x @ w.T)
        p /= p.sum(1, keepdims=True)
        gradient = (p - target).T @ x + w @ penalty
        hessian = np.kron(np.eye(classes), penalty)
        for row, q in zip(x, p, strict=True):
            hessian += np.kron(np.diag(q) - np.outer(q, q), np.outer(row, row))
        w -= np.linalg.solve(hessian, gradient.ravel()).reshape(w.shape)
    return w[:, :-1], w[:, -1]


@pytest.mark.parametrize("cells", [2**24, 7 * D])
def test_the_minimum_is_that_of_newtons_method(cells, data, monkeypatch):
    monkeypatch.setattr(logistic_regression, "CELLS", cells)
    W, b = fit(*data, CLASSES)
    theirs, bias = by_newton(*data, CLASSES)
    np.testing.assert_allclose(W.numpy(), theirs, atol=5e-3)  # the gradient at the end of the search is not 0
    np.testing.assert_allclose((b - b.mean()).numpy(), bias - bias.mean(), atol=5e-3)
    scores = data[0].double().numpy() @ theirs.T + bias
    assert predict(data[0], W, b).tolist() == scores.argmax(1).tolist()


def test_the_gradient_is_small_and_not_reaching_that_is_an_error(data, monkeypatch):
    W, b = (tensor.requires_grad_() for tensor in fit(*data, CLASSES))
    x, y = data[0].double(), data[1]
    logits = x @ W.T + b
    loss = (logits.logsumexp(1) - logits[range(N), y]).sum() + 0.5 * (W**2).sum()
    assert max(g.abs().max() for g in torch.autograd.grad(loss / N, (W, b))) <= GRADIENT
    monkeypatch.setattr(logistic_regression, "ITERATIONS", 1)
    with pytest.raises(RuntimeError, match=r"the gradient of the logistic regression is still .*, not 1e-05 at most"):
        fit(*data, CLASSES)


def test_it_is_that_of_scikit_learn(data):
    linear_model = pytest.importorskip("sklearn.linear_model")
    theirs = linear_model.LogisticRegression(C=1, tol=1e-8, max_iter=1000).fit(*(x.numpy() for x in data))
    W, b = fit(*data, CLASSES)
    np.testing.assert_allclose(W.numpy(), theirs.coef_, atol=5e-3)
    np.testing.assert_allclose(b - b.mean(), theirs.intercept_ - theirs.intercept_.mean(), atol=5e-3)


def test_features_are_standardised_by_those_of_the_training():
    g = torch.Generator().manual_seed(1)
    train, val = (5 + 7 * torch.randn(n, 3, generator=g) for n in (50, 20))
    train[:, 1], val[:, 1] = 0.1, torch.linspace(0, 1, 20)  # 0.1 is not exact in float32
    ours, others = standardise(train, val)
    for j in (0, 2):
        mean = sum(train[:, j].tolist()) / 50
        std = (sum((x - mean) ** 2 for x in train[:, j].tolist()) / 50) ** 0.5
        for before, after in ((train, ours), (val, others)):
            expected = [(x - mean) / std for x in before[:, j].tolist()]
            np.testing.assert_allclose(after[:, j], expected, rtol=1e-5, atol=1e-6)
    assert ours[:, 1].abs().max() < 1e-6 and ours.dtype == torch.float32
    np.testing.assert_allclose(others[:, 1], val[:, 1] - 0.1, atol=1e-6)  # only shifted


def test_features_that_are_0_everywhere():
    (x,) = standardise(torch.zeros(4, 2))
    assert x.tolist() == [[0, 0]] * 4
