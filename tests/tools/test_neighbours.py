"""neighbours: the pictured images are the most similar ones, in their order, and none is its query."""

import os
import re
import shutil
import signal
import types

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image, ImageFont

from moco.data.file_list import ImageFolder
from moco.evaluation.pretrained_encoder import open_encoder
from moco.tools import neighbours
from moco.tools.neighbours import GAP, LINE, MARGIN, QUERY, SAME, SIDE
from tests.tiny_net import ARCH, WIDTH
from tests.tools.frequent_progress import often


def similarities(feature_of, queries, bank, **how):
    """The cosine similarity of each query with each image of the bank: an array. Both are lists of paths."""
    q, x = (np.stack([feature_of(path, **how) for path in paths]) for paths in (queries, bank))
    return (q / np.linalg.norm(q, axis=1)[:, None]) @ (x / np.linalg.norm(x, axis=1)[:, None]).T


def paths(folder):
    return [folder.path(i) for i in range(len(folder))]


def check(panel, expected, own=()):
    """Whether the (similarity, index) of each row are the largest of `expected`, but for the query's `own` index."""
    for row, (pairs, found) in enumerate(zip(panel, expected, strict=True)):
        indices = [index for _, index in pairs]
        assert len(set(indices)) == len(indices) and not set(own[row : row + 1]) & set(indices)
        rest = np.sort(np.delete(found, own[row : row + 1]))[::-1][: len(pairs)]
        np.testing.assert_allclose([s for s, _ in pairs], rest, atol=1e-5)
        np.testing.assert_allclose(found[indices], rest, atol=1e-5)


def drawn(call, monkeypatch, *words):
    """Runs the tool; returns the arguments of its `picture`."""
    seen = []
    original = neighbours.picture
    monkeypatch.setattr(neighbours, "picture", lambda *args: seen.append(args) or original(*args))
    code, out, error = call(neighbours.main, *words)
    assert (code, error) == (0, ""), error
    return types.SimpleNamespace(
        **dict(zip(("panels", "names", "queries", "bank", "chosen", "size"), seen[0], strict=True)), out=out
    )


def test_the_neighbours_of_val_are_those_in_train(checkpoints, imagenet, tmp_path, feature_of, call, monkeypatch):
    out = tmp_path / "n.png"
    words = [checkpoints["own"], imagenet, "--out", out, "-j", 0, "-b", 20, "--random", "--queries", 5]
    found = drawn(call, monkeypatch, *words)
    assert found.out.splitlines()[::3] == [f"images: 36 of 12 classes in '{imagenet}/val'", f"wrote {out}"]
    queries, bank = (paths(ImageFolder(imagenet / split)) for split in ("val", "train"))
    queries = [queries[i] for i in found.chosen]
    assert len(set(found.chosen)) == 5 and found.size == 32
    hits = [
        sum(
            found.bank.labels[j] == found.queries.labels[i]
            for i, row in zip(found.chosen, panel, strict=True)
            for _, j in row
        )
        for panel in found.panels
    ]
    words = [
        f"{name}: {n} of 40 of the query's class (green)"
        for name, n in zip(("own", "random encoder"), hits, strict=True)
    ]
    assert found.names == words and any(hits)
    assert [[len(row) for row in panel] for panel in found.panels] == [[8] * 5] * 2
    check(found.panels[0], similarities(feature_of, queries, bank))
    random = open_encoder("none", ARCH, 32).network
    check(found.panels[1], similarities(feature_of, queries, bank, network=random))
    assert [i for _, i in found.panels[0][0]] != [i for _, i in found.panels[1][0]]
    check_page(np.asarray(Image.open(out)), found)


