"""What surrounds an epoch's steps in both scripts: batches, meters, log lines, the guard, checkpoints within."""

from moco import options
from moco.distributed import rank
from moco.meters import AverageMeter, ProgressMeter, Stopwatch
from moco.prefetch import prefetched


class Bookkeeping:
    """An epoch's. The meters show global rank 0's share of the batch, as MoCo's do.

    Args:
        epoch: 0-based. first: whether it is the first that this process runs.
        loader: of `loader.training_loader`, set to this epoch and to the batch to begin with.
        device: where the steps run. guard: a LossGuard. log: a RunLog.
        save: called as `save(step)` after so many steps of the epoch, on every rank, where --save-every says so.
    """

    def __init__(self, args, epoch, first, loader, device, guard, log, save):
        self.args, self.epoch, self.first = args, epoch, first
        self.loader, self.device, self.guard, self.log, self.save = loader, device, guard, log, save
        self.watch = Stopwatch(device)
        self.loss, self.top1 = AverageMeter("Loss", ":.4e"), AverageMeter("Acc@1", ":6.2f")
        self.top5 = AverageMeter("Acc@5", ":6.2f")
        meters = [self.watch.batch_time, self.watch.data_time, self.loss, self.top1, self.top5]
        self.progress = ProgressMeter(len(loader), meters, f"Epoch: [{epoch}]")

    def steps(self, finish):
        """Yields (the step's number in the epoch, what `finish` makes of its batch)."""
        batches = prefetched(self.watch.waiting(self.loader), finish, self.device)
        return enumerate(batches, self.loader.batch_sampler.start)

    def step_done(self, i, n, loss, acc1, acc5):
        """After step `i` of `n` images: scalar tensors, read only where something is printed or written."""
        for meter, value in ((self.loss, loss), (self.top1, acc1), (self.top5, acc5)):
            meter.update(value, n)
        self.guard.see(loss, i)
        self.watch.step_ended()
        steps = len(self.loader)
        if rank() == 0 and self.first and i == min(options.STEPS_TO_JUDGE, steps) - 1:
            options.advise(self.watch, self.args)
        prints = i % self.args.print_freq == 0
        saves = self.args.save_every and (i + 1) % self.args.save_every == 0 and i + 1 < steps
        if prints and rank() == 0:
            left = (self.args.epochs - self.epoch) * steps - i - 1
            self.progress.display(i, *self.watch.outlook(left))
            self.log.write("step", epoch=self.epoch, step=i, **self.figures("val"))
        if prints or saves:
            self.guard.check()
        if saves:
            self.save(i + 1)

    def epoch_done(self, **more):
        """At the end of the epoch, before its checkpoint; `more` goes into the log."""
        self.guard.check()
        self.log.write("epoch", epoch=self.epoch, **self.figures("avg"), **more)

    def figures(self, which):
        """The meters' "val" or "avg" as numbers, and the share of the time spent waiting for data."""
        meters = {"loss": self.loss, "acc1": self.top1, "acc5": self.top5, "seconds": self.watch.batch_time}
        figures = {name: float(getattr(meter, which)) for name, meter in meters.items()}
        return figures | {"wait": round(self.watch.share_waited(), 4)}
