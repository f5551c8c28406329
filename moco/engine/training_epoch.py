"""One epoch of a Run: its batches, its log lines, and what is checked and saved between its steps."""

import itertools
import time
from datetime import timedelta

import torch

from moco.data.prefetch_to_device import Lookahead, prefetched
from moco.distributed import all_gather, copy_to_device, rank
from moco.engine import watchdog
from moco.engine.launch_plan import cores
from moco.engine.meters import AverageMeter, ProgressMeter
from moco.engine.startup_report import STEPS_TO_JUDGE, advise
from moco.engine.step_timer import StepTimer
from moco.engine.training_statistics import statistics_of
from moco.pipe_safe_print import say


class Epoch:
    """One epoch. The figures in the log are those of the global batch; the times are those of rank 0.

    Args:
        run: the Run. number: the 0-based epoch.

    Attributes:
        number: the 0-based epoch. is_first: whether it is the first epoch since the start or the resume.
        start: the 0-based step with which it starts, not 0 if the run was resumed within the epoch.
    """

    def __init__(self, run, number):
        self.run, self.number, self.is_first = run, number, number == run.place[0]
        self.length, self.start = len(run.loader), run.loader.batch_sampler.start
        self.timer = StepTimer(run.device)
        self.loss, self.top1 = AverageMeter("Loss", ":.4e"), AverageMeter("Acc@1", ":6.2f")
        self.top5 = AverageMeter("Acc@5", ":6.2f")
        self.meters, self.statistics = (self.loss, self.top1, self.top5), {}
        self.started, self.saved, self.evaluated = time.monotonic(), False, itertools.count()
        times = self.timer.batch_time, self.timer.data_time
        self.progress = ProgressMeter(self.length, [*times, *self.meters], f"Epoch: [{number}]")

    def steps(self):
        """Yields (global step, images, labels) for each step of this process.

        The global step is 0-based. Images are a list with one batch per view, N x 3 x size x size, float32,
        normalised; labels are N, long; both are on the device.
        """
        run, start = self.run, self.start
        watchdog.at(self.number, start, watchdog.DATA)
        batches = prefetched(self.timer.waiting(run.loader), run.transform, run.device)
        batches = self.batches = Lookahead(self.timer.arriving(batches))
        for self.step, (images, labels) in enumerate(batches, start):
            watchdog.at(self.number, self.step, watchdog.STEP)
            self.batch = len(labels)
            if self.is_first and self.step == start:
                run.tensorboard.write_views(images, self.number, self.step)
            yield self.number * self.length + self.step, images, labels
            watchdog.at(self.number, self.step + 1, watchdog.DATA)

    @property
    def prints(self):
        """Whether a log line follows the current step."""
        return self.step % self.run.args.print_freq == 0

    def report(self, loss, acc1, acc5, norm=None, sums=None):
        """Call after each step: logs, checks the loss and saves, whenever it is time for that.

        Args:
            loss, acc1, acc5: scalar tensors of this process, accuracies in percent; read only if something is printed.
            norm, sums: the `gradient_norm` and, in pretraining, the `contrast_sums` of `training_statistics`; needed
                only in steps that print.

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
        prints = self.prints
        firsts = self._exchange(norm, sums) if run.stop.due(prints) or prints else []
        if prints and rank() == 0:
            self._print()
        run.guard.judge(firsts)
        stops = run.stop.agreed
        within = i + 1 < self.length  # the last step is followed by the epoch's checkpoint
        if within and (stops or (args.save_every and (i + 1) % args.save_every == 0)):
            run.guard.check()
            run.save_within_epoch(self.number, i + 1)
            if stops:
                run.leave()

    def _exchange(self, norm=None, sums=None):
        """Averages the meters over all ranks and lets the ranks agree on a stop, in one copy from the device.

        Returns:
            For each rank, the first step with a loss that is not finite; -1 if there is none.
        """
        run = self.run
        ours = [run.guard.first, *(x for meter in self.meters for x in (meter.val, meter.sum))]
        ours = torch.stack([x.double() for x in (*ours, *([] if norm is None else [norm]))])
        sums = ours.new_empty(0) if sums is None else sums
        note = copy_to_device(run.stop.note(), ours.device)
        rows = all_gather(torch.cat([note, ours, sums])[None]).cpu()  # ranks x numbers
        run.stop.agree(rows[:, :2].tolist())
        end = 3 + 2 * len(self.meters)
        numbers = iter(rows[:, 3:end].mean(0).tolist())
        for meter in self.meters:
            meter.val, meter.sum = next(numbers), next(numbers)
        if norm is not None:
            self.statistics = statistics_of(rows[:, end], rows[:, end + 1 :])
        return rows[:, 2].long().tolist()

    def _print(self):
        """Prints and logs the figures of the current step."""
        run, i = self.run, self.step
        left = (run.args.epochs - self.number) * self.length - i - 1
        std = self.statistics.get("std")
        self.progress.display(i, *([] if std is None else [f"Std {std:.3f}"]), *self.timer.outlook(left))
        facts = {"lr": self._lr(), **self._figures("val"), **self.statistics}
        self._log("step", step=i, **facts)
        if run.monitor is not None:
            run.monitor.see(self.number * self.length + i, self.loss.val, std)

    def report_validation(self, i):
        """Call after step `i` of the epoch's validation, equally often on every rank.

        A run that is stopped here repeats the validation when it is resumed. Raises the errors of `report`.
        """
        run = self.run
        watchdog.at(self.number, self.length + i, watchdog.STEP)
        if run.stop.asked(i % run.args.print_freq == 0):
            if not self.saved:
                run.guard.check()
                run.save_within_epoch(self.number, self.length)
            run.leave()

    def is_due(self, every):
        """Whether something is due that is done after every `every` epochs and after the last one; None is never."""
        finished = self.number + 1
        return every is not None and (finished % every == 0 or finished == self.run.args.epochs)

    def report_evaluation(self):
        """As `report_validation`, for an epoch with several evaluations: call it after each step of each of them."""
        self.report_validation(next(self.evaluated))

    def save_before_evaluation(self):
        """Call before a long evaluation at the end of the epoch, so that no step is lost if it fails.

        Raises the errors of `report`.
        """
        run = self.run
        if self.saved:
            return
        run.guard.check()
        if self.start < self.length:  # otherwise the run was resumed from this very checkpoint
            run.save_within_epoch(self.number, self.length)
        self.saved = True
        if run.stop.agreed:
            run.leave()

    def save(self, val_acc1=None, figures=None):
        """Call at the end of the epoch: prints and logs its figures and starts to write its checkpoint.

        Args:
            val_acc1: the validation accuracy in percent, if there was a validation; decides on the best checkpoint.
            figures: dict of further figures for the log, or None.

        Raises:
            FloatingPointError, CheckpointError: as `report`.
        """
        run = self.run
        if torch.is_tensor(self.loss.val):  # there were steps after the last exchange
            self._exchange()
        run.guard.check()
        facts = {"lr": self._lr(), "first_step": self.start, **(figures or {})}
        if val_acc1 is not None:
            facts["val_acc1"] = val_acc1
        substitutes = run.loader.dataset.substitutes
        if rank() == 0 and substitutes and (bad := len(substitutes.listed())):
            facts["bad_images"] = bad
            say(f"note: {bad} images could not be decoded so far; {substitutes.path!r} lists them")
        self._log("epoch", **self._figures("avg"), **facts)
        paths = [run.names.of_epoch(self.number)]
        if val_acc1 is not None and val_acc1 > run.best_acc1:
            run.best_acc1 = val_acc1
            paths.insert(0, run.names.of_best())
        if rank() == 0:
            means = f"mean loss {self.loss.avg:.4f}, Acc@1 {self.top1.avg:.2f}, Acc@5 {self.top5.avg:.2f}"
            since = f" since step {self.start}" * (self.start > 0)
            took = timedelta(seconds=round(time.monotonic() - self.started))
            figures = f"{means}{since}, " * (self.loss.count > 0)
            say(f"epoch {self.number} ended: {figures}{took}; writing {paths[-1]!r}")
        run.save(paths, self.number + 1, remove=run.names.outdated(self.number))

    def _log(self, kind, **facts):
        """Writes a line to log.jsonl and its figures to TensorBoard's file."""
        for log in (self.run.log, self.run.tensorboard):
            log.write(kind, epoch=self.number, **facts)

    def _lr(self):
        return self.run.optimizer.param_groups[0]["lr"]

    def _figures(self, which):
        """The meters' "val" or "avg" as numbers, and the share of time spent waiting; {} before the first step."""
        if not self.loss.count:
            return {}
        meters = {"loss": self.loss, "acc1": self.top1, "acc5": self.top5, "seconds": self.timer.batch_time}
        figures = {name: float(getattr(meter, which)) for name, meter in meters.items()}
        return figures | {"wait": round(self.timer.share_waited(), 4)}
