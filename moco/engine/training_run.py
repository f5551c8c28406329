"""A run: the parts of both scripts that the paper does not describe.

The scripts say what is trained. A Run makes the processes agree on the options, restores a checkpoint, wraps the model
in DistributedDataParallel, and saves, logs and stops the run.
"""

import math
import os
import shlex
import time
from contextlib import ExitStack

from moco.data.bad_image_substitutes import Substitutes
from moco.distributed import from_rank_0, rank
from moco.engine import end_report, startup_report, watchdog
from moco.engine.checkpoint_background_writer import BackgroundWriter
from moco.engine.checkpoint_file_read import read_on_all_ranks
from moco.engine.checkpoint_format import bn_batch_of, checkpoint_of, progress_of
from moco.engine.checkpoint_resume import restore
from moco.engine.ddp_wrapper import data_parallel
from moco.engine.determinism import set_determinism
from moco.engine.disk_space import check_disk_space, size_of
from moco.engine.json_log import JsonLog
from moco.engine.launch_plan import cores, memory
from moco.engine.launch_processes import start_processes
from moco.engine.nonfinite_loss import NonfiniteGuard
from moco.engine.output_lock import lock_output_in_rank_0, unlock_output
from moco.engine.preemption import EXIT_CODE, StopListener, Stopped, signal_name
from moco.engine.result_changing_options import check_same_options, result_options
from moco.engine.tensorboard_log import TensorBoardLog
from moco.engine.training_epoch import Epoch
from moco.pipe_safe_print import say
from moco.precision import grad_scaler, set_precision

BATCHES_OF_MEMORY = 0.25  # share of the node's memory that batches may fill while they wait for the devices


def start_run(train, args, launch, names, *folders):
    """Starts the processes of a run; each calls `train(run, *folders)` with a Run of its own.

    Args:
        train: a module-level function. args: the checked options. launch: a Launch. names: a CheckpointNames.
        folders: ImageFolders.

    Raises:
        SystemExit: a process failed (code 1), or the run was asked to stop (code 143).
    """
    try:
        start_processes(_one_process, launch, train, args, launch, names, folders, timeout=args.timeout)
    finally:
        unlock_output()


def _one_process(device, train, args, launch, names, folders):
    with Run(device, args, launch, names) as run:
        train(run, *folders)


