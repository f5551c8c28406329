"""Opens a checkpoint as an encoder: a frozen network that turns images into features."""

from dataclasses import dataclass

import torch

from moco.builder import add_projector
from moco.engine.architectures import IMAGENET, SMALL, architectures, is_resnet, make_network
from moco.engine.checkpoint_file_read import read
from moco.engine.checkpoint_format import CheckpointError
from moco.engine.pretrained_backbone import SOURCE, architecture_of, backbone_for, encoder_of, misfit, stem_of
from moco.evaluation.frozen_backbone import freeze

ARCH, CROP_SIZE, DIM = "resnet50", 224, 128  # where neither the checkpoint nor a flag says it; those of main_moco.py


@dataclass(frozen=True)
class PretrainedEncoder:
    """A frozen encoder.

    Attributes:
        network: in eval mode on the CPU, from N x 3 x size x size, normalised, to N x dim, not normalised.
        dim: number of features. arch: name of torchvision's network. stem: one of STEMS.
        crop_size: side of its input in pixels.
        tensors: number of tensors that come from the checkpoint; 0 if the weights are random.
        checkpoint: what the file holds, a dict; {} if the weights are random.
    """

    network: torch.nn.Module
    dim: int
    arch: str
    stem: str
    crop_size: int
    tensors: int
    checkpoint: dict

    def summary(self, path):
        """One line on what was opened from `path`."""
        source = f"{self.tensors} tensors of {path!r}" if self.tensors else "random weights"
        network = self.arch + ", small stem," * (self.stem == SMALL)
        return f"encoder: {network} with {source}, {self.dim} features, images of {self.crop_size} px"


def open_encoder(path, arch=None, crop_size=None, projected=False, encoder=SOURCE, seed=0, stem=None):
    """Opens a checkpoint, any file that --pretrained of main_lincls.py takes, and checks that it fits.

    Args:
        path: of the file; "none" means random weights.
        arch: name of torchvision's network. crop_size: side of the input in pixels. None: as in the checkpoint.
        projected: whether the features are those behind the projector, not those of the backbone.
        encoder: SOURCE or TARGET. seed: of random weights. stem: one of STEMS, or None: as in the checkpoint.

    Returns:
        A PretrainedEncoder.

    Raises:
        CheckpointError: the file is missing, unreadable or damaged, does not fit, or has no projector.
        ValueError: the network can't have that stem.
    """
    if path == "none":
        arch, stem = arch or ARCH, stem or IMAGENET
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)
            network = make_network(arch, stem, DIM)
            network = add_projector(network) if projected else network
        return PretrainedEncoder(*freeze(network, projected), arch, stem, crop_size or CROP_SIZE, 0, {})
    checkpoint = read(path)
    state = encoder_of(checkpoint, path, encoder)
    arch = arch or arch_of(checkpoint, path, state)
    stem = stem or (stem_of(checkpoint, state) if is_resnet(arch) else IMAGENET)
    network = make_network(arch, stem)
    backbone = backbone_for(network, checkpoint, path, arch, encoder)
    if projected:
        last = state.get("fc.5.weight")
        if last is None:
            raise CheckpointError(f"the checkpoint {path!r} has no projector; give a checkpoint of main_moco.py")
        network = add_projector(make_network(arch, stem, len(last)))
        if difference := misfit(state, {name: tensor.shape for name, tensor in network.state_dict().items()}):
            raise CheckpointError(f"the checkpoint {path!r} {difference}; its projector is not that of main_moco.py")
    network.load_state_dict(state if projected else backbone, strict=False)
    crop_size = crop_size or _crop_size_of(checkpoint)
    tensors = len(state if projected else backbone)
    return PretrainedEncoder(*freeze(network, projected), arch, stem, crop_size, tensors, checkpoint)


def arch_of(checkpoint, path, state):
    """The architecture of a checkpoint.

    Args:
        checkpoint: what the file holds. path: for the messages. state: its `encoder_of`.

    Raises:
        CheckpointError: it is none of `architectures()`.
    """
    found = architecture_of(checkpoint, {n: t for n, t in state.items() if not n.startswith("fc.")})
    if found not in architectures():
        named = "" if found is None else f" {found!r:.40}"
        raise CheckpointError(f"the checkpoint {path!r} is of an unknown network{named}; give --arch")
    return found


def _crop_size_of(checkpoint):
    size = checkpoint.get("options", {}).get("crop_size", CROP_SIZE)
    return size if type(size) is int and size > 0 else CROP_SIZE
