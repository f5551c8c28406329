"""What --fast turns on, and what a machine can't do is refused at the door."""

import pytest
import torch

import main_moco
from moco.engine import speed_flags, startup_report
from moco.engine.launch_plan import plan_launch


def settled(*flags):
    args = main_moco.build_parser().parse_args(["D", *flags])
    speed_flags.settle(args)
    return args.augment_on, args.precision, args.compile, args.fast


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a GPU of the given compute capability, as far as the checks see."""

    def pretend(capability):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=0: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
        monkeypatch.setattr(speed_flags.importlib.util, "find_spec", lambda name: name)

    return pretend


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_on_a_cpu():
    assert settled() == ("cpu", None, False, None)
    assert settled("--fast") == ("device", None, False, ["--augment-on device"])
    assert settled("--fast", "--augment-on", "cpu") == ("cpu", None, False, [])
    assert settled("--precision", "bf16", "--no-compile") == ("cpu", "bf16", False, None)


def test_on_a_gpu(gpu):
    gpu((9, 0))
    assert settled() == ("cpu", None, False, None)
    everything = ["--augment-on device", "--compile", "--precision bf16"]
    assert settled("--fast") == ("device", "bf16", True, everything)
    assert settled("--fast", "--no-compile", "--precision", "fp32") == ("device", "fp32", False, everything[:1])
    gpu((7, 0))
    assert settled("--fast") == ("device", None, True, everything[:2])
    gpu((6, 1))
    assert settled("--fast") == ("device", None, False, everything[:1])
    with pytest.raises(
        ValueError, match=r"--compile needs a GPU of compute capability 7.0 or higher, not 6.1; give --no-"
    ):
        settled("--compile")


def test_the_start_says_what_fast_turned_on(capsys):
    args = main_moco.build_parser().parse_args(["D", "--fast", "--seed", "1"])
    args.run = "12345678"
    for given, line in (
        (None, "fast: --augment-on device"),
        ("cpu", "fast: nothing, since every speed flag was given"),
    ):
        args.fast, args.augment_on = True, given
        speed_flags.settle(args)
        startup_report.report(args, plan_launch(args), torch.device("cpu"), (0, 0), 1)
        assert line in capsys.readouterr().out.splitlines()


def test_what_the_machine_can_not_do(gpu, monkeypatch):
    with pytest.raises(ValueError, match=r"--precision tf32 is a format of NVIDIA GPUs .*; leave the flag out"):
        settled("--precision", "tf32")
    gpu((7, 0))
    for precision in ("tf32", "bf16"):
        with pytest.raises(ValueError, match=f"--precision {precision} needs .* Ampere .*, not Some GPU; give fp16"):
            settled("--precision", precision)
    assert settled("--precision", "fp16")[1] == "fp16"
    monkeypatch.setattr(speed_flags.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="--compile needs the package triton on a GPU"):
        settled("--compile")


def test_compiling_needs_a_compiler(monkeypatch):
    monkeypatch.setattr(speed_flags.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"--compile needs a C\+\+ compiler such as .*, or give --no-compile"):
        settled("--compile")
