"""Floating-point formats: TF32 flags, autocast to bf16 or fp16, the loss scaler, and what stays in float32."""

import contextlib

import torch

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
AUTOCAST = {None: None, "fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def tf32_flags():
    """Whether torch uses TF32 for float32 matrix products and for convolutions; torch's default is (False, True)."""
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def set_tf32_flags(products, convolutions):
    """Sets the two flags that `tf32_flags` returns."""
    # All code of torch works with these older flags. If the newer `fp32_precision` is set, some of it raises an error.
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = products, convolutions


@contextlib.contextmanager
def without_tf32():
    """A context in which float32 operations keep float32's precision on every device."""
    before = tf32_flags()
    set_tf32_flags(False, False)
    try:
        yield
    finally:
        set_tf32_flags(*before)


def autocast_dtype(precision):
    """The type of autocast for one of PRECISIONS or None, None for no autocast; raises ValueError for other values."""
    if precision not in AUTOCAST:
        raise ValueError(f"the precision is {precision!r}, but must be None or one of {', '.join(PRECISIONS)}")
    return AUTOCAST[precision]


def set_precision(precision):
    """Turns TF32 off for "fp32" and on for "tf32"; None, "bf16" and "fp16" keep torch's defaults.

    Raises ValueError for other values, as the next two functions do.
    """
    autocast_dtype(precision)
    if precision in ("fp32", "tf32"):
        set_tf32_flags(precision == "tf32", precision == "tf32")


def autocast(device, precision):
    """The context for a forward pass: autocast for "bf16" and "fp16", otherwise no autocast."""
    dtype = autocast_dtype(precision)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def grad_scaler(device, precision):
    """The loss scaler for "fp16"; for every other precision a scaler that does nothing."""
    return torch.amp.GradScaler(device.type, enabled=autocast_dtype(precision) == torch.float16)


def at_least_fp32(x):
    """Converts bf16 and fp16 tensors to float32; float32 and float64 tensors are returned unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
