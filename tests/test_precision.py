"""Number formats: TF32 flags, autocast, the loss scaler."""

import shutil

import pytest
import torch

from moco.precision import at_least_fp32, autocast, grad_scaler, set_precision, set_tf32_flags, tf32_flags

compiles = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


@pytest.fixture(autouse=True)
def _torchs_own_flags():
    before = tf32_flags()
    yield
    set_tf32_flags(*before)


def test_fp32_and_tf32_set_torchs_flags_and_nothing_else_does():
    assert tf32_flags() == (False, True)
    for precision in (None, "bf16", "fp16"):
        set_precision(precision)
        assert tf32_flags() == (False, True)
    set_precision("fp32")
    assert tf32_flags() == (False, False) and torch.get_float32_matmul_precision() == "highest"
    set_precision("tf32")
    assert tf32_flags() == (True, True) and torch.get_float32_matmul_precision() == "high"
    assert torch.backends.cuda.matmul.fp32_precision == torch.backends.cudnn.conv.fp32_precision == "tf32"


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


def test_a_misspelt_precision_is_refused():
    cpu = torch.device("cpu")
    for call in (set_precision, lambda x: autocast(cpu, x), lambda x: grad_scaler(cpu, x)):
        with pytest.raises(
            ValueError, match="the precision is 'bf61', but must be None or one of fp32, tf32, bf16, fp16"
        ):
            call("bf61")
