"""--pretrained and --init-from: take an encoder, or only its backbone, out of any MoCo-style checkpoint."""

import functools

import torch

from moco.distributed import from_rank_0
from moco.engine.architectures import IMAGENET, SMALL, STEMS, architectures, in_words, is_resnet, meta_network
from moco.engine.checkpoint_file_read import read, read_on_all_ranks
from moco.engine.checkpoint_format import PREFIX, CheckpointError

SOURCE, TARGET = "encoder_q", "encoder_k"


def encoder_of(checkpoint, path, encoder=SOURCE):
    """One of the two encoders, with its `fc`.

    Names may have the prefixes `module.` and `encoder_q.`, only one of them, or none (a plain network, which is
    taken as the source encoder).

    Args:
        checkpoint: a dict with `state_dict`, or a state dict itself. path: for the messages.
        encoder: SOURCE or TARGET.

    Returns:
        dict of torchvision's names to tensors.

    Raises:
        CheckpointError: there are no tensors in the file, or there is no target encoder.
    """
    state = checkpoint.get("state_dict", checkpoint)
    tensors = {n: t for n, t in state.items() if isinstance(n, str) and isinstance(t, torch.Tensor)}
    state = {n.removeprefix(PREFIX): t for n, t in tensors.items()}
    if not state:
        keys = ", ".join(f"{key!r:.40}" for key in list(checkpoint)[:5]) or "none"
        raise CheckpointError(f"the checkpoint {path!r} holds no tensors under 'state_dict'; its keys are {keys}")
    found = {n.removeprefix(f"{encoder}."): t for n, t in state.items() if n.startswith(f"{encoder}.")}
    if encoder == TARGET and not found:
        raise CheckpointError(f"the checkpoint {path!r} has no target encoder; give a checkpoint of main_moco.py")
    return found or state


def backbone_of(checkpoint, path, encoder=SOURCE):
    """An encoder without its `fc`; arguments, result and errors as of `encoder_of`."""
    return {n: t for n, t in encoder_of(checkpoint, path, encoder).items() if not n.startswith("fc.")}


def backbone_for(model, checkpoint, path, arch, encoder=SOURCE):
    """Takes the backbone, all tensors except `fc`, out of a checkpoint, and checks that it fits a torchvision network.

    Args:
        model: a network of the architecture `arch`, with any classifier.
        checkpoint, path, encoder: as for `encoder_of`.

    Returns:
        dict of names to tensors, for `model.load_state_dict(..., strict=False)`.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or does not belong to this architecture.
    """
    backbone = backbone_of(checkpoint, path, encoder)
    shapes = shapes_of(model)
    if difference := misfit(backbone, shapes):
        found, ours, theirs = architecture_of(checkpoint, backbone), stem_of({}, shapes), stem_of(checkpoint, backbone)
        if found is None:
            raise CheckpointError(f"the checkpoint {path!r} {difference}; is it of --arch {arch}?")
        if found == arch and theirs != ours:
            raise CheckpointError(f"the checkpoint {path!r} is of --stem {theirs}, not {ours}; give --stem {theirs}")
        if found == arch:
            raise CheckpointError(f"the checkpoint {path!r} of --arch {arch} {difference}")
        if found in architectures():
            found, arch = in_words(found, theirs), in_words(arch, ours)
            raise CheckpointError(f"the checkpoint {path!r} is of --arch {found}, not {arch}; give --arch {found}")
        raise CheckpointError(f"the checkpoint {path!r} is of the architecture {found!r:.40}, not of {arch}")
    return backbone


def crop_size_note(checkpoint, path, crop_size):
    """A list with the note for the log that a checkpoint was pretrained at another --crop-size; else an empty list."""
    trained = checkpoint.get("options", {}).get("crop_size", crop_size)
    if trained == crop_size:
        return []
    return [f"note: {path!r} was pretrained with --crop-size {trained}, but --crop-size is {crop_size} here"]


