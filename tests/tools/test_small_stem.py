"""A checkpoint with the small stem goes through every tool and through linear classification without a flag."""

import numpy as np
import pytest
import torch
from torchvision import models

import main_lincls
import main_moco
from moco.engine.architectures import make_network
from moco.evaluation.pretrained_encoder import open_encoder
from moco.tools import export, extract, knn, neighbours
from tests.tools.conftest import CLOSE

NET, SIZE, SMALL = "resnet18", 8, ("-j", "0", "-b", "48")
LIBRARIES = {"torchvision": "b.pth", "timm": "b.pt", "safetensors": "b.safetensors"}


@pytest.fixture(scope="module")
def small(imagenet, tmp_path_factory):
    """Paths of one trained network: `own`, a checkpoint of main_moco.py, and `bare`, its backbone alone."""
    folder = tmp_path_factory.mktemp("small")
    words = [str(imagenet), "-a", NET, "--stem", "small", "--crop-size", str(SIZE), "--moco-k", "48", *SMALL]
    main_moco.main([*words, "--moco-dim", "8", "--epochs", "1", "--seed", "1", "--output-dir", str(folder)])
    own = folder / "checkpoint__0000.pth.tar"
    saved = torch.load(own, weights_only=True)
    assert saved["options"]["stem"] == "small"
    names = [name for name in saved["state_dict"] if name.startswith("module.encoder_q.") and ".fc." not in name]
    bare = {name.removeprefix("module.encoder_q."): saved["state_dict"][name] for name in names}
    assert bare["conv1.weight"].shape == (64, 3, 3, 3)
    torch.save(bare, folder / "bare.pth")
    return {"own": str(own), "bare": str(folder / "bare.pth")}


@pytest.fixture
def network(small):
    """The trained backbone in torchvision's network, whose stem is changed here by hand."""
    network = models.resnet18()
    network.conv1, network.maxpool = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False), torch.nn.Sequential()
    missing, unexpected = network.load_state_dict(torch.load(small["bare"], weights_only=True), strict=False)
    assert missing == ["fc.weight", "fc.bias"] and not unexpected
    network.fc = torch.nn.Identity()
    return network.eval()


@pytest.mark.usefixtures("zero_weights")
@pytest.mark.parametrize("kind", ["own", "bare"])
def test_extract_follows_the_file(kind, small, network, feature_of, imagenet, tmp_path, call):
    size = [] if kind == "own" else ["--crop-size", SIZE]
    code, out, error = call(extract.main, small[kind], imagenet / "val", "--out", tmp_path / "f.npz", *SMALL, *size)
    assert (code, error) == (0, "")
    assert f"encoder: {NET}, small stem, with 120 tensors of '{small[kind]}', 512 features, images of 8 px" in out
    with np.load(tmp_path / "f.npz") as file:
        features, paths = file["features"], file["paths"]
    for i in (0, 20):
        np.testing.assert_allclose(features[i], feature_of(imagenet / "val" / paths[i], SIZE, network), **CLOSE)


def test_knn_and_neighbours_follow_the_file(small, imagenet, tmp_path, call, monkeypatch):
    opened = []

    def opening(*args, **how):
        opened.append(open_encoder(*args, **how))
        return opened[-1]

    monkeypatch.setattr(neighbours, "open_encoder", opening)
    code, out, error = call(knn.main, small["own"], imagenet, *SMALL)
    assert (code, error) == (0, "") and f"encoder: {NET}, small stem, with 120 tensors" in out and "kNN Acc@1" in out
    words = [small["own"], imagenet, "--out", tmp_path / "n.png", "--random", "--queries", "2", "--neighbours", "2"]
    code, out, error = call(neighbours.main, *words, *SMALL)
    assert (code, error) == (0, "") and f"encoder: {NET}, small stem, with 120 tensors" in out
    (random,) = opened  # the one beside the checkpoint's is of the same kind
    assert (random.stem, random.tensors, random.network.conv1.stride) == ("small", 0, (1, 1))


