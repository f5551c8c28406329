"""What the programs that compute features share: their flags, their processes, and the options of a process."""

import pickle
from dataclasses import dataclass, replace

import torch

from moco.distributed import all_sum, is_initialized, world_size
from moco.engine.architectures import STEMS, architectures
from moco.engine.command_line import PROCESSES, Parser, number
from moco.engine.launch_plan import Launch, memory
from moco.engine.launch_processes import start_processes
from moco.engine.progress import Progress
from moco.engine.size_checks import check_views
from moco.engine.stop_signals_raise import raise_at_stop_signals
from moco.engine.training_run import BATCHES_OF_MEMORY, workers_per_process
from moco.evaluation.pretrained_encoder import ARCH, CROP_SIZE, open_encoder
from moco.loader import central_loader
from moco.views.augmentation_recipes import View


class EncoderParser(Parser):
    """A Parser with the arguments of these programs: CHECKPOINT, DIR, and what overrules the checkpoint.

    Args:
        dir_help: what DIR must hold. batch_help: what --batch-size is. The others are those of Parser.
    """

    def __init__(self, description, module, example, dir_help, batch_help="images per step over all processes"):
        super().__init__(description, module, f"runs/multicrop/checkpoint__0099.pth.tar {example}")
        some, add = number(int, 1), self.add_argument
        help = "checkpoint of this project, a published one, weights of torchvision, or the word none: random weights"
        add("checkpoint", metavar="CHECKPOINT", help=help)
        add("dir", metavar="DIR", help=dir_help)
        help = f"network (default: that of the checkpoint; for none: {ARCH})"
        add("-a", "--arch", metavar="ARCH", choices=architectures(), help=help)
        help = "first layers of a ResNet; small is the stem for small images (default: that of the checkpoint)"
        add("--stem", choices=STEMS, help=help)
        help = f"side of the network's input images (default: the checkpoint's, or {CROP_SIZE} if it names none)"
        add("--crop-size", metavar="PX", type=some, help=help)
        add("-b", "--batch-size", metavar="N", type=some, default=256, help=batch_help)
        help = "number of data workers, at most one per CPU core"
        add("-j", "--workers", metavar="N", type=number(int, 0), default=32, help=help)
        add("--nproc", metavar="N", type=PROCESSES, help="number of processes (default: one per GPU, or 1 on a CPU)")

    def open(self, args, projected=False):
        """Opens the checkpoint and checks that the network can encode a batch.

        Returns:
            A PretrainedEncoder whose `checkpoint` is empty, since the processes need no more than the network.

        Raises:
            ValueError: the checkpoint or a flag does not fit.
        """
        launch, batch = launch_of(args), args.batch_size
        if batch < (local := launch.local):
            raise ValueError(f"--batch-size {batch} is too small for {local} processes; give {local} or more")
        encoder = open_encoder(args.checkpoint, args.arch, args.crop_size, projected, stem=args.stem)
        view = View(encoder.crop_size)
        check_views((view,), encoder.arch, batch, local, stem=encoder.stem)
        return replace(encoder, checkpoint={})


def launch_of(args):
    """The Launch of --nproc; raises ValueError if this machine has fewer GPUs."""
    gpus = torch.cuda.device_count()
    local = args.nproc or gpus or 1
    if gpus and local > gpus:
        raise ValueError(f"--nproc {local}: the number of visible GPUs is {gpus}; give {gpus} at most")
    return Launch("spawn", local=local, backend="nccl" if gpus else "gloo") if local > 1 else Launch("alone")


def start(work, args, encoder, *rest):
    """Starts the processes, waits for them, and ends them if a stop signal arrives. Call it in `stop_signals_raise`.

    Args:
        work: a module-level function, called as `work(Encoding, *rest)` in each process.
        args: the options. encoder: a PretrainedEncoder.

    Raises:
        SystemExit: a process failed (code 1), or a signal ended it (code 143).
    """
    # Pickled here, since torch would send each tensor through a file of its own in the shared memory. That memory is
    # small in a container, and a large network has more tensors than a process may open files.
    start_processes(_one_process, launch_of(args), pickle.dumps((work, args, encoder, rest)))


def _one_process(device, data):
    work, args, encoder, rest = pickle.loads(data)
    if is_initialized():
        raise_at_stop_signals()  # until this process has ended
    encoder.network.to(device, memory_format=torch.channels_last)
    work(Encoding(device, args, encoder), *rest)


@dataclass(frozen=True)
class Encoding:
    """One process that computes features.

    Attributes:
        device: where it computes. args: the options. encoder: a PretrainedEncoder, its network on the device.
    """

    device: torch.device
    args: object
    encoder: object

    def loader(self, folder, purpose, skip_bad=False):
        """The `central_loader` of this process's share of an ImageFolder; `purpose` and `skip_bad` as there."""
        batch, limits = self.args.batch_size // world_size(), self.limits()
        return central_loader(folder, self.encoder.crop_size, batch, *limits, purpose, skip_bad, persistent=False)

    def limits(self):
        """(data workers of this process, bytes that its batches may fill while they wait for the device)."""
        local = world_size()
        return workers_per_process(self.args.workers, local), BATCHES_OF_MEMORY * memory() // local

    def progress(self, what, *loaders, total=None, unit="images"):
        """The function `step_done` for `encode`; rank 0 prints to standard error how far all processes are together.

        It also keeps the processes together, since they wait for the slowest one only a limited time.

        Args:
            what: the task. loaders: of the images. total, unit: instead of loaders, as of Progress.
        """
        progress = Progress(what, total or sum(len(loader.dataset) for loader in loaders), unit)

        def step_done(images):
            progress.add(int(all_sum(torch.tensor(images, device=self.device))))

        return step_done
