"""Programs that the parts of the GPU report run in processes of their own; each prints a dict as one line of JSON.

python -m moco.benchmarks.internal.gpu_report_programs NAME [ARGUMENT ...]
"""

import sys

if not __package__:  # otherwise `import moco` fails
    name = "moco.benchmarks.internal.gpu_report_programs"
    print(f"error: this program can't be started by its path; use python -m {name}", file=sys.stderr)
    sys.exit(2)

import json
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
from datetime import timedelta
from functools import partial
from itertools import islice

import numpy
import PIL
import torch
import torch.distributed as dist
import torchvision

import main_moco
from moco.benchmarks.internal.measuring import peak_resident, timed
from moco.benchmarks.step import with_designs
from moco.data.file_list import ImageFolder
from moco.data.prefetch_to_device import finisher
from moco.engine import speed_flags
from moco.engine.design_flags import PAPER_SIDES
from moco.engine.hardware import hardware
from moco.engine.json_log import git_commit
from moco.engine.launch_plan import cores, memory
from moco.engine.training_epoch import Epoch
from moco.loader import training_loader

BATCHES, REPEATS = 4, 3  # of the augmentation: different batches, and how often each is timed


def device():
    """The device that the training takes."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine():
    """The hardware, the versions, and what --fast turns on here."""
    args = fast_args("--fast")
    facts = {"device": hardware(device()), "gpus": torch.cuda.device_count(), "fast": "--fast"}
    try:
        speed_flags.settle(args)
    except ValueError as error:  # there is no compiler
        facts |= {"note": str(error), "fast": "--fast --no-compile"}
        args = fast_args("--fast", "--no-compile")
        speed_flags.settle(args)
    facts["step_flags"] = " ".join(words for words in args.fast if "augment" not in words)
    if facts["gpus"]:
        facts |= {
            "gpu_gb": torch.cuda.get_device_properties(0).total_memory / 1e9,
            "driver": driver(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        }
    facts |= {module.__name__: module.__version__ for module in (torch, torchvision, numpy, PIL)}
    return facts | {
        "python": platform.python_version(),
        "cpu": hardware(torch.device("cpu")),
        "cores": cores(),
        "memory_gb": memory() / 1e9,
        "commit": git_commit(),
    }


def fast_args(*flags):
    """The arguments of main_moco.py for `flags`."""
    return main_moco.build_parser().parse_args([".", *flags])


def driver():
    """The version of the GPU's driver, or None if there is no nvidia-smi."""
    if not shutil.which("nvidia-smi"):
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True).stdout.partition("\n")[0] or None


def augmentation(*words):
    """The device's part of the augmentation in milliseconds per batch, for the baseline and all five designs.

    Args:
        words: a command line of main_moco.py.
    """
    args, where, result = main_moco.build_parser().parse_args(words), device(), {}
    folder = ImageFolder(os.path.join(args.data, "train"))
    for name, on in (("baseline", ()), ("all", PAPER_SIDES)):
        views = main_moco.view_plan(with_designs(args, on)).views
        loader = training_loader(folder, views, args.batch_size, 0, args.workers, augment_on="device")
        finish, batches = finisher(views, "device", where), list(islice(loader, BATCHES))  # the loader pins them
        for batch in batches:
            finish(batch)
        times = [timed(partial(finish, batch), 1) for _ in range(REPEATS) for batch in batches]
        result[name] = statistics.median(times) * 1000
    return result


def memory_of_epochs(*words):
    """Runs main_moco.py with the command line `words` and measures memory at the end of each epoch.

    Returns:
        {"epochs": [...]}; an epoch has "resident" (bytes of this process; None if the system does not tell) and, on a
        GPU, "reserved" and "allocated" (the epoch's peaks in torch's allocator, in bytes).
    """
    epochs, save = [], Epoch.save

    def measured(epoch, *args, **figures_of_epoch):
        figures = {"resident": peak_resident(lambda: None)}
        if torch.cuda.is_available():
            figures["reserved"] = torch.cuda.max_memory_reserved()
            figures["allocated"] = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        epochs.append(figures)
        save(epoch, *args, **figures_of_epoch)

    Epoch.save = measured
    main_moco.main(words)
    return {"epochs": epochs}


def nccl():
    """The sum over two processes by NCCL, both on the first GPU; fails if NCCL refuses that."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_sum_by_nccl, (folder,), nprocs=2)
    return {"sum": 3}


def _sum_by_nccl(rank, folder):
    torch.cuda.set_device(0)
    place = f"file://{folder}/rendezvous"
    dist.init_process_group("nccl", init_method=place, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    x = torch.tensor([rank + 1.0], device="cuda")
    dist.all_reduce(x)
    if x.item() != 3:
        raise RuntimeError(f"the sum of 1 and 2 by NCCL is {x.item()}")
    dist.destroy_process_group()


PROGRAMS = {"machine": machine, "augmentation": augmentation, "memory": memory_of_epochs, "nccl": nccl}

if __name__ == "__main__":
    print(json.dumps(PROGRAMS[sys.argv[1]](*sys.argv[2:])), flush=True)
