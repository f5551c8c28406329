"""Writes log.jsonl as a run would."""

from moco.engine.json_log import JsonLog

PRETRAINING = {"images": 35, "total_batch": 8, "moco_k": 64}  # 4 steps per epoch
CLASSIFICATION = {"images": 35, "total_batch": 8}  # 5 steps per epoch


def begin(folder, run, place=(0, 0), **options):
    """Writes the line of a start, or of a resume if the place is not the beginning; returns the JsonLog."""
    folder.mkdir(exist_ok=True)
    log = JsonLog(str(folder), run)
    log.write("resume" if any(place) else "start", options=options, place=list(place))
    return log


def steps(log, epoch, numbers, **figures):
    """Writes a line for each step."""
    for step in numbers:
        log.write("step", epoch=epoch, step=step, **figures)


def small_run(folder, run, epochs=2, **options):
    """Writes a whole pretraining with all figures of its steps; returns the folder."""
    log = begin(folder, run, **{**PRETRAINING, **options})
    figures = {"loss": 3.5, "acc1": 20.0, "std": 0.5, "lr": 0.03, "positive": 0.6, "negative": 0.1}
    for epoch in range(epochs):
        steps(log, epoch, range(4), seconds=0.5, wait=0.25, **figures)
        log.write("epoch", epoch=epoch, loss=3.5, acc1=20.0, seconds=0.5, wait=0.25, lr=0.03)
    return folder
