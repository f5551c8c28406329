"""Datasets that turn image files into views, as the data workers run them."""

from functools import partial
from itertools import accumulate

import torch
import torchvision.transforms.functional as TF
from torch.utils.data import Dataset, get_worker_info

from moco.counter_based_rng import VIEWS, generator
from moco.data.image_decoding import MOST_PIXELS
from moco.data.image_reading import BadImageError
from moco.views.augment_on_device import Layout
from moco.views.augment_with_pillow import render
from moco.views.random_parameters import draw_view, uniforms_needed
from moco.views.steps_on_device import COLUMNS


class RandomDataset(Dataset):
    """Base of the two training datasets: an ImageFolder whose views are drawn anew in each epoch.

    An item is requested by the pair (epoch, index), so that persistent data workers know the epoch. A data set returns
    whole batches. Its method `empty(n, new)` makes an empty batch as BatchRing needs it, and `fill(addresses, batch)`
    fills one.

    Args:
        folder: an ImageFolder. views: tuple of View. seed: the run's seed, 0 or more.
        substitutes: a Substitutes for images that can't be decoded; None raises their BadImageError.

    Attributes:
        ring: a BatchRing for the batches of the data workers, or None.

    Raises:
        ValueError: there are no views, or the seed is negative.
    """

    def __init__(self, folder, views, seed, substitutes=None):
        if not views or seed < 0:
            raise ValueError(f"a dataset has {len(views)} views and the seed {seed}; give 1 view and seed 0, or more")
        self.folder, self.views, self.seed, self.substitutes = folder, views, seed, substitutes
        self.ring = None
        self.ends = list(accumulate(uniforms_needed(view) for view in views))

    def __len__(self):
        return len(self.folder)

    def draws(self, epoch, index, width, height):
        """Draws the random parameters of an image's views: a list with one Draw per view.

        The views of a substitute use the random numbers of the image that it replaces.

        Args:
            epoch, index: of the image that was requested. width, height: size of the decoded image in pixels.
        """
        u = generator(VIEWS, self.seed, epoch, index).random(self.ends[-1]).tolist()
        starts = [0, *self.ends]
        return [
            draw_view(view, width, height, u[start:end])
            for view, start, end in zip(self.views, starts, self.ends, strict=False)
        ]

    def __getitems__(self, addresses):
        """Makes the batch of some (epoch, index); in a data worker it lies in the ring, if there is one."""
        if self.ring is not None and get_worker_info() is not None:
            return self.ring.filled(len(addresses), partial(self.fill, addresses))
        batch = self.empty(len(addresses), torch.empty)
        self.fill(addresses, batch)
        return batch

    def decode(self, load, epoch, index):
        """Decodes image `index`, or its substitute, by `load`, a method of the folder.

        Returns:
            (what `load` returned, the index of the image that it decoded).
        """
        if self.substitutes is not None:
            return self.substitutes.decode(load, epoch, index)
        try:
            return load(index), index
        except BadImageError as error:
            way_out = "or give --on-bad-image skip, which uses another image instead"
            raise BadImageError(f"{error}, {way_out}") from error


class RandomViews(RandomDataset):
    """The reference path (`--augment-on cpu`): Pillow makes the finished views in the data workers.

    A batch is (views, labels): a list with one N x 3 x size x size tensor (uint8) per View, and N labels (long). An
    item is the same for one image: a list of 3 x size x size, and an int. A substitute has its own label.
    """

    def bytes_each(self):
        """Bytes per image in each tensor of a batch."""
        return [3 * view.size**2 for view in self.views]

    def empty(self, n, new):
        """An empty batch of n images, whose tensors `new` makes."""
        views = [new((n, 3, view.size, view.size), dtype=torch.uint8) for view in self.views]
        return views, new((n,), dtype=torch.long)

    def fill(self, addresses, batch):
        """Fills a batch with the images of these (epoch, index)."""
        views, labels = batch
        for i, address in enumerate(addresses):
            made, labels[i] = self[address]
            for x, view in zip(views, made, strict=True):
                x[i] = view

    def __getitem__(self, address):
        epoch, index = address
        image, shown = self.decode(self.folder.load, epoch, index)
        draws = self.draws(epoch, index, *image.size)
        views = [render(draw, view.size, image) for draw, view in zip(draws, self.views, strict=True)]
        return views, int(self.folder.labels[shown])


