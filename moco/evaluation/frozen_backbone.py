"""Frozen networks: an encoder that only computes features, and the check that nothing but `fc` was trained."""

import copy

import torch


def frozen_copy(encoder):
    """A frozen copy of an encoder in training, without its `fc`. Nothing of the encoder changes.

    Returns:
        (network, number of its features); as `freeze`.
    """
    return freeze(copy.deepcopy(encoder))


def freeze(network, projected=False):
    """Freezes a network in eval mode, so that it computes features; it is changed in place.

    Args:
        network: has an `fc`, a Linear or a projector that ends with one.
        projected: whether to keep the `fc`, so that the features are its output, not its input.

    Returns:
        (network, number of its features).
    """
    layers = [module for module in network.fc.modules() if isinstance(module, torch.nn.Linear)]
    features = layers[-1].out_features if projected else layers[0].in_features
    if not projected:
        network.fc = torch.nn.Identity()
    return network.requires_grad_(False).eval(), features


def frozen_tensors(model):
    """Copies of all tensors of the model except those of `fc`, by name."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if not name.startswith("fc.")}


def check_frozen(frozen, model):
    """Raises RuntimeError if a tensor differs from its copy in `frozen`."""
    now = model.state_dict()
    for name, tensor in frozen.items():
        if not torch.equal(now[name], tensor):
            raise RuntimeError(f"{name} changed while only fc trains; the linear classification is not valid")
