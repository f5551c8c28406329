"""Names of networks and tensors in other libraries, for every network."""

import io
import pickle
import pickletools

import numpy as np
import pytest
import torch

from moco.engine.architectures import architectures, meta_network
from moco.engine.pretrained_backbone import shapes_of_architecture
from moco.tools.internal.export_formats import DETECTRON2, FORMATS, RESNETS, TIMM

NORM = ("weight", "bias", "running_mean", "running_var")
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def renamed(library, arch):
    """The shapes of a network's tensors by the library's names."""
    names = [(FORMATS[library].tensor_name(name), shape) for name, shape in shapes_of_architecture(arch).items()]
    kept = [(name, tuple(shape)) for name, shape in names if name]
    assert len(dict(kept)) == len(kept)  # no two tensors get one name
    return dict(kept)


def detectron2_shapes(DEPTH, NUM_GROUPS=1, WIDTH_PER_GROUP=64, RES2_OUT_CHANNELS=256):
    """The tensors that `build_resnet_backbone` of detectron2 makes for these settings of MODEL.RESNETS."""
    shapes = {}

    def conv(name, into, out, size):
        shapes[f"{name}.weight"] = (out, into, size, size)
        shapes.update({f"{name}.norm.{part}": (out,) for part in NORM})

    conv("stem.conv1", 3, 64, 7)
    before, out, inner = 64, RES2_OUT_CHANNELS, NUM_GROUPS * WIDTH_PER_GROUP
    for stage, blocks in enumerate(BLOCKS[DEPTH], 2):
        for block in range(blocks):
            name = f"res{stage}.{block}"
            if before != out:
                conv(f"{name}.shortcut", before, out, 1)
            if DEPTH < 50:
                conv(f"{name}.conv1", before, out, 3)
                conv(f"{name}.conv2", out, out, 3)
            else:
                conv(f"{name}.conv1", before, inner, 1)
                conv(f"{name}.conv2", inner, inner, 3)
                shapes[f"{name}.conv2.weight"] = (inner, inner // NUM_GROUPS, 3, 3)
                conv(f"{name}.conv3", inner, out, 1)
            before = out
        out, inner = 2 * out, 2 * inner
    return shapes


def torchvision_name(name):
    """The way back from detectron2's name, by replacement of its parts."""
    for theirs, ours in [
        ("stem.", ""),
        ("shortcut.norm", "downsample.1"),
        ("shortcut", "downsample.0"),
        *((f"res{i + 1}.", f"layer{i}.") for i in range(1, 5)),
        *((f"conv{i}.norm", f"bn{i}") for i in range(1, 4)),
    ]:
        name = name.replace(theirs, ours)
    return name


@pytest.mark.parametrize("arch", DETECTRON2)
def test_detectron2_has_these_tensors(arch):
    theirs, ours = renamed("detectron2", arch), shapes_of_architecture(arch)
    assert theirs == detectron2_shapes(**DETECTRON2[arch])
    back = {torchvision_name(name): shape for name, shape in theirs.items()}
    assert back == {name: tuple(shape) for name, shape in ours.items() if not name.endswith("num_batches_tracked")}


def test_which_networks_each_library_has():
    kinds = {name: name.split("_")[0] for name in architectures()}
    assert list(FORMATS["torchvision"].networks) == list(FORMATS["safetensors"].networks) == architectures()
    assert set(DETECTRON2) == set(RESNETS) == {n for n, kind in kinds.items() if "resn" in n}
    assert set(TIMM) == {n for n, kind in kinds.items() if kind != "shufflenet"}


@pytest.mark.parametrize("arch", TIMM)
def test_timm_has_these_tensors(arch):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        network = timm.create_model(TIMM[arch], num_classes=0)
    assert renamed("timm", arch) == {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    # The groups of a convolution are in no shape but in its settings.
    strides = [
        [(m.stride, m.groups, m.kernel_size) for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
        for net in (network, meta_network(arch))
    ]
    assert sorted(strides[0]) == sorted(strides[1])


def test_any_numpy_reads_detectron2s_file():
    """NumPy's own pickles name `numpy._core` since NumPy 2, and `numpy.core` before."""
    file = io.BytesIO()
    FORMATS["detectron2"].write({"w": torch.arange(6.0).view(2, 3), "x": torch.tensor(7.0)}, {}, file)
    strings = [arg for op, arg, _ in pickletools.genops(file.getvalue()) if "UNICODE" in op.name]
    assert "numpy" in strings and "ndarray" in strings
    assert not any(isinstance(s, str) and s.startswith("numpy.") for s in strings)
    content = pickle.loads(file.getvalue(), encoding="latin1")  # as detectron2 does
    assert content.keys() == {"model", "__author__", "matching_heuristics"} and content["matching_heuristics"] is True
    w, x = content["model"]["w"], content["model"]["x"]
    assert w.dtype == np.float32 and w.flags.writeable and w.tolist() == [[0, 1, 2], [3, 4, 5]] and x.shape == ()
