"""Logistic regression: its minimum by Newton's method and by scikit-learn, if it is installed; constant features."""

import numpy as np
import pytest
import torch

from moco.evaluation import logistic_regression
from moco.evaluation.logistic_regression import GRADIENT, fit, moments, predict
from tests.evaluation.large_tensors import LargeTensors

N, D, CLASSES = 60, 4, 3


@pytest.fixture
def data():
    """Features of classes that overlap, the same after standardisation, and their labels."""
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (N,), generator=g)
    features = 3 + 7 * torch.randn(N, D, generator=g) + 7 * torch.randn(CLASSES, D, generator=g)[labels]
    return features, (features.double() - features.double().mean(0)) / features.double().std(0, correction=0), labels


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
    features, standardised, labels = data
    W, b = fit(features, labels, CLASSES)
    theirs, bias = by_newton(standardised, labels, CLASSES)
    std, mean = features.double().std(0, correction=0), features.double().mean(0)
    np.testing.assert_allclose((W * std).numpy(), theirs, atol=5e-3)  # the gradient is not 0 at the end of the search
    b = b + W @ mean
    np.testing.assert_allclose((b - b.mean()).numpy(), bias - bias.mean(), atol=5e-3)
    scores = standardised.numpy() @ theirs.T + bias
    assert predict(features, W, b - W @ mean).tolist() == scores.argmax(1).tolist()


def test_the_gradient_is_small_and_not_reaching_that_is_an_error(data, monkeypatch):
    _, x, y = data
    W, b = (tensor.requires_grad_() for tensor in fit(x, y, CLASSES))
    logits = x @ W.T + b
    loss = (logits.logsumexp(1) - logits[range(N), y]).sum() + 0.5 * (W**2).sum()
    assert max(g.abs().max() for g in torch.autograd.grad(loss / N, (W, b))) <= GRADIENT
    monkeypatch.setattr(logistic_regression, "ITERATIONS", 1)
    with pytest.raises(RuntimeError, match=r"the gradient of the logistic regression is still .*, not 1e-05 at most"):
        fit(x, y, CLASSES)


def test_it_is_that_of_scikit_learn(data):
    linear_model = pytest.importorskip("sklearn.linear_model")
    _, x, y = data
    theirs = linear_model.LogisticRegression(C=1, tol=1e-8, max_iter=1000).fit(x.numpy(), y.numpy())
    W, b = fit(x, y, CLASSES)
    np.testing.assert_allclose(W.numpy(), theirs.coef_, atol=5e-3)
    np.testing.assert_allclose(b - b.mean(), theirs.intercept_ - theirs.intercept_.mean(), atol=5e-3)


@pytest.mark.parametrize("classes", [CLASSES, 100])
def test_no_tensor_is_larger_than_a_part(classes, data, monkeypatch):
    """The features of ImageNet are 10 GB, so there is no room for a second copy of them, nor for all logits."""
    most = max(N, classes * (D + 1))  # the classes that are predicted; the largest tensor of L-BFGS
    monkeypatch.setattr(logistic_regression, "CELLS", most)
    monkeypatch.setattr(logistic_regression, "GRADIENT", 1e-2)
    features, _, labels = data
    with LargeTensors(most) as large:
        predict(features, *fit(features, labels, classes))
    assert large.found == [] and most < N * max(D, classes)


def test_the_memory_of_the_search_is_bounded(data, monkeypatch):
    monkeypatch.setattr(logistic_regression, "HISTORY", 3)
    made, real = [], torch.optim.LBFGS
    monkeypatch.setattr(torch.optim, "LBFGS", lambda *args, **options: made.append(real(*args, **options)) or made[0])
    fit(data[0], data[2], CLASSES)
    (state,) = made[0].state.values()
    assert state["n_iter"] > 4 and len(state["old_dirs"]) == len(state["old_stps"]) == 3


@pytest.mark.parametrize("rows", [50, 7])
def test_moments_are_those_of_loops(rows):
    features = 5 + 7 * torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
    features[:, 1] = 0.1  # is not exact in float32
    mean, std = moments(features.split(rows))
    for j, column in enumerate(features.T.tolist()):
        assert mean[j] == pytest.approx(sum(column) / 50, rel=1e-12)
        expected = (sum((x - sum(column) / 50) ** 2 for x in column) / 50) ** 0.5
        assert std[j] == (1 if j == 1 else pytest.approx(expected, rel=1e-12))


def test_features_that_are_constant_change_nothing(data):
    features, _, labels = data
    constant = torch.tensor([[0.0, 0.1]]).expand(N, 2)  # 0.1 is not exact in float32
    W, b = fit(torch.cat([features, constant], 1), labels, CLASSES)
    without = fit(features, labels, CLASSES)
    torch.testing.assert_close(W, torch.cat([without[0], torch.zeros(CLASSES, 2).double()], 1), rtol=0, atol=1e-6)
    torch.testing.assert_close(b, without[1], rtol=0, atol=1e-6)
