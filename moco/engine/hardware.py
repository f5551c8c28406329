"""What the machine is called, for results that depend on it."""

import os
import platform

import torch

from moco.engine.launch_plan import cores


def hardware(device):
    """The name of a device; that of the CPU comes with the number of cores that this process may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        name = proc_line("/proc/cpuinfo", "model name").partition(":")[2].strip() or name
    return f"{name}, {cores()} cores"


def proc_line(path, word):
    """The first line of a file that begins with `word`, apart from spaces; "" if there is none."""
    with open(path) as file:
        return next((line for line in file if line.lstrip().startswith(word)), "")
