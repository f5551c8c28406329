"""The parts of the GPU report, the most telling first: what each runs, and which figures it takes from that."""

import importlib.util
import json
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from moco.benchmarks.internal.gpu_report_job import PartFailed, PartSkipped
from moco.engine.design_flags import PAPER_SIDES
from moco.engine.launch_plan import cores
from moco.engine.preemption import EXIT_CODE

PROGRAMS = ("-m", "moco.benchmarks.internal.gpu_report_programs")
FLAT = 0.02  # growth of the memory after the second epoch that counts as none
STEPS_BEFORE_SIGNAL = 3


class Part(NamedTuple):
    """A part: about how many seconds it takes on an H100, and the function that does it.

    The function is called with a Job and fills its `figures`. It may raise PartFailed, PartSkipped and TimeOver.
    """

    estimate: float
    function: Callable


class Sizes(NamedTuple):
    """What --small shrinks.

    Attributes:
        model, pretraining, images: words for all scripts, for main_moco.py and step, and for fake_imagenet.
        batch, share: the paper's batch, and the share of it that one of the paper's 8 GPUs gets.
        copies: how often the real run lists each image, so that its epoch is longer than what the workers prefetch.
        seconds: of step. print_freq: of the real run.
    """

    model: tuple = ()
    pretraining: tuple = ()
    images: tuple = ("--train", 334, "--val", 20, "--size", 500)
    batch: int = 256
    share: int = 32
    copies: int = 10
    seconds: float = 5
    print_freq: int = 10


REAL = Sizes()
SMALL = Sizes(
    model=("-a", "resnet18", "--crop-size", 32),
    pretraining=("--mini-crop-size", 16, "--moco-k", 64),
    images=("--train", 8, "--val", 2, "--size", 64),
    batch=16,
    share=8,
    copies=2,
    seconds=0,
    print_freq=1,
)


def sizes(job):
    """The Sizes of a Job."""
    return SMALL if job.small else REAL


def tests(job):
    """The tests marked `gpu`."""
    if job.small:
        raise PartSkipped("--small uses no GPU")
    if importlib.util.find_spec("pytest") is None:
        raise PartSkipped("pytest is not installed; tests/requirements.txt has it")
    try:
        job.run("-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider")
    finally:
        counts = re.findall(r"(\d+) (passed|failed|skipped|error)", "".join(job.lines()[-1:]))
        job.figures.update({what: int(count) for count, what in counts})


def step(designs, batch, job):
    """A row of the table of the training step; `designs` are words of --design."""
    if job.small and len(designs) == 1:
        raise PartSkipped("--small measures only the baseline and all five designs")
    size, splits = sizes(job), 8 if batch == 256 else 1
    flags = [word for design in designs for word in ("--design", design)]
    # A row with designs takes another compilation for the cost of the groups; that of the baseline is enough.
    flags += ["--skip-splits"] * bool(designs)
    words = [*size.model, *size.pretraining, "-b", size.batch if batch == 256 else size.share, "--bn-splits", splits]
    words += [*job.machine["step_flags"].split(), "--seconds", size.seconds, "--json"]
    job.figures.update(job.result_of("-m", "moco.benchmarks.step", *flags, *words))


def augmentation(job):
    """The time of the device's part of the augmentation, of both batches, for the baseline and all five designs."""
    size, folder = sizes(job), images(job)
    words = [*size.model, *size.pretraining, "--workers", cores(), folder]
    for name, batch in (("256", size.batch), ("32", size.share)):
        job.figures[name] = {"batch": batch, "ms": job.result_of(*PROGRAMS, "augmentation", "-b", batch, *words)}