class Run:
    """One process of a run; a context manager that waits for the last checkpoint at its end, unless `finish` did.

    Creating it compares the options over all ranks and reads the checkpoint of --resume.

    Args:
        device: where this process computes. args: the checked options. launch: a Launch. names: a CheckpointNames.

    Attributes:
        workers: data workers of this process. scaler: the loss scaler, which has an effect only with fp16.
        room: bytes that this process's batches may fill while they wait for the device.
        fixed_batch: whether kernels are prepared for one batch size, so that another one costs time.
        place: (finished epochs, finished steps of the next epoch) at the start.
        best_acc1: the best validation accuracy so far in percent; None if the script has no best checkpoint.

    Raises:
        RuntimeError: options differ between ranks.
    """

    def __init__(self, device, args, launch, names):
        watchdog.at_start("reading the checkpoint")
        self.started = time.monotonic()
        if rank() == 0 and not (args.dry_run or getattr(args, "evaluate", False)):
            lock_output_in_rank_0(names)
        args.seed, args.resume, args.run, stem = from_rank_0((args.seed, args.resume, args.run, args.stem))
        args.stem = args.stem or stem  # only rank 0's node has read the file whose stem is followed
        check_same_options(args)
        set_determinism(args.deterministic)
        set_precision(args.precision)
        self.device, self.args, self.launch, self.names = device, args, launch, names
        self.workers = workers_per_process(args.workers, launch.local)
        self.room = BATCHES_OF_MEMORY * memory() // launch.local
        self.fixed_batch = args.compile or device.type == "cuda"
        self.scaler = grad_scaler(device, args.precision)
        self.checkpoint = read_on_all_ranks(args.resume) if args.resume else {}
        self.place, self.earlier_bn_batch = progress_of(self.checkpoint), bn_batch_of(self.checkpoint)
        if args.start_epoch not in (None, self.place[0]):
            self.place = args.start_epoch, 0
        self.best_acc1 = self.checkpoint.get("best_acc1", 0.0) if names.best else None
        watchdog.at_start("building the model")
        self.exits = ExitStack()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return self.exits.__exit__(*error)

    def announce(self, folders, *lines):
        """Prints, on rank 0 only, what the run uses: images, the script's lines, seed, devices, the resumed file.

        Args:
            folders: the ImageFolders that the run reads. lines: of the script.
        """
        if rank() == 0:
            for line in (*dict.fromkeys(folder.summary() for folder in folders), *lines):  # each folder once
                say(line)
            startup_report.report(self.args, self.launch, self.device, self.place, self.workers)

    def batchnorm_report(self):
        """How many images batch normalisation sees at a time, in words, compared with before a resume."""
        args = self.args
        slow = self.device.type == "cuda" and not args.compile
        return startup_report.batchnorm_report(
            args.bn_splits, self.launch.world, args.total_batch, self.earlier_bn_batch, slow
        )

    def loader_options(self, folder):
        """Keyword arguments for `training_loader` that depend on the shared flags; `folder` is an ImageFolder."""
        args = self.args
        substitutes = None if args.on_bad_image == "stop" else Substitutes(folder, args.seed, self.names.bad_images())
        return {"augment_on": args.augment_on, "substitutes": substitutes, "room": self.room}

    def prepare(self, model, optimizer, loss_of_noise, fewest=1, trains=True):
        """Restores the checkpoint of --resume, if there is one, and returns the model ready for training.

        Args:
            model, optimizer: as the script built them.
            loss_of_noise: called as `loss_of_noise(net, n)`; returns the loss of n random images, for the passes that
                DistributedDataParallel needs before the first step.
            fewest: the smallest n that the model accepts, which is used on a CPU without --compile. Otherwise n is the
                real batch size of a process, so that torch.compile and cuDNN prepare their kernels for that size.
            trains: whether the model will be trained.

        Returns:
            The model in DistributedDataParallel; with one process, or without training, the model itself.

        Raises:
            RuntimeError: the ranks do not start from equal tensors.
        """
        if self.checkpoint:
            restore(self.checkpoint, model, optimizer, self.scaler)
            self.checkpoint = {}
        self.model, self.optimizer = model, optimizer
        if not trains:
            return model
        n = self.args.total_batch // self.launch.world if self.fixed_batch else fewest
        return data_parallel(model, self.device, lambda net: loss_of_noise(net, n))

    def epochs(self, loader, transform, monitor=None):
        """Yields an Epoch for each epoch that is left, and ends this process if the run was asked to stop.

        With --dry-run, it prints what the run needs and yields nothing.

        Args:
            loader: the DataLoader of `loader.training_loader`.
            transform: the function of `data.prefetch_to_device.finisher`.
            monitor: a LearningMonitor, or None.
        """
        args, (first, start) = self.args, self.place
        watchdog.at_start("starting the data workers")
        self.loader, self.transform, self.monitor = loader, transform, monitor
        if rank() == 0:
            for line in startup_report.steps_report(len(loader), args.epochs, self.place, args.save_every):
                say(line)
            size = size_of([self.model.state_dict(), self.optimizer.state_dict()])
            files = self.names.files_to_come(args.epochs - first, fresh=not args.resume)
            if args.dry_run:
                say(startup_report.memory_report(self.model))
            check_disk_space(args.output_dir, size, files, report=args.dry_run)
        if args.dry_run:
            return
        self.log = JsonLog(args.output_dir if rank() == 0 else None, args.run)
        self.log.write_start(args, self.device, self.place)
        curves = args.output_dir if args.tensorboard and rank() == 0 else None
        self.tensorboard = TensorBoardLog(curves, args.run, len(loader), self.place)
        if curves:
            say(f"curves: tensorboard --logdir {shlex.quote(os.path.join(curves, 'tensorboard'))}")
        self.stop = self.exits.enter_context(StopListener(args.print_freq))
        self.writer = self.exits.enter_context(BackgroundWriter(args.resume))
        self.guard = NonfiniteGuard(loader, self.optimizer, self.writer.last_path)
        for number in range(first, args.epochs):
            loader.batch_sampler.epoch, loader.batch_sampler.start = number, start if number == first else 0
            yield Epoch(self, number)
            if self.stop.agreed and number + 1 < args.epochs:
                self.leave()

    def save(self, paths, epoch, step=0, remove=()):
        """Starts to write a checkpoint; only rank 0 writes.

        Args:
            paths: where to write it. epoch: finished epochs. step: finished steps of the next epoch.
            remove: paths of files to remove afterwards.
        """
        if rank() == 0:
            more = {"step": step, "processes": self.launch.world, "run": self.args.run}
            if self.best_acc1 is None:
                more["scaler"] = self.scaler.state_dict()
            else:
                more["best_acc1"] = self.best_acc1
            checkpoint = checkpoint_of(epoch, self.model, self.optimizer, result_options(self.args), **more)
            self.writer.save(checkpoint, *paths, remove=remove)

    def save_within_epoch(self, epoch, step):
        """Starts to write the checkpoint within the 0-based `epoch`, of which `step` steps are finished."""
        self.save([self.names.within_epoch()], epoch, step)

    def finish(self, *next_steps):
        """Waits until the last checkpoint is written, and prints how the run has ended. Call it after all epochs.

        Args:
            next_steps: each called as `next_step(args, launch, checkpoint)` with the path of the last checkpoint;
                returns a further line, what to do next, or None.

        Raises:
            CheckpointError: the last checkpoint can't be written.
        """
        args = self.args
        if rank() != 0:
            return
        if args.dry_run:
            say(f"dry run: the training would start now; nothing in {args.output_dir!r} was changed")
            return
        self.writer.close()
        say(end_report.finished(args, self.started, self.writer.last))
        if self.best_acc1 is not None:
            best = self.names.of_best()
            where = f"in {best!r}" if os.path.exists(best) else "reached before the resume, in another folder"
            say(f"best validation Acc@1: {self.best_acc1:.3f}, {where}")
        for next_step in next_steps:
            if line := next_step(args, self.launch, self.writer.last):
                say(line)

    def leave(self):
        """Waits until the last checkpoint is written, then raises Stopped, which ends this process."""
        self.writer.close()
        path = from_rank_0(self.writer.last)  # all ranks wait for rank 0, so that all end together
        if rank() == 0:
            signal = signal_name(self.stop.number)
            self.log.write("stop", signal=signal, checkpoint=path)
            say(f"stopped by {signal}; {path!r} is written, --resume auto continues from it")
        raise Stopped(EXIT_CODE)


def workers_per_process(workers, processes):
    """The number of data workers of one process.

    The workers of a node are --workers, or its number of cores if that is smaller. They are divided by its number of
    processes, rounded up.
    """
    return math.ceil(min(workers, cores()) / processes)
