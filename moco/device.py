"""How a device computes: number formats, and copies that nobody waits for."""

import torch

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def set_precision(precision):
    """Sets torch's flags for float32 products on NVIDIA GPUs: "fp32" and "tf32" rule, all else leaves torch's own."""
    value = {"fp32": "ieee", "tf32": "tf32"}.get(precision)
    if value is not None:
        torch.backends.cuda.matmul.fp32_precision = value
        torch.backends.cudnn.conv.fp32_precision = value


def autocast(device, precision):
    """The context of a forward pass: autocast for "bf16" and "fp16", none for all else."""
    return torch.autocast(device.type, AUTOCAST.get(precision), enabled=precision in AUTOCAST)


def grad_scaler(device, precision):
    """The loss scaler of "fp16"; for all else one that does nothing."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def at_least_fp32(x):
    """`x` as it is in float32 or float64, what is below in float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def send(x, device):
    """A CPU tensor to `device` without waiting for it: from pageable memory a GPU's copy would."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x
