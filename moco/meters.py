"""Averages, accuracy, and MoCo's log line."""

import time
from datetime import timedelta

import torch

from moco.console import say


class AverageMeter:
    """The last value of a quantity and its average over the updates.

    Values may be numbers or scalar tensors on any device; a tensor is read only when the meter is printed.
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
        """The average, 0 before the first update."""
        return self.sum / max(self.count, 1)

    def __str__(self):
        val, avg = (f"{float(x):{self.fmt[1:]}}" for x in (self.val, self.avg))
        return f"{self.name} {val} ({avg})"


class ProgressMeter:
    """Prints a log line: the place in the epoch, the meters, then what else the caller knows."""

    def __init__(self, batches, meters, prefix=""):
        digits = len(str(batches))
        self.place = f"[{{:{digits}d}}/{batches}]"
        self.meters, self.prefix = meters, prefix

    def display(self, batch, *extra):
        """Prints the line of a 0-based batch."""
        say("\t".join([self.prefix + self.place.format(batch), *map(str, self.meters), *extra]))


class Stopwatch:
    """Splits an epoch's time, in seconds, into waiting for data and the rest.

    On a GPU a step is only queued, so that the host may wait for a batch while the device is still at work. There the
    share is that of the device's idle time, from the end of a step until the next batch is there.

    Args:
        device: where the steps run.
    """

    def __init__(self, device=None):
        self.batch_time = AverageMeter("Time", ":6.3f")
        self.data_time = AverageMeter("Data", ":6.3f")
        self.on_gpu = device is not None and device.type == "cuda"
        self.step_end, self.gaps, self.idle = None, [], 0.0
        self.last = time.perf_counter()

    def waiting(self, loader):
        """Yields the loader's batches and counts the time until each is there."""
        batches = iter(loader)
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            self.data_time.update(time.perf_counter() - start)
            if self.on_gpu and self.step_end is not None:
                self.gaps.append((self.step_end, _event()))
            yield batch

    def step_ended(self):
        """Call at the end of a step."""
        now = time.perf_counter()
        self.batch_time.update(now - self.last)
        self.last = now
        if self.on_gpu:
            self.step_end = _event()

    def share_waited(self):
        """The share of the time so far that went into waiting for data; on a GPU this waits for the device."""
        for end, arrival in self.gaps:
            arrival.synchronize()
            self.idle += end.elapsed_time(arrival) / 1000
        self.gaps.clear()
        return (self.idle if self.on_gpu else self.data_time.sum) / max(self.batch_time.sum, 1e-9)

    def outlook(self, batches_left):
        """The time left for that many batches and the share of the time spent waiting for data, as words."""
        left = timedelta(seconds=round(self.batch_time.avg * batches_left))
        return f"Left {left}", f"Wait {self.share_waited():4.0%}"


def _event():
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def correct(output, target, topk=(1,)):
    """Whether each sample's target is among its k highest outputs.

    Args:
        output: N x classes. target: N, long. topk: ks; one above the number of classes counts as that number.

    Returns:
        A list of N bools, one a k.
    """
    best = output.topk(min(max(topk), output.shape[1]), dim=1).indices  # N x max k
    hits = best == target[:, None]
    return [hits[:, :k].any(dim=1) for k in topk]


@torch.no_grad()
def accuracy(output, target, topk=(1,)):
    """Percentages of the samples that are `correct`: a list of scalar tensors, one a k."""
    return [hit.float().mean() * 100 for hit in correct(output, target, topk)]
