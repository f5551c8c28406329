"""Exported files: what other libraries make of them, and what is refused."""

import os
import pickle
import re
import sys
from argparse import ArgumentTypeError

import pytest
import torch
from torchvision import models

from moco.builder import MoCo
from moco.engine.checkpoint_format import checkpoint_of
from moco.tools import export
from moco.tools.internal.export_formats import FORMATS
from tests.tools.internal.test_export_formats import torchvision_name

NET, OTHER, SHUFFLENET = "resnet18", "regnet_y_400mf", "shufflenet_v2_x0_5"
OPTIONS = {"crop_size": 48, "enable_multicrop": True, "enable_scalemix": False, "enable_asym_bn": True}
OURS, PUBLISHED = "ours.pth.tar", "published.pth"
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def moco(arch):
    """A model whose two encoders differ, and whose statistics are not those of a new network."""
    model = MoCo(lambda num_classes: models.get_model(arch, num_classes=num_classes), dim=8, K=16, seed=3)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 2, generator=generator)
        for p in model.parameters():
            if p.ndim == 1:
                p.uniform_(-0.5, 1, generator=generator)
    return model.eval()


@pytest.fixture(scope="module", autouse=True)
def _torch_threads():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def trained():
    """The models by architecture."""
    return {arch: moco(arch) for arch in (NET, OTHER, SHUFFLENET)}


@pytest.fixture(scope="module")
def runs(trained, tmp_path_factory):
    """A folder with checkpoints of this project and in the published format, and some of bare weights."""
    folder = tmp_path_factory.mktemp("runs")
    for (arch, net), suffix in zip(trained.items(), ("", "_regnet", "_shufflenet"), strict=True):
        options = {**OPTIONS, "arch": arch}
        ours = checkpoint_of(3, net, torch.optim.SGD(net.parameters(), 0.1), options, step=5, run="0a1b2c3d")
        torch.save(ours, folder / OURS.replace(".", suffix + ".", 1))
        published = {key: ours[key] for key in ("epoch", "arch", "state_dict", "optimizer")}
        torch.save(published, folder / PUBLISHED.replace(".", suffix + ".", 1))
    bare = {n: t for n, t in trained[NET].encoder_q.state_dict().items() if not n.startswith("fc.")}
    torch.save(bare, folder / "bare.pth")
    torch.save({**bare, "bn1.bias": torch.full((64,), torch.inf)}, folder / "infinite.pth")
    return folder


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path, monkeypatch, zero_weights):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export, "PIXELS", 32)


def features(network, images=IMAGES):
    """The output of a network, or what enters its `fc`."""
    if isinstance(getattr(network, "fc", None), torch.nn.Module):
        network.fc, fc = torch.nn.Identity(), network.fc
        output = network.eval()(images)
        network.fc = fc
        return output.detach()
    return network.eval()(images).detach()


def loaded(library, out, path):
    """The network that a user gets: by the lines that were shown, or by the way back from detectron2's names."""
    shown = out.partition(f"\n\n{FORMATS[library].header}\n")[2]
    if library == "detectron2":
        with open(path, "rb") as file:
            content = pickle.load(file, encoding="latin1")["model"]
        network = models.get_model(NET)
        tensors = {torchvision_name(name): torch.from_numpy(array) for name, array in content.items()}
        missing, unexpected = network.load_state_dict(tensors, strict=False)
        assert not unexpected and all(re.match(r"fc\.|.*num_batches_tracked$", name) for name in missing)
        return network
    names = {}
    exec(shown, names)
    return names["model"]


LIBRARIES = {"torchvision": "b.pth", "timm": "b.pt", "detectron2": "b.pkl", "safetensors": "b.safetensors"}


@pytest.mark.parametrize("file", [OURS, PUBLISHED])
@pytest.mark.parametrize("library", LIBRARIES)
def test_what_is_shown_gives_the_features_of_the_encoder(library, file, runs, trained, call):
    if library in ("timm", "safetensors"):
        pytest.importorskip(library)
    path = LIBRARIES[library]
    code, out, error = call(export.main, runs / file, path, "--to", library)
    assert (code, error) == (0, "")
    tensors, size = 100 if library == "detectron2" else 120, os.path.getsize(path) / 1e6
    crop = 48 if file == OURS else 224
    line = f"wrote {path!r}: encoder_q of resnet18, {crop} px, {tensors} tensors, {size:.1f} MB; loaded again by "
    assert out.startswith(line) and out.splitlines()[0].endswith(": equal features")
    torch.testing.assert_close(features(loaded(library, out, path)), features(trained[NET].encoder_q))
    assert os.listdir() == [path]


def test_the_target_encoder_and_a_regnet(runs, trained, call):
    pytest.importorskip("timm")
    code, out, _ = call(export.main, runs / "ours_regnet.pth.tar", "b.pth", "--to", "timm", "--target")
    assert code == 0 and "encoder_k of regnet_y_400mf" in out and "again by timm " in out
    torch.testing.assert_close(features(loaded("timm", out, "b.pth")), features(trained[OTHER].encoder_k))


