"""The step's benchmark, for a moment, its figures not judged; the original's step computes what ours does."""

import json

import pytest
import torch

import main_moco
from moco.benchmarks import step as bench_step
from moco.benchmarks.internal.original_project_step import OriginalMoCo, original_step
from moco.builder import MoCo
from moco.engine.design_flags import PAPER_SIDES
from moco.loss import contrastive_loss
from tests.ranks import Program, quick_launches, run_ranks
from tests.test_algorithm1 import DIM, K, M, N, T, images
from tests.tiny_net import ARCH, TinyNet

TINY = [
    "-a",
    "resnet18",
    "-b",
    "8",
    "--crop-size",
    "32",
    "--mini-crop-size",
    "16",
    "--moco-k",
    "64",
    "--seconds",
    "0.1",
]


def measured(words):
    with quick_launches():
        bench_step.main(words)


@pytest.mark.slow
def test_it_prints_a_table_and_json():
    more = ["-a", ARCH, "--nproc", "2", "--enable-multicrop", "--json"]
    code, out, error = Program(measured, [*TINY, *more]).finish(300)
    assert code == 0, error
    lines = out.splitlines()
    figures = json.loads(lines[-1])
    assert [row["designs"] for row in figures["rows"]] == ["baseline", "MultiCrop"]
    assert figures["designs"] == "MultiCrop" and figures["processes"] == 2
    assert all(figures[name] > 0 for name in ("ours", "original", "ours_over_original", "cost", "tflops"))
    assert abs(figures["cost_by_arithmetic"] - (4 + 6 * 3 / 4) / 4) < 1e-9 and figures["cost_in_paper"] == 2.15
    image = 4 * 3 * 32 * 32
    assert 4 * image < figures["image_bytes"] / figures["image_bytes_over_original"] < 1.1 * 4 * image  # its half
    assert 0.45 < figures["image_bytes_over_original"] < 0.55
    (table,) = [line for line in lines if line.lstrip().startswith("MultiCrop |")]
    assert len(table.split("|")) == len(bench_step.COLUMNS)


@pytest.mark.slow
def test_all_is_the_baseline_each_design_and_all_five():
    args = main_moco.build_parser().parse_args(["."])
    args.all = True
    rows = bench_step.table_rows(args)
    assert rows[0] == () and rows[-1] == PAPER_SIDES and len(rows) == 7
    costs = [bench_step.flops(args, on, pixels=True) / bench_step.flops(args, (), pixels=True) for on in rows]
    assert costs == pytest.approx([1, 1.83, 1, 1, 1, 1.25, 2.08], abs=0.005)
    assert bench_step.flops(args, ()) == pytest.approx(4 * 2 * 4.1e9, rel=0.02)  # ResNet-50: 4.1 G multiply-adds


def test_its_progress_is_not_in_the_table(monkeypatch, impatient, call):
    for name, value in (("timed", 1.0), ("peak_memory", 1.0), ("traffic", None), ("product_tflops", 1.0)):
        monkeypatch.setattr(bench_step, name, lambda *_, value=value: value)
    for name in ("our_step", "the_originals_step"):
        monkeypatch.setattr(bench_step, name, lambda *_: lambda: None)
    monkeypatch.setattr(bench_step, "encoder_flops", lambda *_: 1)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)  # the program sets it, and this restores it
    with torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=False):  # as above
        code, out, error = call(bench_step.main, *TINY, "--enable-scalemix", "--json")
    assert code == 0 and "rounds" not in out.partition("\ncost:")[0]
    assert [row["ours"] for row in json.loads(out.splitlines()[-1])["rows"]] == [8, 8]
    lines = error.splitlines()
    assert len(lines) == 11 and lines[-1].startswith("step: 11 of 12 rounds (92%), 0:00:0")


def both(world):
    """One step of both kinds from equal weights; in eval mode, where it does not matter how a batch is shuffled."""
    rank = torch.distributed.get_rank() if world > 1 else 0
    ours = MoCo(TinyNet, DIM, K, M, T).eval()
    theirs = OriginalMoCo(TinyNet, DIM, K, M, T, False, torch.device("cpu")).eval()
    theirs.load_state_dict(ours.state_dict())
    views = [
        [x.float().chunk(world)[rank] for x in images(0, n, size, world)] for n, size in ((1, 12), (6, 8), (2, 13))
    ]
    logits, labels = ours(*views)
    loss = contrastive_loss(logits, labels)
    loss.backward()
    read, *_ = original_step(theirs, torch.optim.SGD(theirs.parameters(), 0.0), views)
    gradients = [[p.grad for p in model.encoder_q.parameters()] for model in (ours, theirs)]
    return (loss.item(), gradients[0], ours.state_dict()), (read, gradients[1], theirs.state_dict())


@pytest.mark.parametrize("world", [1, 2])
def test_the_originals_step_computes_what_ours_does(world):
    for ours, theirs in run_ranks(both, 2, 2) if world == 2 else [both(1)]:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        assert ours[2]["queue_ptr"].item() == N * world


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--bn-splits", "3"], "--bn-splits 3 does not divide"),
        (["-b", "3", "--nproc", "2"], "--batch-size 3 does not give 2 processes the same number of images; give 4"),
        (["--moco-k", "4"], "--moco-k 4 is smaller than a batch of 8"),
        (["--precision", "fp64"], "invalid choice: 'fp64'"),
        (["--seconds", "-1"], "'-1' is not a finite number >= 0"),
        (
            ["-b", "1"],
            "a process's batch of 1 is too small, since batch normalisation needs at least 2 images in each",
        ),
        (["--crop-size", "99999999"], "pixels for 8 images need "),
        (["--all", "--mini-crop-size", "99999999"], "or a smaller --batch-size"),
        (["--second", "3"], "unknown flag --second; did you mean --seconds?"),
        (["DIR"], "'DIR' is one argument too many"),
    ],
)
def test_what_it_refuses(flags, message, call):
    code, _, error = call(bench_step.main, *TINY, *flags)
    assert code == 2 and error.count("\n") == 1 and message in error


def test_its_help_has_the_flags_of_both_but_no_folder(call):
    code, out, _ = call(bench_step.main, "--help")
    assert (
        code == 0 and "--skip-splits" in out and "--moco-k" in out and "DIR " not in out.partition("--output-dir")[0]
    )


@pytest.mark.slow
def test_the_cost_of_splits_can_be_left_out():
    for more in ([], ["--skip-splits"]):
        code, out, error = Program(bench_step.main, [*TINY, "-a", ARCH, "--bn-splits", "2", "--json", *more]).finish(
            300
        )
        assert code == 0, error
        assert (json.loads(out.splitlines()[-1])["cost_of_splits"] is None) == bool(more)
