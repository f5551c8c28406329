"""What benchmarks measure besides a clock: time of a device's work, memory, bytes on the wire, a machine's limit."""

import os
import platform
import sys
import time

import torch
import torch.distributed as dist

from moco.device import set_tf32_flags, tf32_flags
from moco.distributed import from_rank_0, is_initialized
from moco.launch import cores


def synchronize():
    """Waits for this process's device, then for all processes."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    if is_initialized():
        dist.barrier()


def timed(step, steps):
    """Seconds that `steps` steps take."""
    synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize()
    return time.perf_counter() - start


def allocated(device):
    """Bytes that tensors hold on a GPU, 0 elsewhere."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def peak_memory(step, device, before=0):
    """GB at the peak of two steps.

    On a GPU those of its tensors, less `before` bytes; elsewhere those of the whole process, or None where the system
    does not tell.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        timed(step, 2)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e9
    peak = peak_resident(lambda: timed(step, 2))
    return peak and peak / 1e9


def peak_resident(function):
    """Bytes that this process held at most while `function()` ran, or None where the system does not tell."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # forget the peak so far
        function()
        return int(proc_line("/proc/self/status", "VmHWM").split()[1]) * 1024
    except OSError:
        return None


def proc_line(path, word):
    """The first line of a file of /proc that begins with `word`, but for spaces; "" if there is none."""
    with open(path) as file:
        return next((line for line in file if line.lstrip().startswith(word)), "")


def traffic(function, calls):
    """Bytes that a process sends in a call on average, counted at the loopback device.

    None where the processes are not several over gloo on one Linux machine. Whatever else uses the device counts too.
    """
    if not is_initialized() or dist.get_backend() != "gloo" or not sys.platform.startswith("linux"):
        return None
    synchronize()
    before = loopback_bytes()
    synchronize()  # nobody begins before all have read
    for _ in range(calls):
        function()
    synchronize()
    return from_rank_0((loopback_bytes() - before) / calls / dist.get_world_size())


def loopback_bytes():
    """Bytes sent over the loopback device since the system started."""
    return int(proc_line("/proc/net/dev", "lo:").split(":")[1].split()[8])


def hardware(device):
    """The device's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        name = proc_line("/proc/cpuinfo", "model name").partition(":")[2].strip() or name
    return f"{name}, {cores()} cores"


def product_tflops(device, precision):
    """TFLOP/s of a large square matrix product in the precision of the convolutions."""
    n = 8192 if device.type == "cuda" else 1024
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    before = tf32_flags()
    set_tf32_flags(precision != "fp32", before[1])
    timed(lambda: a @ b, 3)
    seconds = min(timed(lambda: a @ b, 10) for _ in range(5)) / 10
    set_tf32_flags(*before)
    return 2 * n**3 / seconds / 1e12
