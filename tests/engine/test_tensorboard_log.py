"""--tensorboard: the event files, read back by TensorBoard's own reader, say what log.jsonl and the loader say."""

import io
import json
import math

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

import main_lincls
import main_moco
from moco.data.file_list import ImageFolder
from moco.data.sampler import EpochBatchSampler
from moco.data.view_datasets import RandomViews
from moco.engine.tensorboard_log import GAP, TensorBoardLog, picture_of
from moco.views.normalize import normalize_images
from tests.ranks import run_script
from tests.tiny_net import use_tiny_net

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

NO_FIGURES = {"kind", "time", "run", "script", "epoch", "step", "first_step"}


def read(folder):
    """What TensorBoard shows of a run: the points of each curve, and the pictures, lists of (step, value)."""
    events = accumulator.EventAccumulator(str(folder), {"scalars": 0, "images": 0}).Reload()
    curves = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    views = events.Images("views") if events.Tags()["images"] else []
    pictures = [(e.step, Image.open(io.BytesIO(e.encoded_image_string))) for e in views]
    return curves, pictures


def logged(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def runs_in(folder):
    return sorted(folder.glob("tensorboard/*"))


@pytest.fixture
def train(few_images, tmp_path, monkeypatch, call):
    """Trains a TinyNet for 2 epochs of 4 steps, with --tensorboard; returns what `call` returns."""

    def train(script, *more, folder=tmp_path, flags=("--tensorboard",)):
        use_tiny_net(monkeypatch)
        words = [few_images, "-a", "resnet18", "--crop-size", "24", "-b", "6", "-j", "0", "--epochs", "2"]
        own = ["--moco-k", "12"] if script is main_moco else ["--pretrained", "none"]
        return call(script.main, *words, "--seed", "3", "-p", "1", *own, "--output-dir", folder, *flags, *more)

    return train


@pytest.mark.parametrize("script", [main_moco, main_lincls])
def test_the_curves_are_the_figures_of_the_log(script, train, tmp_path):
    assert train(script, "-p", "3")[0] == 0
    expected = {}
    for line in logged(tmp_path)[1:]:
        at = 4 * line["epoch"] + line.get("step", 3)  # an epoch's figures stand at its last step
        for name in line.keys() - NO_FIGURES:
            expected.setdefault(f"{line['kind']}/{name}", []).append((at, pytest.approx(line[name])))
    (run,) = runs_in(tmp_path)
    curves, _ = read(run)
    assert curves == expected
    assert [step for step, _ in curves["step/loss"]] == [0, 3, 4, 7] and [s for s, _ in curves["epoch/lr"]] == [3, 7]
    assert {"step/std", "step/negative"} <= curves.keys() if script is main_moco else "epoch/val_acc1" in curves


def test_the_picture_shows_the_views_of_the_first_batch(train, tmp_path, few_images):
    designs = ["--enable-multicrop", "--mini-crop-size", "16", "--enable-scalemix"]
    train(main_moco, *designs, "-b", "12", "--epochs", "1")
    plan = main_moco.view_plan(main_moco.build_parser().parse_args(["D", "--crop-size", "24", *designs]))
    dataset = RandomViews(ImageFolder(few_images / "train"), plan.views, seed=3)
    ((step, picture),) = read(runs_in(tmp_path)[0])[1]
    assert step == 0 and picture.size == (8 * (24 + GAP), 8 * (24 + GAP))  # 1 + 6 + 1 views of 8 of the 12 images
    expected = torch.full((3, *reversed(picture.size)), 255, dtype=torch.uint8)
    for row, address in enumerate(next(iter(EpochBatchSampler(24, 12, seed=3)))[:8]):
        for column, view in enumerate(dataset[address][0]):
            y, x, size = row * (24 + GAP), column * (24 + GAP), view.shape[-1]
            expected[:, y : y + size, x : x + size] = view
    assert torch.equal(pil_to_tensor(picture), expected)


def test_a_batch_of_few_images_makes_a_picture_of_few_rows():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 3, 1, 1)  # every level of every channel
    pixels = pil_to_tensor(picture_of([normalize_images(levels)]))
    assert pixels.shape == (3, 2 * (16 + GAP), 16 + GAP)
    assert torch.equal(pixels[:, :16, :16], levels[0]) and torch.equal(pixels[:, 16 + GAP : -GAP, :16], levels[1])


def test_the_training_is_the_same_without_it(train, tmp_path):
    states, figures = [], []
    for folder, flags in ((tmp_path / "with", ["--tensorboard"]), (tmp_path / "without", [])):
        assert train(main_moco, "--enable-multicrop", "--mini-crop-size", "16", folder=folder, flags=flags)[0] == 0
        states.append(torch.load(folder / "checkpoint__0001.pth.tar", weights_only=True))
        figures.append([[line.get(name) for name in ("loss", "std", "grad_norm")] for line in logged(folder)])
    assert runs_in(tmp_path / "with") and not (tmp_path / "without" / "tensorboard").exists()
    assert figures[0] == figures[1] and states[0]["options"] == states[1]["options"]
    assert all(torch.equal(x, states[1]["state_dict"][name]) for name, x in states[0]["state_dict"].items())


