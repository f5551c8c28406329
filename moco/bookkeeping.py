"""What surrounds the steps in both scripts: log lines, the guard, checkpoints, signals, and an epoch's batches."""

from moco import options, watchdog
from moco.console import say
from moco.distributed import from_rank_0, rank
from moco.guard import LossGuard
from moco.interruption import EXIT_CODE, Interruption, Stopped, signal_name
from moco.meters import AverageMeter, ProgressMeter, Stopwatch
from moco.prefetch import prefetched
from moco.run_log import RunLog
from moco.saver import Saver, check_space, size_of


class Books:
    """A run's: a context manager, whose end waits for the last checkpoint.

    Args:
        device: where the steps run. place: (epochs, steps of the next) done at the start.
        loader: of `loader.training_loader`. optimizer: for its learning rate.
        save: called as `save(epoch, step)` on every rank; begins to write the checkpoint within an epoch.

    Attributes:
        saver: the Saver, which only rank 0 uses. log: the RunLog.
    """

    def __init__(self, args, device, place, loader, optimizer, save):
        self.args, self.device, self.place, self.loader, self.save = args, device, place, loader, save
        self.saver = Saver(args.resume)
        self.log = RunLog(args.output_dir if rank() == 0 else None)
        self.guard = LossGuard(loader, optimizer, self.saver.last_path)
        self.interruption = Interruption(args.print_freq)
        self.log.start(args, device, place)

    def check_space(self, state, files):
        """Warns where `files` checkpoints of tensors like those of `state` will not fit on the disk."""
        if rank() == 0:
            check_space(self.args.output_dir, size_of(state), files)

    def __enter__(self):
        self.saver.__enter__()
        self.interruption.__enter__()
        return self

    def __exit__(self, kind, error, traceback):
        try:
            self.saver.__exit__(kind, error, traceback)
        finally:
            self.interruption.__exit__()

    def epochs(self):
        """Yields an EpochBook for each epoch that is left, the loader being set to it."""
        begin, start = self.place
        for epoch in range(begin, self.args.epochs):
            self.loader.batch_sampler.epoch, self.loader.batch_sampler.start = epoch, start if epoch == begin else 0
            yield EpochBook(self, epoch)
            if self.interruption.agreed and epoch + 1 < self.args.epochs:
                self.leave()

    def leave(self):
        """Ends this process as one that was asked to stop, once the last checkpoint is written."""
        self.saver.close()
        path = from_rank_0(self.saver.last)  # nobody leaves before: a launcher would end the others
        if rank() == 0:
            signal = signal_name(self.interruption.number)
            self.log.write("stop", signal=signal, checkpoint=path)
            say(f"stopped by {signal}; {path!r} is written, --resume auto goes on from there")
        raise Stopped(EXIT_CODE)


class EpochBook:
    """An epoch's. The meters show global rank 0's share of the batch, as MoCo's do.

    Args:
        books: the run's Books. epoch: 0-based.
    """

    def __init__(self, books, epoch):
        self.books, self.epoch, self.steps_in_all = books, epoch, len(books.loader)
        self.watch = Stopwatch(books.device)
        self.loss, self.top1 = AverageMeter("Loss", ":.4e"), AverageMeter("Acc@1", ":6.2f")
        self.top5 = AverageMeter("Acc@5", ":6.2f")
        meters = [self.watch.batch_time, self.watch.data_time, self.loss, self.top1, self.top5]
        self.progress = ProgressMeter(self.steps_in_all, meters, f"Epoch: [{epoch}]")

    def steps(self, finish):
        """Yields (the step's number in the epoch, what `finish` makes of its batch)."""
        loader, device = self.books.loader, self.books.device
        start = loader.batch_sampler.start
        watchdog.at(self.epoch, start, watchdog.DATA)
        for i, batch in enumerate(prefetched(self.watch.waiting(loader), finish, device), start):
            watchdog.at(self.epoch, i, watchdog.STEP)
            yield i, batch
            watchdog.at(self.epoch, i + 1, watchdog.DATA)

    def step_done(self, i, n, loss, acc1, acc5):
        """After step `i` of `n` images: scalar tensors, read only where something is printed or written.

        Where the run was asked to stop, a checkpoint is written and this process ends.
        """
        books, args, steps = self.books, self.books.args, self.steps_in_all
        for meter, value in ((self.loss, loss), (self.top1, acc1), (self.top5, acc5)):
            meter.update(value, n)
        books.guard.see(loss, i)
        self.watch.step_ended()
        if rank() == 0 and self.epoch == books.place[0] and i == min(options.STEPS_TO_JUDGE, steps) - 1:
            options.advise(self.watch, args)
        prints = i % args.print_freq == 0
        if prints and rank() == 0:
            left = (args.epochs - self.epoch) * steps - i - 1
            self.progress.display(i, *self.watch.outlook(left))
            books.log.write("step", epoch=self.epoch, step=i, **self.figures("val"))
        stops = books.interruption.asked(prints)
        within = i + 1 < steps  # after the last step comes the epoch's checkpoint
        saves = within and (stops or (args.save_every and (i + 1) % args.save_every == 0))
        if prints or saves:
            books.guard.check(weights=saves)
        if saves:
            books.save(self.epoch, i + 1)
            if stops:
                books.leave()

    def validation_step_done(self, i):
        """After step `i` of the epoch's validation, which a run that was asked to stop does anew when it goes on."""
        watchdog.at(self.epoch, self.steps_in_all + i, watchdog.STEP)
        if self.books.interruption.asked(i % self.books.args.print_freq == 0):
            self.books.guard.check(weights=True)
            self.books.save(self.epoch, self.steps_in_all)
            self.books.leave()

    def epoch_done(self, **more):
        """At the end of the epoch, before its checkpoint; `more` goes into the log."""
        self.books.guard.check(weights=True)
        substitutes = self.books.loader.dataset.substitutes
        if rank() == 0 and substitutes and (bad := len(substitutes.listed())):
            more["bad_images"] = bad
            say(f"note: {bad} images could not be decoded so far; {substitutes.path!r} lists them")
        self.books.log.write("epoch", epoch=self.epoch, **self.figures("avg"), **more)

    def figures(self, which):
        """The meters' "val" or "avg" as numbers, and the share of the time spent waiting; {} before a step."""
        if not self.loss.count:
            return {}
        meters = {"loss": self.loss, "acc1": self.top1, "acc5": self.top5, "seconds": self.watch.batch_time}
        figures = {name: float(getattr(meter, which)) for name, meter in meters.items()}
        return figures | {"wait": round(self.watch.share_waited(), 4)}
