"""Logistic regression on frozen features: linear classification with nothing to tune.

The features are standardised. The classifier minimises 0.5 ||W||^2 + C * (sum of the cross entropies) with C = 1, and
its bias is not penalised, as in scikit-learn's multinomial LogisticRegression. L-BFGS finds this one minimum in
float64, so that there is no learning rate, no schedule, and no seed.
"""

import torch
import torch.nn.functional as F

C = 1.0  # inverse strength of the penalty
GRADIENT = 1e-5  # largest absolute entry of the gradient, of the objective divided by C * N, at which the search ends
ITERATIONS = 10_000  # at most; some hundred are usual
CELLS = 2**24  # numbers of the features that are converted to float64 at a time
CONSTANT = 1e-6  # a feature whose standard deviation is a smaller share of its mean counts as constant


def standardise(train, *others):
    """Subtracts the mean of the training features, and divides by their standard deviation, as StandardScaler.

    Args:
        train: N x d, float32 or float64. others: further features, M x d each.

    Returns:
        A list of all of them, in float32; a feature that is constant in `train` is only shifted.
    """
    std, mean = torch.std_mean(train.double(), dim=0, correction=0)
    std[std <= CONSTANT * mean.abs()] = 1
    return [((x - mean) / std).float() for x in (train, *others)]


def fit(features, labels, classes):
    """Finds the weights and the bias of the classifier.

    Args:
        features: N x d, standardised. labels: N, long, on the same device, each smaller than `classes`.

    Returns:
        (W, b): classes x d and classes, float64.

    Raises:
        RuntimeError: the gradient is not as small as GRADIENT after ITERATIONS steps.
    """
    rows = max(1, CELLS // features.shape[1])
    parts = list(zip(features.split(rows), labels.split(rows), strict=True))
    W = torch.zeros(classes, features.shape[1], dtype=torch.float64, device=features.device, requires_grad=True)
    b = torch.zeros(classes, dtype=torch.float64, device=features.device, requires_grad=True)
    search = torch.optim.LBFGS(
        [W, b],
        max_iter=ITERATIONS,
        max_eval=2 * ITERATIONS,
        tolerance_grad=GRADIENT,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def objective():
        search.zero_grad()
        penalty = W.square().sum() / (2 * C * len(features))
        penalty.backward()
        total = penalty.detach()
        for x, y in parts:
            loss = F.cross_entropy(F.linear(x.double(), W, b), y, reduction="sum") / len(features)
            loss.backward()
            total += loss.detach()
        return total

    search.step(objective)
    objective()
    if (largest := max(W.grad.abs().max(), b.grad.abs().max()).item()) > GRADIENT:
        raise RuntimeError(f"the gradient of the logistic regression is still {largest:.1e}, not {GRADIENT:g} at most")
    return W.detach(), b.detach()


def predict(features, W, b):
    """The class of each of N x d standardised features: N, long."""
    return torch.cat([F.linear(x.double(), W, b).argmax(1) for x in features.split(max(1, CELLS // W.shape[1]))])