@pytest.mark.usefixtures("zero_weights")
@pytest.mark.parametrize("kind", ["own", "bare"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_the_exported_file_loads_by_the_lines_that_are_shown(
    library, kind, small, network, tmp_path, call, monkeypatch
):
    if library in ("timm", "safetensors"):
        pytest.importorskip(library)
    monkeypatch.setattr(export, "PIXELS", 16)
    path = str(tmp_path / LIBRARIES[library])
    code, out, error = call(export.main, small[kind], path, "--to", library)
    assert (code, error) == (0, "") and f"wrote {path!r}: encoder_q of resnet18 with the small stem, " in out
    names = {}
    exec(out.partition("\n\nLoad it in Python:\n")[2], names)
    loaded, images = names["model"], torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    loaded.fc = torch.nn.Identity()
    torch.testing.assert_close(loaded.eval()(images), network(images))
    if library == "safetensors":
        with __import__("safetensors").safe_open(path, "pt") as file:
            assert file.metadata()["stem"] == "small"


@pytest.mark.usefixtures("zero_weights")
@pytest.mark.parametrize(
    "main, words, message",
    [
        (
            export,
            ["OWN", "b.pkl", "--to", "detectron2"],
            "--to detectron2 knows no resnet18 with --stem small, the netw",
        ),
        (knn, ["OWN", "DATA", "--stem", "imagenet"], "is of --stem small, not imagenet; give --stem small"),
        (
            extract,
            ["BARE", "DATA", "--out", "f.npz", "--stem", "imagenet"],
            "is of --stem small, not imagenet; give --s",
        ),
        (knn, ["OWN", "DATA", "-a", "regnet_y_400mf"], "is of --arch resnet18 --stem small, not regnet_y_400mf; give"),
        (
            knn,
            ["none", "DATA", "-a", "regnet_y_400mf", "--stem", "small"],
            "--stem small changes only ResNets, not reg",
        ),
        (
            main_lincls,
            ["DATA", "-a", NET, "--pretrained", "OWN", "--stem", "imagenet"],
            "is of --stem small, not imagen",
        ),
        (main_moco, ["DATA", "-a", NET, "--init-from", "OWN"], "is of --stem small, not imagenet; give --stem small"),
        (
            main_moco,
            ["DATA", "-a", "resnet34", "--init-from", "BARE"],
            "is of --arch resnet18 --stem small, not resnet3",
        ),
        (main_moco, ["DATA", "-a", NET, "--init-from", "nowhere.pth"], "no checkpoint 'nowhere.pth'"),
        (main_moco, ["DATA", "-a", NET, "--resume", "OWN"], "is of --stem small, not imagenet; give --stem small"),
    ],
)
def test_what_is_refused(main, words, message, small, imagenet, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {"OWN": small["own"], "BARE": small["bare"], "DATA": imagenet}
    words = [places.get(word, word) for word in words]
    words += ["-b", "48", "--crop-size", "16"] if main in (main_lincls, main_moco) else []
    code, out, error = call(main.main, *words)
    assert (code, out) == (2, "") and error.count("\n") == 1 and message in error, error
    assert not list(tmp_path.iterdir())


def test_random_weights_have_the_stem_of_the_flag(imagenet, call):
    code, out, _ = call(knn.main, "none", imagenet, "-a", NET, "--stem", "small", "--crop-size", "8", *SMALL)
    assert code == 0 and f"encoder: {NET}, small stem, with random weights, 512 features" in out
    assert open_encoder("none", NET).stem == "imagenet" == open_encoder("none").stem
    first, again = (open_encoder("none", NET, stem="small", seed=3).network.conv1.weight for _ in range(2))
    assert torch.equal(first, again) and first.shape == (64, 3, 3, 3)


@pytest.mark.usefixtures("zero_weights")
def test_linear_classification_follows_the_file_and_its_own_checkpoint(small, network, imagenet, tmp_path, call):
    words = [
        imagenet,
        "-a",
        NET,
        "--crop-size",
        SIZE,
        "--seed",
        "2",
        "--output-dir",
        tmp_path,
        "--epochs",
        "2",
        *SMALL,
    ]
    code, out, error = call(main_lincls.main, *words, "--pretrained", small["bare"])
    assert (code, error) == (0, "") and f"pretrained: 120 tensors of '{small['bare']}', the whole backbone" in out
    assert "network: resnet18 with the small stem" in out
    saved = torch.load(tmp_path / "checkpoint.pth.tar", weights_only=True)
    assert saved["options"]["stem"] == "small"
    for name, tensor in network.state_dict().items():
        assert torch.equal(saved["state_dict"][f"module.{name}"], tensor), name
    last = [line for line in out.splitlines() if line.startswith(" * Acc@1")][-1]
    for more in (["-e", "--resume", tmp_path / "checkpoint.pth.tar"], ["--resume", "auto", "--epochs", "2"]):
        code, out, error = call(main_lincls.main, *words, *more)  # without --pretrained
        assert (code, error) == (0, "") and "network: resnet18 with the small stem" in out
        assert more[0] == "--resume" or out.splitlines()[-1] == last
    code, _, error = call(main_lincls.main, *words, "--stem", "imagenet", "--resume", "auto")
    assert code == 2 and "is of --stem small, not imagenet; give --stem small" in error


@pytest.mark.usefixtures("zero_weights")
def test_a_file_of_before_the_flag_has_the_usual_stem(imagenet, tmp_path, call):
    """Linear classification of weights of torchvision, which say nothing."""
    torch.save(make_network(NET).state_dict(), tmp_path / "w.pth")
    words = [imagenet, "-a", NET, "--crop-size", "16", "--output-dir", tmp_path, "--epochs", "1", *SMALL]
    code, out, error = call(main_lincls.main, *words, "--pretrained", tmp_path / "w.pth")
    assert (code, error) == (0, "") and "small stem" not in out
    assert torch.load(tmp_path / "checkpoint.pth.tar", weights_only=True)["options"]["stem"] == "imagenet"
