"""The data loader that a user of lightly would have: its MoCoV2Transform on torchvision's ImageFolder."""

import warnings

from torchvision import datasets

from moco.benchmarks.internal.original_project_loader import loader_of_folder


def lightly_loader(root, size, batch, workers):
    """lightly's DataLoader for the images in `root` and two views of `size` pixels.

    Raises:
        ValueError: lightly is not installed, or does not start; the message is one line.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from lightly.transforms import MoCoV2Transform
    except ImportError as error:
        raise ValueError(f"--lightly needs lightly ({error}); pip install lightly, or leave --lightly out") from error
    return loader_of_folder(datasets.ImageFolder(root, MoCoV2Transform(input_size=size)), batch, workers)