def shapes_of(model):
    """The shapes of all tensors of a network except those of `fc`, by name."""
    return {name: tensor.shape for name, tensor in model.state_dict().items() if not name.startswith("fc.")}


def misfit(backbone, shapes):
    """How a dict of tensors, `backbone`, differs from the `shapes_of` a network, in words; None if it fits."""
    if not shapes.keys() & backbone.keys():
        found, expected = next(iter(backbone), "no tensor"), next(iter(shapes))
        return f"matches no tensor of the backbone: its names are like {found:.60}, not like {expected}"
    for name in sorted(shapes.keys() - backbone.keys()):
        # Files of very old torch releases lack the counters of batch normalisation, which have no effect here.
        if not name.endswith("num_batches_tracked"):
            return f"lacks the backbone's {name}"
    for name, tensor in backbone.items():
        if name not in shapes:
            return f"has {name}, which the backbone lacks"
        if tensor.shape != shapes[name]:
            return f"has {name} of shape {tuple(tensor.shape)}, the backbone {tuple(shapes[name])}"
    return None


def architecture_of(checkpoint, backbone):
    """The architecture that a checkpoint names, or the one for --arch whose tensors it has; None if there is none."""
    if isinstance(checkpoint.get("arch"), str):
        return checkpoint["arch"]
    stem = stem_of(checkpoint, backbone)
    names = [name for name in architectures() if stem == IMAGENET or is_resnet(name)]
    return next((name for name in names if not misfit(backbone, shapes_of_architecture(name, stem))), None)


def stem_of(checkpoint, state):
    """The stem that a checkpoint names, or else the one whose first convolution it has.

    Args:
        checkpoint: what the file holds. state: dict of torchvision's names to tensors or to their shapes.
    """
    named, first = checkpoint.get("options", {}).get("stem"), state.get("conv1.weight", ())
    if isinstance(named, str) and named in STEMS:
        return named
    return SMALL if tuple(getattr(first, "shape", first)[2:]) == (3, 3) else IMAGENET


@functools.cache
def shapes_of_architecture(name, stem=IMAGENET):
    """`shapes_of` the network of that name, which is built without memory for its parameters."""
    return shapes_of(meta_network(name, stem))


def check_backbone(path, args, launch):
    """Checks before any work that the file of --pretrained or --init-from fits --arch and --stem.

    If `args.stem` is None, it becomes that of the file, or IMAGENET without a file.

    Args:
        path: of the file, or "none" or None. args: the options. launch: a Launch.

    Raises:
        CheckpointError: the file is missing or damaged, or does not fit.
    """
    if args.resume or not launch.has_rank_0:
        return
    if path in (None, "none"):
        args.stem = args.stem or IMAGENET
        return
    checkpoint = read(path)
    if args.stem is None:
        args.stem = stem_of(checkpoint, encoder_of(checkpoint, path)) if is_resnet(args.arch) else IMAGENET
    backbone_for(meta_network(args.arch, args.stem), checkpoint, path, args.arch)


def load_backbone(path, args, *networks, flag="--pretrained"):
    """Loads the backbone of a checkpoint into networks, unless --resume has one. All ranks call it.

    Args:
        path: of a file that has passed `check_backbone`; only rank 0's counts. args: the options.
        networks: of the architecture `args.arch`, with any classifier.

    Returns:
        A list of lines for the log.
    """
    path, name = from_rank_0(path), flag.strip("-")
    if path is None:
        return []
    if args.resume:
        return [f"note: {flag} {path!r} is not used, since the resumed checkpoint has the backbone"]
    if path == "none":
        return [f"{name}: none, so the backbone is random"]
    checkpoint = read_on_all_ranks(path)
    backbone = backbone_for(networks[0], checkpoint, path, args.arch)
    for network in networks:
        network.load_state_dict(backbone, strict=False)
    of_both = " of both encoders" * (len(networks) > 1)
    lines = [f"{name}: {len(backbone)} tensors of {path!r}, the whole backbone{of_both}"]
    return lines + crop_size_note(checkpoint, path, args.crop_size)
