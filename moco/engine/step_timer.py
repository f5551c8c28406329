"""Times the steps of an epoch, and measures which share of the time goes into waiting for data."""

import time
from datetime import timedelta

import torch

from moco.engine.meters import AverageMeter


class StepTimer:
    """Splits an epoch's time, in seconds, into waiting for data and the rest.

    On a GPU a step is only queued, so the host may wait for a batch while the device is still busy. For a GPU the
    waiting time is therefore the device's idle time: from the end of a step until the next batch is copied and
    augmented, so that its step can begin.

    Args:
        device: where the steps run; None means the CPU.

    Attributes:
        batch_time, data_time: AverageMeters of the time of a step and of the host's wait for its batch.
    """

    def __init__(self, device=None):
        self.batch_time = AverageMeter("Time", ":6.3f")
        self.data_time = AverageMeter("Data", ":6.3f")
        self.on_gpu = device is not None and device.type == "cuda"
        self.step_end, self.gaps, self.idle = None, [], 0.0
        self.last = time.perf_counter()

    def waiting(self, loader):
        """Yields the loader's batches and measures how long the host waits for each of them."""
        batches = iter(loader)
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            self.data_time.update(time.perf_counter() - start)
            yield batch

    def arriving(self, batches):
        """Yields what `prefetched` yields, and marks on a GPU where the step of each batch can begin."""
        for batch in batches:
            if self.on_gpu and self.step_end is not None:
                self.gaps.append((self.step_end, _event()))
            yield batch

    def step_ended(self):
        """Call at the end of each step."""
        now = time.perf_counter()
        self.batch_time.update(now - self.last)
        self.last = now
        if self.on_gpu:
            self.step_end = _event()

    def share_waited(self):
        """The share of the time so far, 0 to 1, spent waiting for data. On a GPU, of the batches that have arrived."""
        while self.gaps and self.gaps[0][1].query():  # so that the host does not wait for the device
            end, arrival = self.gaps.pop(0)
            self.idle += end.elapsed_time(arrival) / 1000
        return (self.idle if self.on_gpu else self.data_time.sum) / max(self.batch_time.sum, 1e-9)

    def outlook(self, batches_left):
        """Two columns of the log line: the time that `batches_left` batches will take, and the share spent waiting."""
        left = timedelta(seconds=round(self.batch_time.avg * batches_left))
        return f"Left {left}", f"Wait {self.share_waited():4.0%}"


def _event():
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
