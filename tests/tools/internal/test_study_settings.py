"""The settings of a study: what is compared between calls, and which flags are refused before any work."""

import json
import shutil
import subprocess
import sys

import pytest

from moco.data.file_list import ImageFolder
from moco.tools.internal import study_settings
from moco.tools.internal.study_settings import FILE, LOCK, Study, keep_settings
from tests.tiny_net import use_tiny_net
from tests.tools.internal.study_parts import FLAGS, small_study


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    use_tiny_net(monkeypatch)


def begin(out, name="baseline", stage="pretraining"):
    """Writes the result of a stage, as a run does."""
    folder = out / name / "seed0"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stage}.json").write_text("{}")


def test_the_study_and_its_file(imagenet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = small_study(imagenet, "out", names=["multicrop:target"], folds=3, lincls=["--epochs", "2"])
    paths = {"data": str(imagenet), "labelled": str(imagenet), "out": str(tmp_path / "out")}
    assert study == Study(**paths, folds=3, flags=FLAGS, options=study.options, groups=1, lincls=["--epochs", "2"])
    assert (study.options.design, study.options.epochs) == ([], 1)  # those of the baseline
    settings = json.loads((tmp_path / "out" / FILE).read_text())
    expected = {"arch": "resnet18", "stem": "imagenet", "crop_size": 32, "train": 96, "val": 36, "folds": 3}
    assert expected.items() <= settings["evaluation"].items()
    assert {"epochs": 2, "lars": False, "arch": "resnet18", "images": 96}.items() <= settings["lincls"].items()
    settings = settings["pretraining"]
    expected = {"init_from": None, "paths": ImageFolder(imagenet / "train").digest()} | {
        "arch": "resnet18",
        "total_batch": 8,
        "images": 96,
        "mini_crop_size": 16,
        "groups": 1,
        "moco_k": 32,
    }
    assert expected.items() <= settings.items()
    assert not {"design", "seed", "workers", "output_dir", "bn_splits"} & settings.keys()
    assert not list((tmp_path / "out").glob("*/*"))  # nothing else was written


DIFFERENT = [
    (["--lr", "0.5"], {}, "--lr is 0.5, but 0.03 for the runs in"),
    (
        ["--nproc", "2", "--bn-splits", "2"],
        {},
        "the number of batch-norm groups (processes times --bn-splits) is 4, but 1 for",
    ),
    ([], {"folds": 4}, "--folds is 4, but not given for the runs"),
    ([], {"lincls": ["--epochs", "3"]}, "--epochs of --lincls is 3, but 2 for the runs"),
]


@pytest.mark.parametrize("flags, options, message", DIFFERENT)
def test_another_setting_is_refused_once_a_run_has_begun(flags, options, message, imagenet, tmp_path):
    before = {"folds": None, "lincls": ["--epochs", "2"]}
    small_study(imagenet, tmp_path, **before)
    small_study(imagenet, tmp_path, *flags, **{**before, **options})  # nothing has begun
    small_study(imagenet, tmp_path, "-j", "1", **before)
    for stage in ("pretraining", "evaluation", "lincls"):
        begin(tmp_path, stage=stage)
    kept = (tmp_path / FILE).read_text()
    with pytest.raises(ValueError) as error:
        small_study(imagenet, tmp_path, *flags, **{**before, **options})
    assert message in str(error.value) and f"in '{tmp_path}'; give the same or another --out" in str(error.value)
    assert (tmp_path / FILE).read_text() == kept
    redo = "" if flags else f", or remove the files {next(iter(options)).replace('folds', 'evaluation')}.json to"
    assert redo in str(error.value)
    small_study(imagenet, tmp_path, "-j", "1", **{**before, "lincls": ["--epochs=2", "--lr", "0.1"]})


def test_the_images_and_the_initial_weights_are_compared(few_images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study_settings.main_moco, "check_backbone", lambda *_: None)
    data = shutil.copytree(few_images, tmp_path / "data")
    small_study(data, "out", "--init-from", "x")
    begin(tmp_path / "out")
    begin(tmp_path / "out", stage="evaluation")
    small_study(data, "out", "--init-from", str(tmp_path / "x"))
    with pytest.raises(ValueError, match=f"--init-from is not given, but {tmp_path}/x for the runs"):
        small_study(data, "out")
    for split, words in (("val", "the labelled images"), ("train", "the images")):
        image = next((data / split).glob("*/*"))
        image.rename(image.with_name("another.jpg"))
        with pytest.raises(ValueError, match=f"the hash of the classes and paths of {words} is .*, but "):
            small_study(data, "out", "--init-from", "x")


def test_only_the_stages_that_have_begun_and_the_settings_that_both_know_are_compared(tmp_path):
    settings = {"pretraining": {"lr": 1, "older": 2}, "evaluation": {"train": 3}}
    keep_settings(tmp_path, settings)
    begin(tmp_path)
    begin(tmp_path, "random", "evaluation")
    new = {"pretraining": {"lr": 1, "newer": 2}, "evaluation": {"val": 4}, "lincls": {"lars": False}}
    keep_settings(tmp_path, new)
    assert json.loads((tmp_path / FILE).read_text()) == new
    begin(tmp_path, "random", "lincls")
    keep_settings(tmp_path, {"pretraining": {"lr": 1}, "evaluation": {"train": 5}})  # without --lincls
    assert json.loads((tmp_path / FILE).read_text())["lincls"] == {"lars": False}
    with pytest.raises(ValueError, match="--lars of --lincls is True, but False for the runs"):
        keep_settings(tmp_path, {"lincls": {"lars": True}})


def test_a_checkpoint_is_a_beginning_of_the_pretraining_but_the_random_encoder_is_not(tmp_path):
    keep_settings(tmp_path, {"pretraining": {"lr": 3}})
    begin(tmp_path, "random", "evaluation")
    keep_settings(tmp_path, {"pretraining": {"lr": 1}})
    (tmp_path / "multicrop-both" / "seed3").mkdir(parents=True)
    (tmp_path / "multicrop-both" / "seed3" / "checkpoint__0000.pth.tar").touch()
    with pytest.raises(ValueError, match="--lr is 2, but 1"):
        keep_settings(tmp_path, {"pretraining": {"lr": 2}})


@pytest.mark.parametrize(
    "flags, options, message",
    [
        (["--seed", "1"], {}, "--seed of main_moco.py is set by the study for each run; give --seeds"),
        (
            ["--enable-multicrop"],
            {},
            "--design of main_moco.py is set by the study for each run; name the runs by --r",
        ),
        (["--output-dir", "x"], {}, "--output-dir of main_moco.py is set by the study for each run; leave it out"),
        ([], {"lincls": ["--pretrained", "x"]}, "--pretrained of main_lincls.py is set by the study for each run; le"),
        (
            [],
            {"lincls": ["-a", "resnet18"]},
            "--arch of main_lincls.py is set by the study for each run; leave it out",
        ),
        ([], {"folds": 133}, "--folds 133 is more than the 132 labelled images; give fewer"),
    ],
)
def test_what_is_refused(flags, options, message, imagenet, tmp_path):
    with pytest.raises(ValueError) as error:
        small_study(imagenet, tmp_path / "out", *flags, **options)
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_too_few_images_and_no_labelled_ones(few_images, tmp_path, monkeypatch):
    monkeypatch.setattr(study_settings, "K", 25)
    with pytest.raises(
        ValueError, match=r"kNN with k = 25 needs 25 images, but '.*train' has 24; add images, or give "
    ):
        small_study(few_images, tmp_path / "out")
    small_study(few_images, tmp_path / "out", folds=2)
    monkeypatch.setattr(study_settings, "K", 24)
    small_study(few_images, tmp_path / "out")
    with pytest.raises(
        ValueError, match=r"no folder '.*/val'; .*; --labelled takes the labelled images from elsewhere"
    ):
        small_study(few_images / "train", tmp_path / "out")
    small_study(few_images / "train", tmp_path / "out", labelled=few_images)


def test_only_one_process_writes_the_settings(tmp_path, monkeypatch):
    code = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    command = [sys.executable, "-S", "-c", code, tmp_path / LOCK]
    codes = []

    def write(path, value):
        codes.append(subprocess.run(command, stderr=subprocess.DEVNULL).returncode)

    monkeypatch.setattr(study_settings, "write_json", write)
    keep_settings(tmp_path, {})
    assert codes == [1] and subprocess.run(command).returncode == 0


ASYM_BN = ["--bn-splits", "4", "--asym-bn-group", "3"]  # which the baseline does not mind


@pytest.mark.parametrize(
    "flags, options, message",
    [
        (["--epoch", "3"], {}, "the flags of main_moco.py: error: unknown flag --epoch; did you mean --epochs?"),
        (["-b", "97"], {}, "the flags of main_moco.py: error: "),
        (ASYM_BN, {"names": ["asym_bn:source"]}, "the flags of main_moco.py: error: --asym-bn-group 3"),
        ([], {"lincls": ["--lasr"]}, "the flags of main_lincls.py: error: unknown flag --lasr; did you mean --lars?"),
        ([], {"lincls": ["--crop-size", "1000000"]}, "the flags of main_lincls.py: error: "),
    ],
)
def test_what_the_scripts_refuse(flags, options, message, imagenet, tmp_path, call):
    code, out, error = call(lambda _: small_study(imagenet, tmp_path / "out", *flags, **options))
    assert (code, out, error.count("\n")) == (2, "", 1) and error.startswith(message)
    assert not (tmp_path / "out").exists()
