"""The data sets of torchvision as sources of labelled images: which there are, their splits, and their items."""

import inspect
import operator
import re

from PIL import Image
from torchvision import datasets

from moco.data.image_decoding import to_rgb
from moco.pipe_safe_print import first_line

TRAIN, VAL, UNLABELED = "train", "val", "unlabeled"  # folders in OUT
TRAIN_SPLITS, VAL_SPLITS = ("train", "trainval"), ("val", "valid", "test")  # torchvision's names, the best one first


def names():
    """The classes of torchvision.datasets that read a particular data set from a folder."""
    general = (datasets.VisionDataset, datasets.DatasetFolder, datasets.ImageFolder)
    classes = {name: getattr(datasets, name) for name in datasets.__all__}
    return sorted(
        name
        for name, x in classes.items()
        if inspect.isclass(x) and issubclass(x, datasets.VisionDataset) and x not in general and "root" in arguments(x)
    )


def arguments(kind):
    """A dict from the names of a class's arguments to inspect.Parameters, with those that it passes to its parent."""
    found = dict(inspect.signature(kind.__init__).parameters)
    if any(p.kind == p.VAR_KEYWORD for p in found.values()):
        found = arguments(kind.__base__) | found
    return {name: p for name, p in found.items() if name != "self" and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


class Source:
    """A data set of torchvision.

    Args:
        name: its class. root: the folder from which it reads. download: whether it may download.
        options: dict of further arguments of the class.

    Attributes:
        splits: dict from a folder in OUT to the arguments of the class that select the images.
        unused: the names of the splits that are not among them.

    Raises:
        ValueError: the data set is missing, or the options do not fit.
    """

    def __init__(self, name, root, download, options):
        self.name, self.root, self.download, self.options = name, root, download, options
        self.kind = getattr(datasets, name)
        self.arguments = arguments(self.kind)
        if unknown := sorted(options.keys() - self.arguments.keys()):
            raise ValueError(f"{name} has no argument {unknown[0]!r}; it has {', '.join(self.arguments)}")
        needed = [key for key, p in self.arguments.items() if p.default is p.empty and key not in ("root", *options)]
        if needed:
            raise ValueError(f"{name} needs the argument {needed[0]!r}; give --option {needed[0]}=VALUE")
        if download and "download" not in self.arguments:
            raise ValueError(f"torchvision can't download {name}; put its files into ROOT, and leave --download out")
        self.splits, self.unused = self._splits()

    def open(self, **selection):
        """An object of the class; raises ValueError if torchvision can't read the data set."""
        try:
            return self._construct(self.download, selection)
        except ImportError as error:
            raise ValueError(f"torchvision needs the package {error.name} to read {self.name}; install it") from error
        except Exception as error:
            why = re.sub(r"\. You (can|may) use download=True.*", "", first_line(error))
            downloads = "download" in self.arguments and not self.download
            way_out = "; give the right ROOT" + ", or --download" * downloads if "pip install" not in why else ""
            raise ValueError(f"torchvision can't read {self.name} from {self.root!r}: {why}{way_out}") from error

    def _construct(self, download, selection):
        loading = {"download": download} if "download" in self.arguments else {}
        return self.kind(self.root, **self.options, **loading, **selection)

    def _splits(self):
        if "train" in self.arguments and "train" not in self.options:
            return {TRAIN: {"train": True}, VAL: {"train": False}}, []
        if "split" not in self.arguments or "split" in self.options:
            return {TRAIN: {}}, []
        known = self._known_splits()
        chosen = {
            TRAIN: next((split for split in TRAIN_SPLITS if split in known), self.arguments["split"].default),
            VAL: next((split for split in VAL_SPLITS if split in known), None),
            UNLABELED: UNLABELED if UNLABELED in known else None,
        }
        used = {folder: {"split": split} for folder, split in chosen.items() if split}
        return used, [split for split in known if not set(split.split("+")) <= set(chosen.values())]

    def _known_splits(self):
        """The names of all splits, from torchvision's error about a wrong one; empty if it has another error."""
        try:
            self._construct(False, {"split": "?"})
        except Exception as error:
            return re.findall(r"'([^']+)'", str(error).partition("Valid values are")[2])
        return []


def item(name, dataset, index):
    """Image `index` in mode L or RGB, and its label, which is -1 if it has none.

    Raises:
        ValueError: the items of the data set are something else, or this one can't be read.
    """
    try:
        sample = dataset[index]
    except Exception as error:
        raise ValueError(f"torchvision can't read image {index} of {name}: {first_line(error)}") from error
    try:
        image, label = sample
        label = max(operator.index(label), -1)
        valid = isinstance(image, Image.Image)
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(f"the items of {name} are not an image and a class number; give another data set")
    image = image if image.mode == "L" else to_rgb(image)
    image.info = {}  # or Pillow would write a transparent colour and a colour profile into the PNG
    return image, label