def view(path, size):
    """The part of an image that an encoder sees, as the tool shows it."""
    with Image.open(path) as image:
        crop = TF.center_crop(TF.resize(image.convert("RGB"), round(size * 256 / 224)), [size, size])
    return np.asarray(crop.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def check_page(page, found):
    """Whether the page shows each query, framed, and its neighbours beside it, each above its similarity."""
    step, width = SIDE + GAP, len(found.panels[0][0]) * (SIDE + GAP) + 2 * MARGIN
    for row, query in enumerate(found.chosen):
        y = MARGIN + LINE + GAP + row * (step + LINE)
        shown, label = page[y : y + SIDE, MARGIN : MARGIN + SIDE], found.queries.labels[query]
        assert (shown[0] == QUERY).all() and (shown[:, -3:] == QUERY).all()
        assert (shown[3:-3, 3:-3] == view(found.queries.path(query), found.size)[3:-3, 3:-3]).all()
        for number, panel in enumerate(found.panels):
            for column, (_, i) in enumerate(panel[row]):
                x = 2 * MARGIN + step + number * width + column * step
                assert (page[y : y + SIDE, x : x + SIDE] == view(found.bank.path(i), found.size)).all()
                green = (page[y + SIDE : y + SIDE + LINE, x : x + SIDE] == SAME).all(axis=2).any()
                assert green == (found.bank.labels[i] == label >= 0)


def folder_with_duplicates(imagenet, root):
    """9 images without a class, which come first, and 8 of two classes. Many are the same image."""
    images = sorted((imagenet / "val").glob("*/*.jpg"))
    root.mkdir()
    for i, name in enumerate("abcdefghi"):
        shutil.copy(images[0 if i % 2 else i], root / f"{name}.jpg")
    for i in range(8):
        (root / f"class{i % 2}").mkdir(exist_ok=True)
        shutil.copy(images[0 if i < 3 else i], root / f"class{i % 2}" / f"{i}.jpg")
    return root


@pytest.mark.parametrize("number", [1, 16])
def test_a_query_is_no_neighbour_of_itself(number, checkpoints, imagenet, tmp_path, feature_of, call, monkeypatch):
    """But its duplicates are."""
    root, out = folder_with_duplicates(imagenet, tmp_path / "images"), tmp_path / "n.bmp"
    flags = ["--out", out, "-j", 0, "--queries", 17, "--neighbours", number, "--crop-size", 40]
    found = drawn(call, monkeypatch, checkpoints["own"], root, *flags)
    everything = paths(ImageFolder(root, any_tree=True))
    assert sorted(found.chosen) == list(range(17)) and found.size == 40 and found.queries is found.bank
    assert found.out.startswith(f"images: 17 of 2 classes in '{root}'\nencoder: ")
    expected = similarities(feature_of, [everything[i] for i in found.chosen], everything, size=40)
    check(found.panels[0], expected, found.chosen)
    twins = [row for row, i in enumerate(found.chosen) if os.path.basename(everything[i]) in ("b.jpg", "0.jpg")]
    assert all(found.panels[0][row][0][0] == pytest.approx(1, abs=1e-5) for row in twins) and len(twins) == 2
    check_page(np.asarray(Image.open(out)), found)


def test_the_seed_chooses_the_queries(checkpoints, imagenet, tmp_path, call, monkeypatch):
    chosen = []
    monkeypatch.setattr(neighbours, "start", lambda *args: chosen.append(args[-1]))
    for seed in (1, 1, 2):
        words = [checkpoints["own"], imagenet, "--out", tmp_path / "n.png", "--seed", seed]
        assert call(neighbours.main, *words)[0] == 0
    first, again, other = chosen
    assert first == again != other and len(set(first)) == 8


def test_the_word_none_is_a_random_encoder(imagenet, tmp_path, feature_of, call, monkeypatch):
    flags = ["-a", ARCH, "--crop-size", 32, "--out", tmp_path / "n.png", "-j", 0, "--queries", 2]
    found = drawn(call, monkeypatch, "none", imagenet / "val", *flags)
    everything, network = paths(found.bank), open_encoder("none", ARCH, 32).network
    queries = [everything[i] for i in found.chosen]
    check(found.panels[0], similarities(feature_of, queries, everything, network=network), found.chosen)
    (name,) = found.names
    assert re.fullmatch(r"random encoder: \d+ of 16 of the query's class \(green\)", name)


def test_a_long_name_is_shortened_to_its_end():
    font = ImageFont.load_default(size=14)
    assert neighbours.fitted("checkpoint__0001.pth.tar", 300, font) == "checkpoint__0001.pth.tar"
    short = neighbours.fitted("checkpoint_with_a_long_tag_0001.pth.tar", 106, font)
    assert short.startswith("...") and short.endswith("_0001.pth.tar") and font.getlength(short) <= 106


def test_two_processes_draw_the_same(checkpoints, imagenet, tmp_path, call, run_tool):
    words = [checkpoints["own"], imagenet, "--queries", 4, "--random", "-b", 32]
    assert call(neighbours.main, *words, "-j", 0, "--out", tmp_path / "1.png")[0] == 0
    more = ["-j", 1, "--nproc", 2, "--out", tmp_path / "2.png"]
    code, out, error = run_tool("neighbours", *words, *more, prepare=often)
    assert code == 0 and out.count("wrote") == 1, error
    assert error.count("neighbours: 32 of 96 images (33%)") == 2 and error.count("\n") == 4
    alone, shared = (np.asarray(Image.open(tmp_path / f"{n}.png")) for n in (1, 2))
    assert alone.shape == shared.shape and (alone != shared).mean() < 0.01  # a similarity may round differently


@pytest.mark.parametrize("nproc", [1, 2])
def test_a_broken_query_is_reported_once(nproc, checkpoints, imagenet, tmp_path, run_tool):
    for path in sorted((imagenet / "val").glob("*/*.jpg"))[:12]:
        shutil.copy(path, tmp_path / f"{path.parent.name}_{path.name}")
    bad = tmp_path / "a.jpg"
    bad.write_bytes(b"no image")
    words = [checkpoints["own"], tmp_path, "-j", 0, "--queries", 13, "--nproc", nproc, "--out", tmp_path / "n.png"]
    code, out, error = run_tool("neighbours", *words)
    assert code == 1 and error.count("\n") == 1 and f"error: can't decode the image '{bad}'" in error
    assert "wrote" not in out and not (tmp_path / "n.png").exists()


def interrupted():
    """Ctrl-C while the images are encoded."""

    def encode(*_, **__):
        os.killpg(os.getpgrp(), signal.SIGINT)
        yield torch.tensor([0]), torch.zeros(1, WIDTH)

    neighbours.encode = encode


def test_ctrl_c_ends_it(checkpoints, imagenet, tmp_path, run_tool):
    words = [checkpoints["own"], imagenet, "-j", 0, "--out", tmp_path / "n.png"]
    code, _, error = run_tool("neighbours", *words, prepare=interrupted)
    assert (code, error) == (143, "stopped by SIGINT\n") and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--queries", 37], "--queries 37 is too many for the 36 images of 'DIR'; give 36 at most"),
        (["--neighbours", 36], "--neighbours 36 is too many for the 36 images of 'DIR'; give 35 at most"),
        (["--queries", 65], "'65' is not an integer >= 1 and <= 64"),
        (["--neighbours", 0], "'0' is not an integer >= 1 and <= 64"),
        (["--seed", -1], "'-1' is not an integer >= 0"),
        (["--out", "no/n.png"], "'no/n.png' can't be written: 'no' is no folder; make it first"),
        (["--out", "n.npz"], "'n.npz' is no file to write; give a name that ends in .png or .jpg or "),
        (["--neighbors", 3], "unknown flag --neighbors; did you mean --neighbours?"),
    ],
)
def test_what_it_refuses(flags, message, checkpoints, imagenet, refused):
    root = imagenet / "val"
    refused("neighbours", [checkpoints["own"], root, *flags], message.replace("DIR", str(root)))


def test_folders_that_it_refuses(checkpoints, imagenet, tmp_path, refused):
    refused("neighbours", [checkpoints["own"], tmp_path / "x"], f"no folder '{tmp_path}/x'; it must hold images")
    refused("neighbours", [checkpoints["own"], tmp_path], f"no images in '{tmp_path}'; add some (.jpg")
    shutil.copy(next(imagenet.glob("val/*/*.jpg")), tmp_path)
    words = [checkpoints["own"], tmp_path, "--queries", 1, "--neighbours", 1]
    refused("neighbours", words, f"--neighbours 1 is too many for the 1 image of '{tmp_path}'; give more images")
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    refused("neighbours", words, f"no images in '{tmp_path}/val'; add some (.jpg")