class RandomCrops(RandomDataset):
    """The fast path (`--augment-on device`): data workers only decode and crop, the device does the rest.

    A batch is (crops, rows, labels), for `views.augment_on_device`:
        crops: dict from size to N x R x size x size x 3, uint8; R is the number of crops of that size per image.
        rows: N x (sum of all R) x COLUMNS, float32: the random parameters of what remains to be done.
        labels: N, long.
    """

    def __init__(self, folder, views, seed, substitutes=None):
        super().__init__(folder, views, seed, substitutes)
        self.layout = Layout(views)

    def bytes_each(self):
        """Bytes per image in each tensor of a batch, without the few of its parameters."""
        return [3 * size**2 * len(rows) for size, rows in self.layout.rows.items()]

    def empty(self, n, new):
        """An empty batch of n images, whose tensors `new` makes."""
        places = self.layout.rows
        crops = {size: new((n, len(rows), size, size, 3), dtype=torch.uint8) for size, rows in places.items()}
        rows = new((n, sum(map(len, places.values())), COLUMNS), dtype=torch.float32)
        return crops, rows, new((n,), dtype=torch.long)

    def fill(self, addresses, batch):
        """Fills a batch with the images of these (epoch, index)."""
        crops, rows, labels = batch
        parameters, shown = [], []
        for i, (epoch, index) in enumerate(addresses):
            image, substitute = self.decode(self.folder.load_tensor, epoch, index)
            shown.append(substitute)
            draws = self.draws(epoch, index, image.shape[1], image.shape[0])
            self.layout.crop(image, draws, {size: x[i] for size, x in crops.items()})
            parameters.append(self.layout.rows_of(draws))
        rows.numpy()[:] = parameters
        labels.numpy()[:] = self.folder.labels[shown]


class CentralViews(Dataset):
    """For validation: resizes the shorter side to size * 256 / 224 pixels, then takes the central size x size crop.

    An item, addressed by its index, is (view, label): 3 x size x size (uint8), and an int.

    Args:
        folder: an ImageFolder. size: side of the crop in pixels, 1 or more.
        skip_bad: whether an image that can't be decoded is an item of zeros with the label BAD, not an error.

    Raises:
        ValueError: `size` is smaller than 1.
        BadImageError: on access to an image that can't be decoded, or that would have too many pixels after the
            resize.
    """

    BAD = -2  # -1 is the label of images without a class

    def __init__(self, folder, size=224, skip_bad=False):
        if size < 1:
            raise ValueError(f"validation images of {size} px are not possible; give a size of 1 or more")
        self.folder, self.size, self.skip_bad = folder, size, skip_bad

    def __len__(self):
        return len(self.folder)

    def bytes_each(self):
        """Bytes per image in each tensor of a batch."""
        return [3 * self.size**2]

    def __getitem__(self, index):
        try:
            return self._crop(index), int(self.folder.labels[index])
        except BadImageError:
            if not self.skip_bad:
                raise
            return torch.zeros(3, self.size, self.size, dtype=torch.uint8), self.BAD

    def _crop(self, index):
        image, side = self.folder.load(index), round(self.size * 256 / 224)
        if max(image.size) * side**2 > MOST_PIXELS * min(image.size):
            width, height = image.size
            path = self.folder.path(index)
            raise BadImageError(
                f"the image {path!r} of {width} x {height} pixels is too long: with its shorter side resized to "
                f"{side} pixels, it would have more than {MOST_PIXELS} pixels; crop or remove it"
            )
        return TF.pil_to_tensor(TF.center_crop(TF.resize(image, side), [self.size, self.size]))