def memory(job):
    """The memory of five epochs, which must not grow."""
    words = [*pretraining(job), *job.machine["fast"].split(), "--epochs", 5, "--keep", 1]
    epochs = job.result_of(*PROGRAMS, "memory", *words, "--output-dir", job.work, images(job))["epochs"]
    kind = "reserved" if "reserved" in epochs[0] else "resident"
    peaks = [epoch[kind] for epoch in epochs]
    job.figures.update(epochs=epochs, kind=kind)
    if None in peaks:
        raise PartFailed("this system does not tell how much memory a process has")
    growth = max(peaks[2:]) / peaks[1] - 1
    job.figures.update(growth=growth, flat=growth <= FLAT)
    if kind == "reserved" and growth > FLAT:  # the memory of a CPU's process also depends on what malloc returns
        raise PartFailed(f"the reserved memory grew by {growth:.1%} after the second epoch; {FLAT:.0%} is the limit")


def real_run(job):
    """An epoch of main_moco.py --fast from JPEGs; it leaves its checkpoint for the linear classification."""
    folder, size = images(job), sizes(job)
    words = [*pretraining(job), *job.machine["fast"].split(), "--epochs", 1, "-p", size.print_freq]
    job.run("main_moco.py", *words, "--output-dir", job.work, os.path.join(folder, "many"))
    job.figures.update(steady(log(job.work, "step"), size.batch))
    shutil.move(os.path.join(job.work, "checkpoint__0000.pth.tar"), checkpoint_of(job))


