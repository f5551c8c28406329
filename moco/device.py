"""How a device computes: number formats, and copies that nobody waits for."""

import torch

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def tf32_flags():
    """Whether torch takes TF32 for float32 matrix products, and for convolutions; its own choice is (no, yes)."""
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def set_tf32_flags(products, convolutions):
    """Sets what `tf32_flags` tells."""
    # By these names all readers in torch agree; after `fp32_precision` was set, some of them raise.
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = products, convolutions


def set_precision(precision):
    """Sets torch's TF32 flags: "fp32" turns it off, "tf32" on, all else leaves torch's own."""
    if precision in ("fp32", "tf32"):
        set_tf32_flags(precision == "tf32", precision == "tf32")


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
