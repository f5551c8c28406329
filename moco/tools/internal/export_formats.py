"""The formats in which other libraries load a backbone: their names for networks and tensors, and their files.

Names of networks and tensors were compared with timm 1.0 and with detectron2's `modeling/backbone/resnet.py`.
"""

import importlib.util
import json
import os
import pickle
import re

import numpy as np
import torch

from moco.engine.architectures import SMALL, architectures, is_resnet, make_network, shrink_stem
from moco.evaluation.frozen_backbone import freeze
from moco.views.normalize import MEAN, STD

RESNETS = [name for name in architectures() if is_resnet(name)]  # also ResNeXt and wide ResNets

TIMM = {name: name for name in RESNETS} | {
    "regnet_x_400mf": "regnetx_004_tv",
    "regnet_x_800mf": "regnetx_008",
    "regnet_x_1_6gf": "regnetx_016",
    "regnet_x_3_2gf": "regnetx_032",
    "regnet_x_8gf": "regnetx_080",
    "regnet_x_16gf": "regnetx_160",
    "regnet_x_32gf": "regnetx_320",
    "regnet_y_400mf": "regnety_004",
    "regnet_y_800mf": "regnety_008_tv",
    "regnet_y_1_6gf": "regnety_016",
    "regnet_y_3_2gf": "regnety_032",
    "regnet_y_8gf": "regnety_080_tv",
    "regnet_y_16gf": "regnety_160",
    "regnet_y_32gf": "regnety_320",
    "regnet_y_128gf": "regnety_1280",
}

DETECTRON2 = {  # settings of MODEL.RESNETS
    "resnet18": {"DEPTH": 18, "RES2_OUT_CHANNELS": 64},
    "resnet34": {"DEPTH": 34, "RES2_OUT_CHANNELS": 64},
    "resnet50": {"DEPTH": 50},
    "resnet101": {"DEPTH": 101},
    "resnet152": {"DEPTH": 152},
    "resnext50_32x4d": {"DEPTH": 50, "NUM_GROUPS": 32, "WIDTH_PER_GROUP": 4},
    "resnext101_32x8d": {"DEPTH": 101, "NUM_GROUPS": 32, "WIDTH_PER_GROUP": 8},
    "resnext101_64x4d": {"DEPTH": 101, "NUM_GROUPS": 64, "WIDTH_PER_GROUP": 4},
    "wide_resnet50_2": {"DEPTH": 50, "WIDTH_PER_GROUP": 128},
    "wide_resnet101_2": {"DEPTH": 101, "WIDTH_PER_GROUP": 128},
}
SMALL_STEM = [  # what `shrink_stem` does, in the user's program
    "model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)",
    "model.maxpool = torch.nn.Identity()",
]
INPUT = f"# Input: N x 3 x H x W, RGB from 0 to 1, minus {MEAN}, divided by {STD}"
FEATURES = ("model.fc = torch.nn.Identity()  # so that the output is the features", "model.eval()")


class Torchvision:
    """Plain state dicts, which torchvision's own networks load. The other formats differ from it where they must.

    Attributes:
        networks: the known architectures, as keys. small_stem: whether its ResNets can get the small stem.
        endings: of a file's name; the first is the usual one.
        package: which reads the files, if the project does not need it otherwise. header: the line above `usage`.
    """

    networks = dict.fromkeys(architectures())
    small_stem = True
    endings = (".pth", ".pt")
    package = None
    header = "Load it in Python:"

    def tensor_name(self, name):
        """The library's name for a tensor of torchvision; None if the library lacks the tensor."""
        return name

    def write(self, tensors, metadata, file):
        """Writes a dict of the library's names to tensors into an open file. `metadata` is a dict of strings."""
        torch.save(tensors, file)

    def read(self, path):
        """The tensors of a file, by the library's names."""
        return torch.load(path, weights_only=True)

    def load(self, path, arch, stem):
        """Loads a file as its users will.

        Returns:
            (frozen network from images to features, what has loaded it, in words).
        """
        network = make_network(arch, stem)
        names = {self.tensor_name(name): name for name in network.state_dict()}
        network.load_state_dict({names[name]: tensor for name, tensor in self.read(path).items()}, strict=False)
        return freeze(network)[0], "torchvision"

    def usage(self, path, arch, stem):
        """The lines that a user copies."""
        return [
            INPUT,
            "import torch, torchvision",
            *_load_state_dict(arch, stem, f"torch.load({path!r}, weights_only=True)"),
        ]


def _load_state_dict(arch, stem, tensors):
    return [
        f"model = torchvision.models.{arch}()",
        *SMALL_STEM * (stem == SMALL),
        f"model.load_state_dict({tensors}, strict=False)  # only fc is missing",
        *FEATURES,
    ]


