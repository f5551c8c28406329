"""--pretrained: takes the source encoder's backbone out of any MoCo-style checkpoint."""

import torch

from moco.engine.checkpoint_format import PREFIX, CheckpointError


def backbone_of(checkpoint, path):
    """The source encoder without its `fc`.

    Names may have the prefixes `module.` and `encoder_q.`, only one of them, or none (a bare backbone).

    Args:
        checkpoint: a dict with `state_dict`, or a state dict itself. path: for the messages.

    Returns:
        dict of torchvision's names to tensors.

    Raises:
        CheckpointError: there are no tensors in the file.
    """
    state = checkpoint.get("state_dict", checkpoint)
    tensors = {n: t for n, t in state.items() if isinstance(n, str) and isinstance(t, torch.Tensor)}
    state = {n.removeprefix(PREFIX): t for n, t in tensors.items()}
    if not state:
        raise CheckpointError(f"the checkpoint {path!r} holds no tensors")
    if any(name.startswith("encoder_q.") for name in state):
        state = {n.removeprefix("encoder_q."): t for n, t in state.items() if n.startswith("encoder_q.")}
    return {n: t for n, t in state.items() if not n.startswith("fc.")}


def backbone_for(model, checkpoint, path, arch):
    """Takes the backbone, all tensors except `fc`, out of a checkpoint, and checks that it fits a torchvision network.

    Args:
        model: a network of the architecture `arch`, with any classifier.
        checkpoint: as for `backbone_of`. path: for the messages.

    Returns:
        dict of names to tensors, for `model.load_state_dict(..., strict=False)`.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or does not belong to this architecture.
    """
    backbone = backbone_of(checkpoint, path)
    wanted = {n: t for n, t in model.state_dict().items() if not n.startswith("fc.")}
    hint = f"; is it of --arch {arch}?"
    if not wanted.keys() & backbone.keys():
        raise CheckpointError(f"the checkpoint {path!r} matches no tensor of the backbone{hint}")
    for name in sorted(wanted.keys() - backbone.keys()):
        # Files of very old torch releases lack the counters of batch normalisation, which have no effect here.
        if not name.endswith("num_batches_tracked"):
            raise CheckpointError(f"the checkpoint {path!r} lacks the backbone's {name}{hint}")
    for name, tensor in backbone.items():
        if name not in wanted:
            raise CheckpointError(f"the checkpoint {path!r} has {name}, which the backbone lacks{hint}")
        if tensor.shape != wanted[name].shape:
            shapes = f"{tuple(tensor.shape)}, the backbone {tuple(wanted[name].shape)}"
            raise CheckpointError(f"the checkpoint {path!r} has {name} of shape {shapes}{hint}")
    return backbone
