"""Classification accuracy on the validation images, exact for any number of processes."""

import math

import torch
import torch.nn.functional as F

from moco.distributed import all_sum, rank, world_size
from moco.engine.meters import ProgressMeter, correct
from moco.engine.step_timer import StepTimer
from moco.pipe_safe_print import say
from moco.precision import autocast
from moco.views.normalize import normalize_images


def validate(model, loader, images, device, precision, print_freq, fill, step_done):
    """Classifies every validation image once, over all processes, and prints Acc@1, Acc@5 and the loss.

    The model is in eval mode afterwards. It runs in the current gradient mode: if the training runs it in that mode,
    too, torch.compile needs no further graph.

    Args:
        model: from N x 3 x size x size, normalised, to N x classes.
        loader: the `central_loader` of this process's share. images: number of images in all shares.
        device, precision: where and in which number format to compute. print_freq: steps between two log lines.
        fill: whether to fill up the last batch to the size of the others, so that no kernel is prepared for its size.
        step_done: called as `step_done(i)` after step `i`, equally often on every rank.

    Returns:
        Acc@1 in percent, exact, the same on every rank.
    """
    model.eval()
    timer, sums = StepTimer(), torch.zeros(3, dtype=torch.float64, device=device)  # loss, hits at 1, hits at 5
    progress = ProgressMeter(len(loader), [timer.batch_time, timer.data_time], "Test: ")
    common = math.ceil(images // world_size() / loader.batch_size)  # number of steps that every rank has
    for i, (view, target) in enumerate(timer.waiting(loader)):
        view, target = (x.to(device, non_blocking=True) for x in (view, target))
        missing = loader.batch_size - len(target) if fill else 0
        view = F.pad(view, (0, 0, 0, 0, 0, 0, 0, missing)) if missing else view
        with autocast(device, precision):
            output = model(normalize_images(view)).detach()[: len(target)]
        hits = [hit.sum() for hit in correct(output, target, topk=(1, 5))]
        sums += torch.stack([F.cross_entropy(output, target, reduction="sum").double(), *hits])
        timer.step_ended()
        if rank() == 0 and i % print_freq == 0:
            progress.display(i)
        if i < common:
            step_done(i)
    loss, acc1, acc5 = (all_sum(sums) / images).tolist()
    acc1, acc5 = 100 * acc1, 100 * acc5
    if rank() == 0:
        say(f" * Acc@1 {acc1:.3f} Acc@5 {acc5:.3f} Loss {loss:.4f}")
    return acc1