@pytest.mark.parametrize(
    "script, last, more, torn",
    [
        (main_moco, 6, ["--save-every", "2"], False),  # resumes before step 6, in the second of two epochs
        (main_moco, 6, [], True),  # resumes before step 4, between the epochs
        (main_lincls, 5, [], False),
    ],
)
def test_a_resumed_run_has_each_point_once(script, last, more, torn, train, tmp_path, monkeypatch):
    """A run that dies after the line of step `last`, which comes after its last checkpoint."""
    train(script, *more, folder=tmp_path / "whole")
    write, count = TensorBoardLog.write, iter(range(99))

    def write_and_die(log, kind, **facts):
        write(log, kind, **facts)
        if kind == "step" and next(count) == last:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TensorBoardLog, "write", write_and_die)
        with pytest.raises(KeyboardInterrupt):
            train(script, *more, folder=tmp_path / "resumed")
    (run,) = runs_in(tmp_path / "resumed")
    assert max(step for step, _ in read(run)[0]["step/loss"]) == last
    if torn:  # as a full disk or a power cut leaves it
        (file,) = run.iterdir()
        file.write_bytes(file.read_bytes()[:-20])
    assert train(script, *more, "--resume", "auto", folder=tmp_path / "resumed")[0] == 0
    assert runs_in(tmp_path / "resumed") == [run] and len(list(run.iterdir())) == 2
    whole, resumed = (read(runs_in(tmp_path / name)[0])[0] for name in ("whole", "resumed"))
    first = 6 if more else 4  # an epoch's means are those of the steps since the resume
    means = ("epoch/loss", "epoch/acc1", "epoch/acc5") if more else ()
    for tag in whole.keys() | resumed.keys():
        assert [step for step, _ in whole[tag]] == [step for step, _ in resumed[tag]], tag
        if not tag.endswith(("/seconds", "/wait")) and tag not in means:
            assert whole[tag] == resumed[tag], tag
    assert [step for step, _ in read(run)[1]] == [0, first]


def test_each_run_in_a_folder_has_its_own_curves(train, tmp_path):
    for script in (main_moco, main_moco, main_lincls):
        assert train(script, "--epochs", "1")[0] == 0
    ids = {line["run"] for line in logged(tmp_path)}
    assert len(ids) == 3 and {run.name.rpartition("-")[2] for run in runs_in(tmp_path)} == ids
    for run in runs_in(tmp_path):
        assert [step for step, _ in read(run)[0]["step/loss"]] == [0, 1, 2, 3]


def test_only_rank_0_writes(imagenet, tmp_path):
    words = [str(imagenet), "-a", "resnet18", "--crop-size", "24", "-b", "24", "--moco-k", "48", "--epochs", "1"]
    run_script("main_moco", 2, [*words, "--output-dir", str(tmp_path), "--tensorboard"], tiny=True)
    (run,) = runs_in(tmp_path)
    assert len(list(run.iterdir())) == 1 and [step for step, _ in read(run)[0]["epoch/loss"]] == [3]


def test_a_dry_run_and_a_validation_write_nothing(train, tmp_path):
    assert train(main_moco, "--dry-run")[0] == 0 and not list(tmp_path.iterdir())
    train(main_lincls, "--epochs", "1", flags=())
    code, log, _ = train(main_lincls, "--evaluate", "--resume", tmp_path / "checkpoint.pth.tar")
    assert code == 0 and "note: --tensorboard has no effect since --evaluate trains nothing\n" in log
    assert not (tmp_path / "tensorboard").exists()


def test_events_that_can_not_be_written_end_themselves_alone(train, tmp_path, capsys):
    (tmp_path / "tensorboard").touch()  # a file
    code, log, error = train(main_moco)
    assert (code, error) == (0, "") and log.count("warning: ") == 1 and "finished: 2 epochs" in log
    assert f"warning: can't write '{tmp_path}/tensorboard/" in log and "; TensorBoard's curves end here\n" in log
    curves = TensorBoardLog(str(tmp_path / "other"))
    curves.path = "/dev/full"
    curves.write("step", 0, 1, loss=2.0)
    curves.write("step", 0, 2, loss=2.0)
    assert capsys.readouterr().out == (
        "warning: can't write '/dev/full': No space left on device; TensorBoard's curves end here\n"
    )


def test_numbers_that_are_not_finite_are_points_too(tmp_path):
    TensorBoardLog(str(tmp_path), "a").write("step", 0, 0, loss=math.inf, grad_norm=1e300)
    assert read(runs_in(tmp_path)[0])[0] == {
        "step/loss": [(0, math.inf)],
        "step/grad_norm": [(0, math.inf)],
    }
