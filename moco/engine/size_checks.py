"""Checks of --crop-size and --mini-crop-size before any work: the network's strides, and the memory."""

import math

import torch

from moco.asymmetry.multicrop import mini_size_for
from moco.engine.architectures import IMAGENET, in_words, meta_network
from moco.engine.launch_plan import memory

PROBE = 256  # side in pixels of the input by which a total stride is measured, which can't be larger


def settle_mini_size(mini_size, crop_size, multicrop):
    """The side of MultiCrop's small views in pixels: --mini-crop-size, or 96/224 of --crop-size if that is None.

    Raises:
        ValueError: `multicrop` is on, and the small views would not be smaller than the others.
    """
    settled = mini_size_for(crop_size) if mini_size is None else mini_size
    if multicrop and settled >= crop_size:
        raise ValueError(
            f"--mini-crop-size {settled} must be smaller than --crop-size {crop_size}, since MultiCrop's additional "
            "views are the small ones; give a smaller --mini-crop-size or a larger --crop-size"
        )
    return settled


def check_views(views, arch, batch, processes, gpu=None, stem=IMAGENET):
    """Checks that a network of torchvision can encode the views of a batch, and that the memory can hold them.

    Args:
        views: tuple of View; the largest ones have --crop-size, smaller ones --mini-crop-size. arch: of --arch.
        batch: images per step on this node. processes: on this node. gpu: index of the GPU for one process, or None.
        stem: of --stem.

    Raises:
        ValueError: the views are too small or too large; the message names the flag and the way out.
    """
    check_memory(views, batch // processes, 4, "a smaller --batch-size", process_memory(processes, gpu))  # float32
    smallest, largest = min(view.size for view in views), max(view.size for view in views)
    flag = "--crop-size" if smallest == largest else "--mini-crop-size"
    # A view of PROBE / 4 pixels is always large enough, so most runs need no network for this check.
    stride = total_stride(arch, stem) if smallest < PROBE / 4 else 1
    if smallest < stride / 4:
        raise ValueError(
            f"{flag} {smallest} is too small for {in_words(arch, stem)}, whose strides reduce {stride} pixels to 1; a "
            f"view needs at least a quarter of that, so give {math.ceil(stride / 4)} or more"
        )


def check_memory(views, images, copies, fewer, room=None):
    """Checks that the views of some images fit into the memory.

    Args:
        views: tuple of View. images: number of images.
        copies: how many bytes a value of a view takes, or how many times it is in memory as uint8.
        fewer: the way out beside smaller views, in words that follow "give".
        room: bytes of memory; None means all of this machine's.

    Raises:
        ValueError: they do not fit.
    """
    size, room = images * copies * sum(3 * view.size**2 for view in views), memory() if room is None else room
    if size > room:
        sizes = sorted({view.size for view in views}, reverse=True)
        sides, mini = " and ".join(map(str, sizes)), " or --mini-crop-size" * (len(sizes) > 1)
        raise ValueError(
            f"views of {sides} pixels for {images} images need {size / 1e9:,.1f} GB, but there are {room / 1e9:,.1f} "
            f"GB of memory; give a smaller --crop-size{mini}, or {fewer}"
        )


def process_memory(processes, gpu=None):
    """Bytes of memory of one process: all of its GPU's, or an equal share of this machine's without GPUs."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(gpu or 0).total_memory
    return memory() // processes


def total_stride(arch, stem=IMAGENET):
    """How many pixels of the input, per side, become one pixel of the last convolution's output.

    No weights are allocated and nothing is computed; only shapes are.

    Args:
        arch: the name of a network of torchvision. stem: of --stem.
    """
    network = meta_network(arch, stem).eval()
    sides = [PROBE]
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda module, x, y: sides.append(y.shape[-1]))
    with torch.no_grad():
        network(torch.empty(1, 3, PROBE, PROBE, device="meta"))
    return PROBE // sides[-1]
