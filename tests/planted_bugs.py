"""Bugs that only a GPU would show. Each is planted into the source; then the checks must fail.

    python -m tests.planted_bugs [NAME ...]

It prints one line of JSON: for each bug, what the check said, or null if nothing noticed it. The bug "none" is the
unchanged source. Every bug gets a process of its own, forked before the project is imported.
"""

import importlib.machinery
import json
import os
import signal
import sys
import warnings
from types import SimpleNamespace

import torch
import torch.distributed
import torchvision.transforms.functional  # noqa: F401  (imported once, before the forks)

import tests.fake_gpu  # noqa: F401  (as are fake tensors)

CRASH = "not a rule, but a crash:"
LIMIT = 60  # seconds for the check of one bug
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
CHECKS = {
    "copies": lambda c: c.check_copies(c.ALL, 48, crop=32, mini=16, batches=1),
    "cpu copies": lambda c: c.check_copies(c.ALL, 8, "cpu", crop=32, mini=16),
    "step": lambda c: c.check_step(c.ALL, 8, "fp16", 2),
    "both sides": lambda c: c.check_step(c.BOTH, 8, "fp16", 2),
    "rank": lambda c: c.check_rank(c.ALL, 8, 3),
    "epoch": lambda c: c.check_waits(c.check_epoch()),
    "probe": lambda c: c.check_waits([c.check_linear_classification()]),
    "ranks of the probe": lambda c: c.check_linear_classification(world=8),
    "knn": lambda c: c.check_knn_waits(bad=True),
    "variance": lambda c: c.check_variance(),
    "compiled": lambda c: c.check_compiled_batchnorm(),
    "start": lambda c: c.check_start_and_save(),
}
# Name: (check, file, text, replacement).
BUGS = {
    "none": ("all", "", "", ""),
    "a figure is read in the step": (
        *("epoch", "moco/engine/training_statistics.py"),
        "positive, negative = T *",
        "float(logits[0, 0]); positive, negative = T *",
    ),
    "a small view is read": ("both sides", "moco/builder.py", "N = len(views[0])", "N = len(views[0].tolist())"),
    "no record_stream": ("copies", "moco/data/prefetch_to_device.py", "x.record_stream(main)", "pass"),
    "labels without record_stream": ("copies", "moco/data/prefetch_to_device.py", "in (*views, labels):", "in views:"),
    "no wait_stream": ("copies", "moco/data/prefetch_to_device.py", "main.wait_stream(side)", "pass"),
    "a stream for each epoch": ("copies", "moco/data/prefetch_to_device.py", "@functools.cache\n", ""),
    "not pinned": ("copies", "moco/distributed.py", "x.pin_memory().to(", "x.to("),
    "constants copied each time": ("cpu copies", "moco/views/normalize.py", "@functools.cache\n", ""),
    "indices stay on the CPU": (
        *("copies", "moco/views/augment_on_device.py"),
        "sent = copy_to_device(torch.cat([order, *(step.images for step in steps)]), x.device)",
        "sent = torch.cat([order, *(step.images for step in steps)])",
    ),
    "arguments stay on the CPU": (
        *("copies", "moco/views/augment_on_device.py"),
        "arguments = numbers.split(",
        "arguments = torch.zeros(len(numbers)).split(",
    ),
    "places stay on the CPU": (
        *("copies", "moco/views/augment_on_device.py"),
        "place = copy_to_device(place.view(len(rows), len(places)).T.contiguous(), x.device)",
        "place = place.view(len(rows), len(places)).T",
    ),
    "coordinates of the box on the CPU": (
        *("copies", "moco/views/augment_on_device.py"),
        "row = torch.arange(first.shape[2], device=first.device)",
        "row = torch.arange(first.shape[2])",
    ),
    "mask in equalize": (
        *("copies", "moco/views/pillow_ops_as_tensors.py"),
        "table = torch.where(step > 0, table, torch.arange(256, device=x.device))",
        "table[(step == 0).expand_as(table)] = 0",
    ),
    "an if in the hue": (
        *("copies", "moco/views/pillow_ops_as_tensors.py"),
        "    spread = low.neg_().add_(high)\n",
        "    spread = low.neg_().add_(high)\n    if not spread.any():\n        return x\n",
    ),
    "shuffle by indices on the CPU": (
        *("rank", "moco/shuffle_bn.py"),
        "arrivals[copy_to_device(torch.argsort(positions), x.device)]",
        "arrivals[torch.argsort(positions)]",
    ),
    "departures not contiguous": (
        *("rank", "moco/shuffle_bn.py"),
        "departures = x[copy_to_device(row[mine], x.device)].contiguous()",
        "departures = x[copy_to_device(row[mine], x.device)].transpose(2, 3)",
    ),
    "labels on the CPU": (
        *("step", "moco/builder.py"),
        "labels = [torch.zeros(len(k), dtype=torch.long, device=k.device) for _ in logits]",
        "labels = [torch.zeros(len(k), dtype=torch.long) for _ in logits]",
    ),
    "the place in the queue as a number": (
        "step",
        "moco/builder.py",
        "(self.queue_ptr + torch.arange",
        "(int(self.queue_ptr) + torch.arange",
    ),
    "columns of the queue on the CPU": (
        "step",
        "moco/builder.py",
        "torch.arange(len(keys), device=keys.device)",
        "torch.arange(len(keys))",
    ),
    "accuracy as a number": (
        "step",
        "moco/engine/meters.py",
        "[hit.float().mean() * 100",
        "[hit.float().mean().item() * 100",
    ),
    "the scale is read": (
        "step",
        "main_moco.py",
        "    scaler.update()\n",
        "    scaler.update()\n    scaler.get_scale()\n",
    ),
    "momentum in another layout": (
        "step",
        "moco/optim.py",
        "torch.zeros_like(p)",
        "torch.zeros(p.shape, device=p.device)",
    ),
    "the guard asks in each step": (
        *("epoch", "moco/engine/nonfinite_loss.py"),
        "        if self.first is None:\n            self.first =",
        "        if not loss.isfinite():\n            pass\n        if self.first is None:\n            self.first =",
    ),
    "a meter is read alone": (
        "epoch",
        "moco/engine/training_epoch.py",
        "        run.guard.see(loss, i)\n",
        "        run.guard.see(loss, i)\n        float(loss)\n",
    ),
    "the next batch is fetched last": (
        *("epoch", "moco/engine/training_epoch.py"),
        "            self.batches.fetch()\n",
        "            pass\n",
    ),
    "a signal's number is copied with a wait": (
        *("epoch", "moco/engine/training_epoch.py"),
        "copy_to_device(run.stop.note(), ours.device)",
        "run.stop.note().to(ours.device)",
    ),
    "events without a time": ("epoch", "moco/engine/step_timer.py", "Event(enable_timing=True)", "Event()"),
    "a copy without non_blocking": ("copies", "moco/distributed.py", "to(device, non_blocking=True)", "to(device)"),
    "a part of pinned memory that is not contiguous": (
        *("copies", "moco/views/augment_on_device.py"),
        "copy_to_device(rows[:, self.firsts[i], BOX].contiguous(), x.device)",
        "rows[:, self.firsts[i], BOX].to(x.device, non_blocking=True)",
    ),
    "the side stream waits for the step": (
        *("copies", "moco/data/prefetch_to_device.py"),
        "        with torch.cuda.stream(side):\n",
        "        side.wait_stream(main)\n        with torch.cuda.stream(side):\n",
    ),
    "a scalar that is copied": (
        *("step", "moco/builder.py"),
        "self.queue_ptr.copy_((self.queue_ptr + len(keys)) % self.K)",
        "self.queue_ptr.copy_(torch.tensor((self.step + 1) * len(keys) % self.K))",
    ),
    "nobody waits for a sum": ("ranks of the probe", "moco/distributed.py", "reduce(x,", "reduce(x, async_op=True,"),
    "a note of the CPU for NCCL": (
        *("ranks of the probe", "moco/engine/preemption.py"),
        "copy_to_device(self.note(), collective_device())",
        "self.note()",
    ),
    "a tensor of the CPU where it is compiled": (
        *("compiled", "moco/batchnorm.py"),
        "torch.rsqrt(var + self.eps)",
        "torch.rsqrt(var + torch.full((1, 1), self.eps))",
    ),
    "momentum of a file in another layout": (
        *("start", "moco/engine/checkpoint_resume.py"),
        'torch.empty_like(parameter).copy_(state["momentum_buffer"])',
        'state["momentum_buffer"].contiguous()',
    ),
    "a checkpoint copied without a wait": (
        *("start", "moco/engine/checkpoint_background_writer.py"),
        'to("cpu", copy=True)',
        'to("cpu", copy=True, non_blocking=True)',
    ),
    "the guard waits for each parameter": (
        *("start", "moco/engine/nonfinite_loss.py"),
        "broken |= ~p.isfinite().all()",
        "broken |= bool(~p.isfinite().all())",
    ),
    "noise on the CPU": ("start", "moco/loss.py", "view.size, device=device)", "view.size)"),
    "the end of a step after the next batch": (
        *("epoch", "moco/engine/training_epoch.py"),
        "        self.timer.step_ended()\n        if run.device.type",
        "        self.batches.fetch()\n        self.timer.step_ended()\n        if run.device.type",
    ),
    "batches are kept": (
        *("epoch", "moco/data/prefetch_to_device.py"),
        "        item, error = self.fetched.pop()\n",
        "        item, error = self.fetched.pop()\n        self.kept = [*getattr(self, 'kept', []), item]\n",
    ),
    "LARS asks for the norms": (
        *("probe", "moco/optim.py"),
        "        ratio = self.trust_coefficient",
        "        if w_norm == 0:\n            return\n        ratio = self.trust_coefficient",
    ),
    "kNN reads each batch": (
        *("knn", "moco/evaluation/knn.py"),
        "        nearest.add(indices, features)\n",
        "        nearest.add(indices, features)\n        features.tolist()\n",
    ),
    "kNN picks images by an index on the CPU": (
        *("knn", "moco/evaluation/features.py"),
        "features[copy_to_device(good, device)]",
        "features[good]",
    ),
    "labels of kNN stay on the CPU": ("knn", "moco/evaluation/knn.py", "hits(labels, ", "hits(labels.cpu(), "),
    "the places of the variance's images stay on the CPU": (
        *("variance", "moco/evaluation/variance.py"),
        "rows = copy_to_device(torch.from_numpy(rows), device)",
        "rows = torch.from_numpy(rows)",
    ),
    "validation reads each batch": (
        *("probe", "moco/evaluation/validation_accuracy.py"),
        "        timer.step_ended()\n",
        "        timer.step_ended()\n        sums.tolist()\n",
    ),
}


