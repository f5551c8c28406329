"""What the log shows beside loss and accuracy: spread of the queries, similarity to keys, size of the gradient.

They are computed only in steps that are printed. Each process sends sums over its samples, so the printed values are
those of the global batch and do not depend on the number of processes.
"""

import torch

from moco.pipe_safe_print import say

COLLAPSED = 0.1  # a spread below this, for LOW_STEPS steps, is a collapse
FLAT = 0.01  # a loss that differs by less than this share from the blind guess's, for FLAT_STEPS steps, learns nothing
LOW_STEPS, FLAT_STEPS = 200, 1000


@torch.no_grad()
def gradient_norm(net, scaler=None):
    """The L2 norm of all gradients of `net`, a scalar tensor without the factor of the loss scaler.

    Call it after the backward pass, when the gradients are already averaged over the processes, and before the
    optimizer's step.
    """
    norm = torch.nn.utils.get_total_norm([p.grad for p in net.parameters() if p.grad is not None])
    return norm if scaler is None else norm / scaler.scale(torch.ones_like(norm))


def contrast_figures(net, logits, scaler):
    """The `gradient_norm` and the `contrast_sums` of a step; `net` is a MoCo, or DistributedDataParallel around it."""
    model = getattr(net, "module", net)
    return gradient_norm(net, scaler), contrast_sums(model.q, logits[0], model.T)


@torch.no_grad()
def contrast_sums(q, logits, T):
    """Sums over this process's samples, from which `statistics_of` computes the figures of all processes.

    Args:
        q: normalised queries of a full-size view, N x C. logits: of these queries, N x (1 + K). T: the temperature.

    Returns:
        3 + 2 C numbers, float64: N; the sums of positive similarities and of each query's mean negative similarity;
        the sums of q and of q squared.
    """
    q = q.double()
    positive, negative = T * logits[:, 0].double().sum(), T * logits[:, 1:].mean(dim=1).double().sum()
    n = torch.full_like(positive, len(q))
    return torch.cat([torch.stack([n, positive, negative]), q.sum(0), q.square().sum(0)])


def statistics_of(norms, sums):
    """The figures of the global batch.

    Args:
        norms: for each process, its `gradient_norm`. sums: processes x (3 + 2 C), the `contrast_sums`, or
            processes x 0 if there are none.

    Returns:
        dict of `grad_norm` and, if there are sums: `std`, the standard deviation of the queries over the batch, times
        sqrt(C), averaged over the C features (1: spread out, 0: collapsed; as in SimSiam, arXiv 2011.10566);
        `positive` and `negative`, the mean cosine similarity of a query to its key and to the keys of the queue.
    """
    figures = {"grad_norm": float(norms.mean())}
    if sums.shape[1]:
        (n, positive, negative), moments = sums.sum(0)[:3], sums.sum(0)[3:]
        mean, mean_square = (moments / n).chunk(2)
        variance = ((mean_square - mean.square()) * n / (n - 1)).clamp_min(0)
        std = float(variance.sqrt().mean()) * len(mean) ** 0.5
        figures |= {"std": std, "positive": float(positive / n), "negative": float(negative / n)}
    return figures


class LearningMonitor:
    """Prints a note, once each, if the encodings have collapsed or the loss stays at that of a blind guess.

    Args:
        guess: the loss of a blind guess. start: the global step at which the queue is full of keys.
    """

    def __init__(self, guess, start):
        self.guess, self.start = guess, start
        self.low_since = self.flat_since = None  # the first of the prints, without a gap, at which it was so

    def see(self, step, loss, std):
        """Call at each print, with the global step, the loss and the spread of the queries at this step."""
        self.low_since = self._since(self.low_since, step, std < COLLAPSED)
        flat = step >= self.start and abs(loss - self.guess) < FLAT * self.guess
        self.flat_since = self._since(self.flat_since, step, flat)
        look = "look at the views with python -m moco.tools.view_gallery"
        if self.low_since is not None and step - self.low_since >= LOW_STEPS:
            say(
                f"note: the encodings have collapsed: Std was below {COLLAPSED} for {LOW_STEPS} steps, so almost all "
                f"images have the same encoding. Often the learning rate is too high; try a tenth of --lr, and {look}"
            )
            self.low_since = float("inf")
        if self.flat_since is not None and step - self.flat_since >= FLAT_STEPS:
            say(
                f"note: the loss was within {FLAT:.0%} of a blind guess ({self.guess:.4f}) for {FLAT_STEPS} steps, so "
                f"nothing is learned yet. If this goes on, try a tenth of --lr or ten times --lr, and {look}"
            )
            self.flat_since = float("inf")

    @staticmethod
    def _since(since, step, holds):
        if since == float("inf"):  # the note was printed
            return since
        return (step if since is None else since) if holds else None
