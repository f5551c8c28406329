"""The settings of a study: what is compared between calls, and which flags are refused before any work."""

import json

import pytest

from moco.tools.internal.study_settings import FILE, Study, keep_settings
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
    assert settings["evaluation"] == {"train": 96, "val": 36, "folds": 3}
    assert settings["lincls"] == {"lincls": "--epochs 2"}
    settings = settings["pretraining"]
    expected = {"arch": "resnet18", "total_batch": 8, "images": 96, "mini_crop_size": 16, "groups": 1, "moco_k": 32}
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
    ([], {"lincls": ["--lars"]}, "--lincls is --lars, but --epochs 2 for the runs"),
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
    small_study(imagenet, tmp_path, "-j", "1", **before)


def test_only_the_stages_that_have_begun_and_the_settings_that_both_know_are_compared(tmp_path):
    settings = {"pretraining": {"lr": 1, "older": 2}, "evaluation": {"train": 3}}
    keep_settings(tmp_path, settings)
    begin(tmp_path)
    new = {"pretraining": {"lr": 1, "newer": 2}, "evaluation": {"train": 4}, "lincls": {"lincls": ""}}
    keep_settings(tmp_path, new)
    assert json.loads((tmp_path / FILE).read_text()) == new
    begin(tmp_path, "random", "lincls")
    keep_settings(tmp_path, {"pretraining": {"lr": 1}, "evaluation": {"train": 5}})  # without --lincls
    assert json.loads((tmp_path / FILE).read_text())["lincls"] == {"lincls": ""}
    with pytest.raises(ValueError, match="--lincls is --lars, but empty for the runs"):
        keep_settings(tmp_path, {"lincls": {"lincls": "--lars"}})


def test_a_checkpoint_is_a_beginning(tmp_path):
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