def planted(name):
    """Makes this process import the project with a bug; raises ValueError if its text does not stand there once."""
    _, file, text, replacement = BUGS[name]
    bad = os.path.join(ROOT, file)
    if file:
        with open(bad) as source:
            if source.read().count(text) != 1:
                raise ValueError(f"{name}: {file} must hold the text to replace exactly once: {text!r}")
    plain = importlib.machinery.SourceFileLoader.get_code

    def get_code(loader, module):
        path = loader.get_filename(module)
        if path != bad:
            return plain(loader, module)
        return compile(loader.get_data(path).decode().replace(text, replacement), path, "exec")

    importlib.machinery.SourceFileLoader.get_code = get_code


def said_by_check(name):
    """Plants a bug in this process; returns what the check says, or None."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    planted(name)
    from tests import gpu_checks, gpu_checks_evaluation  # now, with the bug

    checks = SimpleNamespace(**{**vars(gpu_checks), **vars(gpu_checks_evaluation)})
    for check, run in CHECKS.items():
        if BUGS[name][0] in (check, "all"):
            try:
                run(checks)
            except AssertionError as error:  # RuleBroken is one
                return str(error) or "an assertion"
    return None


def start(name):
    """Forks a process that plants a bug and runs its check; returns its process id and a pipe with what it says."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        signal.alarm(LIMIT)
        try:
            answer = said_by_check(name)
        except BaseException as error:
            answer = f"{CRASH} {type(error).__name__}: {error}"
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    return child, reader


def main(names):
    results, started, left = {}, {}, list(names or BUGS)
    while started or left:
        while left and len(started) < CORES:
            name = left.pop(0)
            started[name] = start(name)
        child, reader = started.pop(name := next(iter(started)))
        with os.fdopen(reader) as answer:
            results[name] = json.loads(answer.read() or f'"{CRASH}"')
        os.waitpid(child, 0)
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1:])