def test_torchvision_misses_only_the_classifier(runs, call):
    call(export.main, runs / OURS, "b.pth", "--to", "torchvision")
    tensors = torch.load("b.pth", weights_only=True)
    missing, unexpected = models.resnet18().load_state_dict(tensors, strict=False)
    assert missing == ["fc.weight", "fc.bias"] and unexpected == [] and type(tensors) is dict
    # Without an export nothing is loaded, and torch does not say so.
    checkpoint = torch.load(runs / OURS, weights_only=True)["state_dict"]
    missing, _ = models.resnet18().load_state_dict(checkpoint, strict=False)
    assert {n for n, _ in models.resnet18().named_parameters()} <= set(missing)


def test_without_timm_the_names_are_mapped_back(runs, call, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    code, out, _ = call(export.main, runs / "ours_regnet.pth.tar", "b.pth", "--to", "timm")
    assert code == 0 and "again by torchvision after renaming, since timm is missing or too old: equal" in out
    assert "s1.b1.conv1.conv.weight" in torch.load("b.pth", weights_only=True)


def test_detectron2s_configuration(runs, call):
    path = os.path.abspath("b.pkl")
    _, out, _ = call(export.main, runs / OURS, "b.pkl", "--to", "detectron2")
    lines = out.partition("configuration:\n")[2].splitlines()
    assert [line for line in lines if line[0] != "#"] == [
        "MODEL:",
        f'  WEIGHTS: "{path}"',
        "  PIXEL_MEAN: [123.675, 116.280, 103.530]",
        "  PIXEL_STD: [58.395, 57.120, 57.375]",
        "  RESNETS:",
        "    DEPTH: 18",
        "    RES2_OUT_CHANNELS: 64",
        "    STRIDE_IN_1X1: False",
        "INPUT:",
        '  FORMAT: "RGB"',
    ]
    assert "with FPN" in lines[1]


@pytest.mark.parametrize(
    "file, about",
    [
        (OURS, ("0a1b2c3d", "3", "5", "MultiCrop, AsymBN", "48")),
        (PUBLISHED, ("unknown", "3", "0", "unknown", "224")),
    ],
)
def test_the_metadata_of_safetensors(file, about, runs, call):
    safetensors = pytest.importorskip("safetensors")
    call(export.main, runs / file, "b.safetensors", "--to", "safetensors")
    with safetensors.safe_open("b.safetensors", "pt") as opened:
        data = opened.metadata()
    assert tuple(data[key] for key in ("run", "epoch", "step", "designs", "crop_size")) == about
    assert (data["architecture"], data["stem"], data["encoder"]) == (NET, "imagenet", "encoder_q")
    assert (data["mean"], data["std"]) == ("(0.485, 0.456, 0.406)", "(0.229, 0.224, 0.225)")


def test_several_checkpoints_go_into_a_folder(runs, call, monkeypatch, tmp_path):
    done = []
    monkeypatch.setattr(export.Progress, "add", lambda progress, n=1: done.append((progress.total, progress.unit)))
    files = [runs / "ours_shufflenet.pth.tar", runs / "published_shufflenet.pth", runs / "ours_regnet.pth.tar"]
    code, out, _ = call(export.main, *files, "new/out", "--to", "torchvision")
    names = ["ours_regnet.pth", "ours_shufflenet.pth", "published_shufflenet.pth"]
    assert code == 0 and sorted(os.listdir("new/out")) == names
    assert [one for one in done if one[1] == "checkpoints"] == [(3, "checkpoints")] * 3
    assert re.findall(r"models\.(\w+)\(\)", out) == [SHUFFLENET, OTHER]  # once for each network


def test_equal_names_in_a_folder_have_their_folders_before_them():
    paths = export.destinations(["runs/a/c.pth.tar", "runs/b/c.pt", "d"], "out", (".pkl",))
    assert paths == ["out/a-c.pkl", "out/b-c.pkl", f"out/{os.path.basename(os.getcwd())}-d.pkl"]
    assert export.destinations(["runs/a/c.pth.tar"], "out/", (".pkl",)) == ["out/c.pkl"]
    with pytest.raises(ArgumentTypeError, match=r"'1/a/c\.pth' and '2/a/c\.pth' would both be"):
        export.destinations(["1/a/c.pth", "2/a/c.pth"], "out", (".pkl",))


def test_an_earlier_export_is_overwritten_but_no_checkpoint(runs, call):
    with open("b.pth", "w") as file:
        file.write("an earlier one")
    assert call(export.main, runs / "ours_shufflenet.pth.tar", "b.pth", "--to", "torchvision")[0] == 0
    before = os.path.getsize("b.pth")
    assert call(export.main, "b.pth", "b2.pth", "--to", "torchvision")[0] == 0  # bare weights are a checkpoint, too
    os.link(runs / "published_shufflenet.pth", "c.pth")
    os.symlink("b.pth", "link.pth")
    for checkpoint, out in (("b.pth", "b.pth"), ("link.pth", "b.pth"), ("b.pth", "c.pth"), ("b.pth", ".")):
        code, said, error = call(export.main, checkpoint, out, "--to", "torchvision")
        assert (code, said, error.count("\n")) == (2, "", 1)
        assert "is a checkpoint, which is not overwritten; give another OUT as the last path" in error
    assert os.path.getsize("b.pth") == before and "state_dict" in torch.load("c.pth", weights_only=True)


@pytest.mark.parametrize(
    "words, message",
    [
        (["none", "b.pth", "--to", "torchvision"], "random weights ('none') are not exported; give the path of"),
        (["RUNS/no.pth", "b.pth", "--to", "timm"], "no checkpoint '"),
        (["RUNS/ours.pth.tar", "--to", "timm"], "OUT is missing; give the file to write; for several checkpoints, th"),
        ([], "CHECKPOINT is missing; give the checkpoint to export; for example: python -m moco.tools.export runs/"),
        (["RUNS/ours.pth.tar", "b.pth"], "--to is missing; give the library, one of torchvision, timm, detectron2, s"),
        (["RUNS/ours.pth.tar", "b.pth", "--to", "tim"], "did you mean timm? give one of torchvision, timm, detectron"),
        (["RUNS/ours.pth.tar", "b.pkl", "--to", "timm"], "give a name that ends in .pth or .pt"),
        (["RUNS/ours.pth.tar", "b.pth", "--to", "detectron2"], "give a name that ends in .pkl"),
        (["RUNS/ours.pth.tar", "no/b.pth", "--to", "timm"], "'no' is no folder; make it first"),
        (["RUNS/ours.pth.tar", "RUNS/ours.pth.tar", "b.pth", "--to", "timm"], "is one file for 2 checkpoints; give a"),
        (["RUNS/ours.pth.tar", "RUNS/ours.pth.tar", "b", "--to", "timm"], "would both be written to 'b/"),
        (["RUNS/ours.pth.tar", "b.pth", "--to", "timm", "-a", OTHER], "is of --arch resnet18, not regnet_y_400mf"),
        (["RUNS/ours.pth.tar", "b.pth", "--to", "timm", "-a", "vit"], "invalid choice: 'vit'; --help lists all"),
        (["RUNS/bare.pth", "b.pth", "--to", "timm", "--target"], "has no target encoder; give a checkpoint of main_m"),
        (["RUNS/infinite.pth", "b.pth", "--to", "timm"], "bn1.bias is not finite; give an earlier one"),
        (
            ["RUNS/ours.pth.tar", "RUNS/ours_shufflenet.pth.tar", "b", "--to", "timm"],
            "--to timm knows no shufflenet_v2_x0_5, the network of 'RUNS/ours_shufflenet.pth.tar'; give --to "
            "torchvision or safetensors, or a checkpoint of resnet101, resnet152, ",
        ),
        (
            ["RUNS/ours_regnet.pth.tar", "b.pkl", "--to", "detectron2"],
            "detectron2 knows no regnet_y_400mf, the net",
        ),
    ],
)
def test_what_it_refuses(words, message, runs, call):
    code, out, error = call(export.main, *(word.replace("RUNS", str(runs)) for word in words))
    assert code == 2 and not out and error.count("\n") == 1 and message.replace("RUNS", str(runs)) in error
    assert os.listdir() == []


def test_a_package_that_is_missing(runs, call, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    code, out, error = call(export.main, runs / OURS, "b.safetensors", "--to", "safetensors")
    assert (code, out, error.count("\n"), os.listdir()) == (2, "", 1, [])
    assert error.endswith("--to safetensors needs a package that is not installed; run pip install safetensors\n")


@pytest.mark.parametrize("fault", ["tensors", "features", "unreadable"])
def test_a_file_that_does_not_load_alike_is_reported(fault, runs, call, monkeypatch):
    form = FORMATS["torchvision"]
    if fault == "tensors":
        monkeypatch.setattr(form, "write", lambda tensors, _, file: torch.save({**tensors, "x": torch.ones(1)}, file))
    elif fault == "features":
        other = models.get_model(SHUFFLENET)
        other.fc = torch.nn.Identity()
        monkeypatch.setattr(form, "load", lambda path, arch, stem: (other.eval().requires_grad_(False), "x"))
    else:
        monkeypatch.setattr(form, "write", lambda tensors, metadata, file: file.write(b"x"))
    with pytest.raises(SystemExit) as stop:
        export.main([str(runs / "ours_shufflenet.pth.tar"), "b.pth", "--to", "torchvision"])
    message = f"its {fault} differ" if fault != "unreadable" else ""
    assert re.fullmatch(
        f"error: 'b.pth' was written, but could not be loaded again: {message}.*; do not use it", stop.value.code
    )


def test_a_full_disk_is_one_line(runs, call, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export.checkpoint_atomic_write, "save", full)
    code, _, error = call(export.main, runs / OURS, "b.pth", "--to", "torchvision")
    assert (
        code == 2
        and "can't write 'b.pth': No space left on device; make room, or give another OUT" in error
        and error.count("\n") == 1
    )
