"""Logistic regression on frozen features: linear classification with nothing to tune.

The features are standardised. The classifier minimises 0.5 ||W||^2 + C * (sum of the cross entropies) with C = 1, and
its bias is not penalised, as in scikit-learn's multinomial LogisticRegression. L-BFGS finds this one minimum in
float64, so that there is no learning rate, no schedule, and no seed.

No standardised features are stored: the weights for x' = (x - mean) / std are, divided by std, weights for x. So the
memory beside the features is that of some parts of CELLS numbers, and of 2 * HISTORY gradients: for 2048 features and
1,000 classes 0.3 GB.
"""

import torch
import torch.nn.functional as F

C = 1.0  # inverse strength of the penalty
GRADIENT = 1e-5  # largest absolute entry of the gradient, of the objective divided by C * N, at which the search ends
ITERATIONS = 10_000  # at most; some hundred are usual
HISTORY = 100  # steps that L-BFGS remembers; for 1,800 x 512 features it needs 653 steps with 100, 1,017 with 10
CELLS = 2**24  # numbers of the features, and logits, that are computed in float64 at a time
CONSTANT = 1e-6  # a feature whose standard deviation is a smaller share of its mean counts as constant


def moments(parts):
    """Mean and standard deviation (divided by N, as in scikit-learn's StandardScaler) of N x d features.

    Args:
        parts: the features in parts, a list of tensors, n x d each.

    Returns:
        (mean, std): d each, float64. For a feature that is constant, std is 1, so that it is only shifted.
    """
    rows = sum(map(len, parts))
    mean = sum(x.double().sum(0) for x in parts) / rows
    std = (sum((x.double() - mean).square_().sum(0) for x in parts) / rows).sqrt()
    std[std <= CONSTANT * mean.abs()] = 1
    return mean, std


def fit(features, labels, classes):
    """Standardises the features, and finds the weights and the bias of the classifier.

    Args:
        features: N x d, float32 or float64. labels: N, long, on the same device, each smaller than `classes`.

    Returns:
        (W, b): classes x d and classes, float64, for features that are not standardised.

    Raises:
        RuntimeError: the gradient is not as small as GRADIENT after ITERATIONS steps.
    """
    rows = rows_at_a_time(classes, features.shape[1])
    parts = features.split(rows)
    mean, std = moments(parts)
    W = torch.zeros(classes, features.shape[1], dtype=torch.float64, device=features.device, requires_grad=True)
    b = torch.zeros(classes, dtype=torch.float64, device=features.device, requires_grad=True)
    search = torch.optim.LBFGS(
        [W, b],
        max_iter=ITERATIONS,
        max_eval=2 * ITERATIONS,
        history_size=HISTORY,
        tolerance_grad=GRADIENT,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def for_raw_features():
        scaled = W / std
        return scaled, b - scaled @ mean

    def objective():
        search.zero_grad()
        penalty = W.square().sum() / (2 * C * len(features))
        penalty.backward()
        total = penalty.detach()
        for x, y in zip(parts, labels.split(rows), strict=True):
            loss = F.cross_entropy(F.linear(x.double(), *for_raw_features()), y, reduction="sum") / len(features)
            loss.backward()
            total += loss.detach()
        return total

    search.step(objective)
    objective()
    if (largest := max(W.grad.abs().max(), b.grad.abs().max()).item()) > GRADIENT:
        raise RuntimeError(f"the gradient of the logistic regression is still {largest:.1e}, not {GRADIENT:g} at most")
    with torch.no_grad():
        return for_raw_features()


def predict(features, W, b):
    """The class of each of N x d features, which are not standardised: N, long."""
    return torch.cat([F.linear(x.double(), W, b).argmax(1) for x in features.split(rows_at_a_time(*W.shape))])


def rows_at_a_time(classes, d):
    """The number of rows whose features and whose logits are CELLS numbers at most each."""
    return max(1, CELLS // max(classes, d))