class Timm(Torchvision):
    """State dicts with timm's names. Those of its ResNets are torchvision's; those of its RegNets are not."""

    networks = TIMM

    def tensor_name(self, name):
        block = r"^trunk_output\.block(\d)\.block\d-(\d+)\."
        name = re.sub(block, lambda found: f"s{found[1]}.b{int(found[2]) + 1}.", name)
        name = re.sub(r"\.f\.([abc])\.", lambda found: f".conv{'abc'.index(found[1]) + 1}.", name)
        name = name.replace(".f.se.", ".se.").replace(".proj.", ".downsample.")
        layer = r"^(stem|s\d\.b\d+\.(?:conv\d|downsample))\.([01])\."
        return re.sub(layer, lambda found: f"{found[1]}.{('conv', 'bn')[int(found[2])]}.", name)

    def load(self, path, arch, stem):
        if importlib.util.find_spec("timm"):
            import timm

            if timm.is_model(TIMM[arch]):
                how = {} if stem == SMALL else {"checkpoint_path": path}
                network = timm.create_model(TIMM[arch], num_classes=0, **how)
                if stem == SMALL:
                    shrink_stem(network).load_state_dict(self.read(path))
                return network.requires_grad_(False).eval(), f"timm {timm.__version__}"
        return super().load(path, arch, stem)[0], "torchvision after renaming, since timm is missing or too old"

    def usage(self, path, arch, stem):
        if stem == SMALL:
            model = f"model = timm.create_model({TIMM[arch]!r}, num_classes=0)"
            load = f"model.load_state_dict(torch.load({path!r}, weights_only=True))"
            return [INPUT, "import timm, torch", model, *SMALL_STEM, load, "model.eval()"]
        return [
            INPUT,
            "import timm",
            f"model = timm.create_model({TIMM[arch]!r}, num_classes=0, checkpoint_path={path!r}).eval()",
        ]


class Detectron2(Torchvision):
    """Pickled NumPy arrays with detectron2's names, for its setting MODEL.WEIGHTS."""

    networks = DETECTRON2
    small_stem = False
    endings = (".pkl",)
    header = "Put this into detectron2's configuration:"

    def tensor_name(self, name):
        if name.endswith("num_batches_tracked"):
            return None
        name = re.sub(r"^(?=conv1|bn1)", "stem.", name)
        name = re.sub(r"^layer(\d)", lambda found: f"res{int(found[1]) + 1}", name)
        name = re.sub(r"\bbn(\d)", r"conv\1.norm", name)
        return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")

    def write(self, tensors, metadata, file):
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        _Pickler(file).dump({"model": arrays, "__author__": "Asym-Siam", "matching_heuristics": True})

    def read(self, path):
        with open(path, "rb") as file:
            return {name: torch.from_numpy(array) for name, array in pickle.load(file)["model"].items()}

    def load(self, path, arch, stem):
        return super().load(path, arch, stem)[0], "torchvision after renaming (detectron2 itself was not tried)"

    def usage(self, path, arch, stem):
        mean, std = (", ".join(f"{255 * value:.3f}" for value in values) for values in (MEAN, STD))
        lines = ["# MoCo's detection runs also train every layer: BACKBONE.FREEZE_AT 0 and RESNETS.NORM SyncBN"]
        if DETECTRON2[arch]["DEPTH"] < 50:
            lines.append(
                "# Take a configuration with FPN: detectron2's C4 heads do not know the blocks of this network"
            )
        return [
            *lines,
            "MODEL:",
            f"  WEIGHTS: {json.dumps(os.path.abspath(path))}",
            f"  PIXEL_MEAN: [{mean}]",
            f"  PIXEL_STD: [{std}]",
            "  RESNETS:",
            *(f"    {name}: {value}" for name, value in DETECTRON2[arch].items()),
            "    STRIDE_IN_1X1: False",
            "INPUT:",
            '  FORMAT: "RGB"',
        ]


class _Pickler(pickle.Pickler):
    """Pickles arrays so that any NumPy reads them. NumPy 2 would name one of its modules that NumPy 1 lacks."""

    def reducer_override(self, value):
        if isinstance(value, np.ndarray):
            return np.ndarray, (value.shape, value.dtype.str, bytearray(value.tobytes()))
        return NotImplemented


class Safetensors(Torchvision):
    """Files of the package safetensors, with torchvision's names and the metadata."""

    endings = (".safetensors",)
    package = "safetensors"

    def write(self, tensors, metadata, file):
        from safetensors.torch import save

        file.write(save(tensors, metadata))

    def read(self, path):
        from safetensors.torch import load_file

        return load_file(path)

    def usage(self, path, arch, stem):
        imports = ["import torch, torchvision", "from safetensors.torch import load_file"]
        return [INPUT, *imports, *_load_state_dict(arch, stem, f"load_file({path!r})")]


FORMATS = {
    "torchvision": Torchvision(),
    "timm": Timm(),
    "detectron2": Detectron2(),
    "safetensors": Safetensors(),
}
