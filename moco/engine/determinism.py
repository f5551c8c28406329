"""--deterministic: two runs with the same seed on the same GPUs give the same numbers, bit by bit."""

import os

import torch


def set_determinism(on, compiles):
    """Makes the operations of this process repeatable, or fast if not `on`. Call it before the GPU computes anything.

    With `on`, torch raises an error that names the operation if one can't be repeated.

    Args:
        on: the value of --deterministic. compiles: that of --compile.
    """
    torch.backends.cudnn.benchmark = not on  # it would choose a convolution's algorithm by its time in this very run
    torch.use_deterministic_algorithms(on)
    torch.utils.deterministic.fill_uninitialized_memory = False  # would write every batch twice
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # one of two values with which cuBLAS repeats sums
    if on and compiles:
        inductor_config().deterministic = True  # no choice of kernels by their time


def inductor_config():
    """The settings of torch.compile's back end; imported only where they are needed, since that takes a second."""
    import torch._inductor.config

    return torch._inductor.config


def check_compiles_repeatably():
    """Raises ValueError if this release of torch can't compile in a repeatable way."""
    if not hasattr(inductor_config(), "deterministic"):
        raise ValueError(
            f"--deterministic can't be combined with --compile in torch {torch.__version__}, which chooses kernels by "
            "their time; leave one of them out, or give --no-compile beside --fast"
        )
