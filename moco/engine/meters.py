"""Averages, accuracy, and MoCo's log line."""

import torch

from moco.pipe_safe_print import say


class AverageMeter:
    """The last value of a quantity and its average over all updates.

    Values are numbers, or scalar tensors on any device. A tensor is read only when the meter is printed. `fmt` is a
    colon and a format for both numbers.
    """

    def __init__(self, name, fmt=":f"):
        self.name, self.fmt = name, fmt
        self.val, self.sum, self.count = 0, 0, 0

    def update(self, val, n=1):
        """Counts `val` n times."""
        self.val = val
        self.sum = self.sum + val * n
        self.count += n

    @property
    def avg(self):
        """The average; 0 before the first update."""
        return self.sum / max(self.count, 1)

    def __str__(self):
        val, avg = (f"{float(x):{self.fmt[1:]}}" for x in (self.val, self.avg))
        return f"{self.name} {val} ({avg})"


class ProgressMeter:
    """Prints a log line: the step within the epoch, the meters, then any further columns.

    Args:
        batches: steps of an epoch. meters: AverageMeters. prefix: beginning of each line.
    """

    def __init__(self, batches, meters, prefix=""):
        digits = len(str(batches))
        self.place = f"[{{:{digits}d}}/{batches}]"
        self.meters, self.prefix = meters, prefix

    def display(self, batch, *extra):
        """Prints the line of a 0-based batch; `extra` are further columns."""
        say("\t".join([self.prefix + self.place.format(batch), *map(str, self.meters), *extra]))


def correct(output, target, topk=(1,)):
    """Whether each sample's target is among its k highest outputs.

    Args:
        output: N x classes. target: N, long.
        topk: the values of k; a k larger than the number of classes is treated as the number of classes.

    Returns:
        A list with one tensor of N bools per k.
    """
    best = output.topk(min(max(topk), output.shape[1]), dim=1).indices  # N x max k
    hits = best == target[:, None]
    return [hits[:, :k].any(dim=1) for k in topk]


@torch.no_grad()
def accuracy(output, target, topk=(1,)):
    """The percentage of samples that are `correct`, a list with one scalar tensor per k; arguments as of `correct`."""
    return [hit.float().mean() * 100 for hit in correct(output, target, topk)]
