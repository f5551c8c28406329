"""Number formats, and copies."""

import shutil

import pytest
import torch

from moco.device import at_least_fp32, autocast, grad_scaler, send, set_precision

compiles = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


@pytest.fixture
def flags():
    """Puts torch's flags back."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [backend.fp32_precision for backend in backends]
    yield lambda: [backend.fp32_precision for backend in backends]
    for backend, value in zip(backends, before, strict=True):
        backend.fp32_precision = value


def test_fp32_and_tf32_set_torchs_flags_and_nothing_else_does(flags):
    torchs_own = flags()
    for precision in (None, "bf16", "fp16"):
        set_precision(precision)
        assert flags() == torchs_own
    set_precision("fp32")
    assert flags() == ["ieee", "ieee"]
    set_precision("tf32")
    assert flags() == ["tf32", "tf32"]


@pytest.mark.parametrize("precision", [None, "fp32", "tf32", "bf16", "fp16"])
def test_autocast_and_scaler(precision):
    cpu = torch.device("cpu")
    with autocast(cpu, precision):
        dtype = torch.nn.Linear(2, 2)(torch.zeros(1, 2)).dtype
    assert dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    assert grad_scaler(cpu, precision).is_enabled() == (precision == "fp16")


def test_at_least_fp32():
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        assert at_least_fp32(torch.zeros(1, dtype=dtype)).dtype == expected


def test_send_on_a_cpu_copies_nothing():
    x = torch.zeros(2)
    assert send(x, torch.device("cpu")) is x
