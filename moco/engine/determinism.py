"""--deterministic: two runs with the same seed on the same GPUs give the same numbers, bit by bit."""

import os

import torch


def set_determinism(on):
    """Makes the operations of this process repeatable, or fast if not `on`. Call it before the GPU computes anything.

    With `on`, torch.compile chooses no kernel by its time either, and torch raises an error that names the operation
    if one can't be repeated.
    """
    torch.backends.cudnn.benchmark = not on  # it would choose a convolution's algorithm by its time in this very run
    torch.use_deterministic_algorithms(on)
    torch.utils.deterministic.fill_uninitialized_memory = False  # would write every batch twice
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # one of two values with which cuBLAS repeats sums
