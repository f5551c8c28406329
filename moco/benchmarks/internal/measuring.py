"""Measurements that benchmarks share: time of a device's work, memory, bytes on the wire, a matrix product's speed."""

import platform
import sys
import time
from itertools import count

import torch
import torch.distributed as dist
import torchvision

from moco.distributed import from_rank_0, is_initialized
from moco.engine.hardware import proc_line
from moco.engine.launch_plan import cores
from moco.precision import set_tf32_flags, tf32_flags
from moco.shuffle_bn import BatchShuffle


def synchronize():
    """Waits until this process's device has finished its work, then for all processes."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    if is_initialized():
        dist.barrier()


def timed(step, steps):
    """Seconds that `steps` calls of `step()` take."""
    synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize()
    return time.perf_counter() - start


def allocated(device):
    """Bytes that tensors occupy on a GPU; 0 on a CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def peak_memory(step, device, before=0):
    """Peak memory of two steps in GB.

    On a GPU it is the memory of tensors, minus `before` bytes. On a CPU it is the memory of the whole process, or None
    if the system does not tell.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        timed(step, 2)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e9
    peak = peak_resident(lambda: timed(step, 2))
    return peak and peak / 1e9


def peak_resident(function):
    """Peak memory of this process in bytes while `function()` runs; None if the system does not tell."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # resets the peak
        function()
        return int(proc_line("/proc/self/status", "VmHWM").split()[1]) * 1024
    except OSError:
        return None


def traffic(function, calls):
    """Average bytes that a process sends per call of `function()`, counted at the loopback device.

    It needs several processes that use gloo on one Linux machine; otherwise it returns None. Traffic of other programs
    on the loopback device is counted, too.
    """
    if not is_initialized() or dist.get_backend() != "gloo" or not sys.platform.startswith("linux"):
        return None
    synchronize()
    before = loopback_bytes()
    synchronize()  # no process starts before all have read the counter
    for _ in range(calls):
        function()
    synchronize()
    return from_rank_0((loopback_bytes() - before) / calls / dist.get_world_size())


def loopback_bytes():
    """Bytes sent over the loopback device since the system's start."""
    return int(proc_line("/proc/net/dev", "lo:").split(":")[1].split()[8])


def versions():
    """The machine and the versions of what the data path uses, in one line."""
    return (
        f"{platform.machine()}, {cores()} cores, Python {platform.python_version()}, torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}"
    )


def product_tflops(device, precision):
    """Speed of a large square matrix product in TFLOP/s, in the precision that the convolutions use."""
    n = 8192 if device.type == "cuda" else 1024
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    before = tf32_flags()
    set_tf32_flags(precision != "fp32", before[1])
    timed(lambda: a @ b, 3)
    seconds = min(timed(lambda: a @ b, 10) for _ in range(5)) / 10
    set_tf32_flags(*before)
    return 2 * n**3 / seconds / 1e12


def shuffle_of(im_k, im_k_mini, bn_splits):
    """A function that sends the target's images to the ranks that encode them, as one step does."""
    steps = count()

    def shuffle():
        step, n = next(steps), len(im_k[0])
        BatchShuffle(len(im_k), n, 0, step, bn_splits).shuffle(torch.cat(im_k))
        for which, view in enumerate(im_k_mini, start=1):
            BatchShuffle(1, n, 0, step, bn_splits, which).shuffle(view)

    return shuffle
