"""The check that linear classification trains nothing but `fc`."""

import torch


def frozen_tensors(model):
    """Copies of all tensors of the model except those of `fc`, by name."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if not name.startswith("fc.")}


def check_frozen(frozen, model):
    """Raises RuntimeError if a tensor differs from its copy in `frozen`."""
    now = model.state_dict()
    for name, tensor in frozen.items():
        if not torch.equal(now[name], tensor):
            raise RuntimeError(f"{name} changed while only fc trains; the linear classification is not valid")
