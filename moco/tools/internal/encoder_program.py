"""What the programs that compute features share: their flags, their processes, and the options of a process."""

import signal
from dataclasses import dataclass

import torch

from moco.data.worker_processes import STOP_SIGNALS
from moco.distributed import rank
from moco.engine.architectures import architectures
from moco.engine.command_line import PROCESSES, Parser, number
from moco.engine.early_signals import EXIT_CODE, signal_name
from moco.engine.launch_plan import Launch, memory
from moco.engine.launch_processes import start_processes
from moco.engine.preemption import Stopped
from moco.engine.progress import Progress
from moco.engine.size_checks import check_views
from moco.engine.training_run import BATCHES_OF_MEMORY, workers_per_process
from moco.evaluation.pretrained_encoder import open_encoder
from moco.loader import central_loader
from moco.pipe_safe_print import say
from moco.views.augmentation_recipes import View


class EncoderParser(Parser):
    """A Parser with the arguments of these programs: CHECKPOINT, DIR, and what overrules the checkpoint.

    Args:
        dir_help: what DIR must hold. The others are those of Parser.
    """

    def __init__(self, description, module, example, dir_help):
        super().__init__(description, module, f"runs/multicrop/checkpoint__0099.pth.tar {example}")
        some, add = number(int, 1), self.add_argument
        help = "checkpoint, as --pretrained of main_lincls.py takes it, or the word none for random weights"
        add("checkpoint", metavar="CHECKPOINT", help=help)
        add("dir", metavar="DIR", help=dir_help)
        help = "network (default: that of the checkpoint)"
        add("-a", "--arch", metavar="ARCH", choices=architectures(), help=help)
        help = "side of the network's input images (default: that of the checkpoint)"
        add("--crop-size", metavar="PX", type=some, help=help)
        add("-b", "--batch-size", metavar="N", type=some, default=256, help="images per step over all processes")
        help = "number of data workers, at most one per CPU core"
        add("-j", "--workers", metavar="N", type=number(int, 0), default=32, help=help)
        add("--nproc", metavar="N", type=PROCESSES, help="number of processes (default: one per GPU, or 1 on a CPU)")

    def open(self, args, projected=False):
        """Opens the checkpoint and checks that the network can encode a batch; returns a PretrainedEncoder.

        Raises:
            ValueError: the checkpoint or a flag does not fit.
        """
        launch = launch_of(args)
        encoder = open_encoder(args.checkpoint, args.arch, args.crop_size, projected)
        check_views((View(encoder.crop_size),), encoder.arch, args.batch_size, launch.local)
        return encoder


def launch_of(args):
    """The Launch of --nproc; raises ValueError if this machine has fewer GPUs."""
    gpus = torch.cuda.device_count()
    local = args.nproc or gpus or 1
    if gpus and local > gpus:
        raise ValueError(f"--nproc {local}: the number of visible GPUs is {gpus}; give {gpus} at most")
    if args.batch_size < local:
        raise ValueError(f"--batch-size {args.batch_size} is too small for {local} processes; give {local} or more")
    return Launch("spawn", local=local, backend="nccl" if gpus else "gloo") if local > 1 else Launch("alone")


def start(work, args, encoder, *rest):
    """Starts the processes, waits for them, and ends them if a stop signal arrives.

    Args:
        work: a module-level function, called as `work(Encoding, *rest)` in each process.
        args: the options. encoder: a PretrainedEncoder.

    Raises:
        SystemExit: a process failed (code 1), or a signal ended it (code 143).
    """
    start_processes(_one_process, launch_of(args), work, args, encoder, rest)


def _one_process(device, work, args, encoder, rest):
    for stop_signal in STOP_SIGNALS:
        signal.signal(stop_signal, _stop)
    encoder.network.to(device, memory_format=torch.channels_last)
    work(Encoding(device, args, encoder), *rest)


def _stop(number, _frame):
    if rank() == 0:
        say(f"stopped by {signal_name(number)}", True)
    raise Stopped(EXIT_CODE)


@dataclass(frozen=True)
class Encoding:
    """One process that computes features.

    Attributes:
        device: where it computes. args: the options. encoder: a PretrainedEncoder, its network on the device.
    """

    device: torch.device
    args: object
    encoder: object

    def loader(self, folder, purpose):
        """The `central_loader` of this process's share of an ImageFolder; `purpose` is a word for messages."""
        local = launch_of(self.args).local
        workers = workers_per_process(self.args.workers, local)
        room = BATCHES_OF_MEMORY * memory() // local
        batch = self.args.batch_size // local
        return central_loader(folder, self.encoder.crop_size, batch, workers, room, purpose, persistent=False)

    def progress(self, what, *loaders):
        """The function `step_done` for `encode`; it prints to standard error, on rank 0, how far this process is."""
        return Progress(what, sum(len(loader.sampler) for loader in loaders), "images").add
