"""One epoch of a Run: its batches, its log lines, and what is checked and saved between its steps."""

import torch

from moco.data.prefetch_to_device import Lookahead, prefetched
from moco.distributed import all_gather, copy_to_device, rank
from moco.engine import watchdog
from moco.engine.launch_plan import cores
from moco.engine.meters import AverageMeter, ProgressMeter
from moco.engine.startup_report import STEPS_TO_JUDGE, advise
from moco.engine.step_timer import StepTimer
from moco.pipe_safe_print import say


class Epoch:
    """One epoch. Losses and accuracies in the log are those of rank 0's part of the batch, as in MoCo.

    Args:
        run: the Run. number: the 0-based epoch.

    Attributes:
        number: the 0-based epoch. is_first: whether it is the first epoch since the start or the resume.
    """

    def __init__(self, run, number):
        self.run, self.number, self.is_first = run, number, number == run.place[0]
        self.length = len(run.loader)
        self.timer = StepTimer(run.device)
        self.loss, self.top1 = AverageMeter("Loss", ":.4e"), AverageMeter("Acc@1", ":6.2f")
        self.top5 = AverageMeter("Acc@5", ":6.2f")
        self.meters = self.loss, self.top1, self.top5
        times = self.timer.batch_time, self.timer.data_time
        self.progress = ProgressMeter(self.length, [*times, *self.meters], f"Epoch: [{number}]")

    def steps(self):
        """Yields (global step, images, labels) for each step of this process.

        The global step is 0-based. Images are a list with one batch per view, N x 3 x size x size, float32,
        normalised; labels are N, long; both are on the device.
        """
        run, start = self.run, self.run.loader.batch_sampler.start
        watchdog.at(self.number, start, watchdog.DATA)
        batches = prefetched(self.timer.waiting(run.loader), run.finish, run.device)
        batches = self.batches = Lookahead(self.timer.arriving(batches))
        for self.step, (images, labels) in enumerate(batches, start):
            watchdog.at(self.number, self.step, watchdog.STEP)
            self.batch = len(labels)
            yield self.number * self.length + self.step, images, labels
            watchdog.at(self.number, self.step + 1, watchdog.DATA)

    def report(self, loss, acc1, acc5):
        """Call after each step: logs, checks the loss and saves, whenever it is time for that.

        Args:
            loss, acc1, acc5: scalar tensors of this process, accuracies in percent; read only if something is printed.

        Raises:
            FloatingPointError: a loss or weight is not finite. CheckpointError: checkpoints can't be written.
            Stopped: the run was asked to stop, and the checkpoint is written.
        """
        run, args, i = self.run, self.run.args, self.step
        for meter, value in zip(self.meters, (loss, acc1, acc5), strict=True):
            meter.update(value, self.batch)
        run.guard.see(loss, i)
        self.timer.step_ended()
        if run.device.type == "cuda":  # gives the GPU work for the time in which the host reads from it
            watchdog.at(self.number, i, watchdog.AHEAD)
            self.batches.fetch()
        watchdog.at(self.number, i, watchdog.REPORT)
        if rank() == 0 and self.is_first and i == min(STEPS_TO_JUDGE, self.length) - 1:
            advise(self.timer, args.augment_on, args.workers < cores() and run.loader.num_workers == run.workers)
        prints = i % args.print_freq == 0
        notes = self._exchange() if run.stop.due(prints) or prints else []
        if prints and rank() == 0:
            left = (args.epochs - self.number) * self.length - i - 1
            self.progress.display(i, *self.timer.outlook(left))
            run.log.write("step", epoch=self.number, step=i, **self._figures("val"))
        run.guard.judge([first for first, *_ in notes])
        stops = run.stop.agreed
        within = i + 1 < self.length  # the last step is followed by the epoch's checkpoint
        if within and (stops or (args.save_every and (i + 1) % args.save_every == 0)):
            run.guard.check()
            run.save_within_epoch(self.number, i + 1)
            if stops:
                run.leave()

    def _exchange(self):
        """Reads the meters and exchanges with all ranks what they have to agree on, in one copy from the device.

        Returns:
            For each rank a list: the first step with a loss that is not finite, and the values of its meters.
        """
        run = self.run
        ours = [run.guard.first, *(x for meter in self.meters for x in (meter.val, meter.sum))]
        ours = torch.stack([x.double() for x in ours])
        rows = all_gather(torch.cat([ours, copy_to_device(run.stop.note(), ours.device)])[None]).tolist()
        run.stop.agree([row[-2:] for row in rows])
        numbers = iter(rows[rank()][1:])
        for meter in self.meters:
            meter.val, meter.sum = next(numbers), next(numbers)
        return rows

    def report_validation(self, i):
        """Call after step `i` of the epoch's validation, equally often on every rank.

        A run that is stopped here repeats the validation when it is resumed. Raises the errors of `report`.
        """
        run = self.run
        watchdog.at(self.number, self.length + i, watchdog.STEP)
        if run.stop.asked(i % run.args.print_freq == 0):
            run.guard.check()
            run.save_within_epoch(self.number, self.length)
            run.leave()

    def save(self, val_acc1=None):
        """Call at the end of the epoch: logs it and starts to write its checkpoint.

        Args:
            val_acc1: the validation accuracy in percent, if there was a validation; decides on the best checkpoint.

        Raises:
            FloatingPointError, CheckpointError: as `report`.
        """
        run = self.run
        run.guard.check()
        facts = {"lr": run.optimizer.param_groups[0]["lr"]}
        if val_acc1 is not None:
            facts["val_acc1"] = val_acc1
        substitutes = run.loader.dataset.substitutes
        if rank() == 0 and substitutes and (bad := len(substitutes.listed())):
            facts["bad_images"] = bad
            say(f"note: {bad} images could not be decoded so far; {substitutes.path!r} lists them")
        run.log.write("epoch", epoch=self.number, **self._figures("avg"), **facts)
        paths = [run.names.of_epoch(self.number)]
        if val_acc1 is not None and val_acc1 > run.best_acc1:
            run.best_acc1 = val_acc1
            paths.insert(0, run.names.of_best())
        run.save(paths, self.number + 1, remove=run.names.outdated(self.number))

    def _figures(self, which):
        """The meters' "val" or "avg" as numbers, and the share of time spent waiting; {} before the first step."""
        if not self.loss.count:
            return {}
        meters = {"loss": self.loss, "acc1": self.top1, "acc5": self.top5, "seconds": self.timer.batch_time}
        figures = {name: float(getattr(meter, which)) for name, meter in meters.items()}
        return figures | {"wait": round(self.timer.share_waited(), 4)}
