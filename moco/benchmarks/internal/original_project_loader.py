"""The original project's data loader, written again from its description: torchvision's transforms on PIL images.

RandAugment is ours on Pillow, since torchvision has no RandAugment of this form.
"""

import torch
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from moco.asymmetry.scalemix import scalemix
from moco.loader import CropsTransform, GaussianBlur
from moco.views.normalize import MEAN, STD
from moco.views.randaugment import LAYERS, UNIFORMS, apply_on_pil, draw_operation


class RandAugment:
    """PIL transform that applies two random operations."""

    def __call__(self, image):
        for _ in range(LAYERS):
            operation = draw_operation(torch.rand(UNIFORMS, dtype=torch.float64).tolist())
            if operation is not None:
                image = apply_on_pil(operation, image)
        return image


def recipe(view):
    """The transform that the original would write for a View."""
    steps = [transforms.RandomResizedCrop(view.size, scale=view.scale, ratio=view.ratio)]
    if view.jitter_p:
        steps.append(transforms.RandomApply([transforms.ColorJitter(*view.jitter)], p=view.jitter_p))
    if view.gray_p:
        steps.append(transforms.RandomGrayscale(p=view.gray_p))
    if view.blur_p:
        steps.append(transforms.RandomApply([GaussianBlur(view.sigma)], p=view.blur_p))
    steps.append(transforms.RandomHorizontalFlip(view.flip_p))
    if view.randaugment:
        steps.append(RandAugment())
    steps += [transforms.ToTensor(), transforms.Normalize(mean=MEAN, std=STD)]
    one = transforms.Compose(steps)
    return (lambda image: scalemix(one(image), one(image))) if view.mixed else one


def original_loader(root, plan, batch, workers):
    """The original's DataLoader for the images in `root` and the views of a ViewPlan."""
    dataset = datasets.ImageFolder(root, CropsTransform(*(recipe(view) for view in plan.views)))
    return loader_of_folder(dataset, batch, workers)


def loader_of_folder(dataset, batch, workers):
    """A DataLoader as users write it, with torch's default collate function."""
    return DataLoader(
        dataset,
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=True,
        multiprocessing_context="fork",
    )