def steady(lines, batch):
    """The speed and the wait in the last two thirds of an epoch, when the workers' first batches are used up.

    Args:
        lines: the lines of kind "step" in log.jsonl, of one epoch. batch: images per step.
    """
    start = lines[0]["time"] - lines[0]["seconds"]
    first, last = lines[len(lines) // 3], lines[-1]
    seconds, steps = last["time"] - first["time"], last["step"] - first["step"]
    waited = [line["wait"] * (line["time"] - start) for line in (first, last)]
    figures = {"images_per_s": batch * steps / seconds, "wait": max(0.0, waited[1] - waited[0]) / seconds}
    return {**figures, "batch": batch, "steps": steps, "workers": cores()}


def preemption(job):
    """A SIGTERM to a run, its resume, and the comparison with a run that was not interrupted.

    With --deterministic the results must be equal bit by bit.
    """
    folder, epochs = images(job), 3
    flags = ["--fast", "--no-compile", "--deterministic", "--epochs", epochs, "-p", 1]
    words = ["main_moco.py", *pretraining(job), *flags]
    whole, stopped = (os.path.join(job.work, name) for name in ("whole", "stopped"))
    job.run(*words, "--output-dir", whole, folder)
    process = job.start(*words, "--output-dir", stopped, folder)
    job.wait_until(process, lambda: len(log(stopped, "step")) >= STEPS_BEFORE_SIGNAL)
    process.terminate()
    job.wait(process, EXIT_CODE)
    before = len(log(stopped, "step"))
    job.run(*words, "--resume", "auto", "--output-dir", stopped, folder)
    done, expected = ([(x["epoch"], x["step"]) for x in log(output, "step")] for output in (stopped, whole))
    difference = largest_difference(
        *(os.path.join(x, f"checkpoint__{epochs - 1:04d}.pth.tar") for x in (stopped, whole))
    )
    job.figures.update(steps_before=before, steps=len(expected), difference=difference)
    if done != expected:
        raise PartFailed("the resumed run did not take exactly the steps that were left")
    if difference:
        raise PartFailed(f"the resumed run's weights or momentum differ by up to {difference:.3g}")


def largest_difference(*paths):
    """The largest difference between the weights, and the momentum, of two checkpoints."""
    states = []
    for path in paths:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        momentum = [state["momentum_buffer"] for state in checkpoint["optimizer"]["state"].values()]
        states.append([*checkpoint["state_dict"].values(), *momentum])
    return max((a.double() - b.double()).abs().max().item() for a, b in zip(*states, strict=True))


def linear_classification(job):
    """An epoch of main_lincls.py in one process per GPU, on the real run's checkpoint if there is one."""
    pretrained, size = checkpoint_of(job), sizes(job)
    if not os.path.exists(pretrained):
        pretrained = "none"
    words = ["-b", size.batch, "--workers", cores(), "--seed", 0, "--epochs", 1, "--pretrained", pretrained]
    words += ["--lars", "--multiprocessing-distributed", "--output-dir", job.work]
    job.run("main_lincls.py", *size.model, *words, images(job))
    (epoch,) = log(job.work, "epoch")
    figures = {name: epoch[name] for name in ("loss", "acc1", "val_acc1", "wait")}
    job.figures.update(figures, pretrained=pretrained != "none")


def nccl(job):
    """Two processes with NCCL: on two GPUs an epoch of main_moco.py, on one GPU a sum, if NCCL allows that."""
    if not job.machine["gpus"]:
        raise PartSkipped("NCCL needs a GPU")
    if job.machine["gpus"] > 1:
        words = [*pretraining(job, splits=4), "--fast", "--no-compile", "--nproc", 2, "--epochs", 1]
        job.run("main_moco.py", *words, "--output-dir", job.work, images(job))
        job.figures.update(processes=2, loss=log(job.work, "epoch")[0]["loss"])
        return
    try:
        job.figures.update(job.result_of(*PROGRAMS, "nccl"))
    except PartFailed:
        refusals = [line.strip() for line in job.lines() if "Duplicate GPU" in line]
        if not refusals:
            raise
        raise PartSkipped(f"NCCL refuses two processes on one GPU: {refusals[0]}") from None


def pretraining(job, splits=8):
    """The words for main_moco.py that most parts share."""
    size = sizes(job)
    words = ["-b", size.batch, "--bn-splits", splits, "--workers", cores(), "--seed", 0]
    return [*size.model, *size.pretraining, *words]


def images(job):
    """The folder of the generated images, which the first part that needs them makes.

    Its folder many/ lists each image several times, through links.
    """
    folder, size = os.path.join(job.out, "images"), sizes(job)
    if not os.path.exists(folder):
        new = os.path.join(job.work, "images")
        job.run("-m", "moco.tools.fake_imagenet", new, *size.images, "--workers", cores())
        os.makedirs(os.path.join(new, "many", "train"))
        for name in os.listdir(os.path.join(new, "train")):
            for i in range(size.copies):
                os.symlink(os.path.join("..", "..", "train", name), os.path.join(new, "many", "train", f"{name}_{i}"))
        os.rename(new, folder)
    return folder


def checkpoint_of(job):
    """The path of the checkpoint that the real run leaves."""
    return os.path.join(job.out, "pretrained.pth.tar")


def log(output, kind):
    """The complete lines of one kind in the log.jsonl of the folder `output`."""
    path = os.path.join(output, "log.jsonl")
    if not os.path.exists(path):
        return []
    with open(path) as file:
        lines = [json.loads(line) for line in file if line.endswith("\n")]
    return [line for line in lines if line["kind"] == kind]


def rows(batch, all_five):
    """The parts of the training step at one batch: the baseline and all five designs, or each design."""
    names = {PAPER_SIDES: "all", (): "baseline"}
    names |= {(design,): design.partition(":")[0].replace("_", "-") for design in PAPER_SIDES}
    chosen = [(), PAPER_SIDES] if all_five else [(design,) for design in PAPER_SIDES]
    return {f"step-{names[on]}-{batch}": Part(90 + 60 * (batch == 256), partial(step, on, batch)) for on in chosen}


PARTS = {
    "tests": Part(60, tests),
    **rows(256, all_five=True),
    "augmentation": Part(45, augmentation),
    "memory": Part(60, memory),
    "run": Part(90, real_run),
    "preemption": Part(75, preemption),
    "lincls": Part(40, linear_classification),
    "nccl": Part(20, nccl),
    **rows(256, all_five=False),
    **rows(32, all_five=True),
    **rows(32, all_five=False),
}
