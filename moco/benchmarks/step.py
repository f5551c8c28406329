"""Measures the training step on synthetic batches in images per second: ours and the original's.

    python -m moco.benchmarks.step [-a resnet50] [-b 256] [--nproc N] [--enable-...] [--bn-splits N]
                                    [--precision P] [--compile] [--all] [--seconds S] [--json] [--skip-splits]

It takes every other flag of main_moco.py, too. Both steps are timed alternately in the same processes; the figures are
medians over 5 rounds. The original's step (moco/benchmarks/internal/original_project_step.py) uses NCHW, float32 with
torch's default flags (TF32 convolutions on GPUs that have them) and one forward pass per view; every rank gathers all
images, and the loss is read in each step. --all measures the baseline, each design and all five designs together.
"""

import sys

if not __package__:  # otherwise `import moco` fails
    print("error: this program can't be started by its path; use python -m moco.benchmarks.step", file=sys.stderr)
    sys.exit(2)

import argparse
import functools
import gc
import json
import math
import platform
import shlex
import statistics
from itertools import count

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

import main_moco
from moco.benchmarks.internal import measuring
from moco.benchmarks.internal.measuring import allocated, peak_memory, product_tflops, timed, traffic
from moco.benchmarks.internal.original_project_step import OriginalMoCo, gather, original_step
from moco.builder import add_projector
from moco.distributed import from_rank_0, is_initialized, rank
from moco.engine import speed_flags
from moco.engine.architectures import check_stem, make_network
from moco.engine.command_line import number
from moco.engine.ddp_wrapper import data_parallel
from moco.engine.design_flags import PAPER_SIDES, designs_of, in_words
from moco.engine.hardware import hardware
from moco.engine.launch_plan import plan_launch
from moco.engine.launch_processes import start_processes
from moco.engine.progress import Progress
from moco.engine.size_checks import check_memory
from moco.engine.startup_checks import check_model
from moco.precision import grad_scaler, set_precision, set_tf32_flags, tf32_flags

ROUNDS, WARM_UP = 5, 3
IMAGENET, EPOCHS = 1_281_167, 100
# Time over the baseline's time, from the hours in the paper's table.
PAPER = {"MultiCrop": 2.15, "ScaleMix": 1.30, "AsymAug": 1.02, "AsymBN": 1.01, "MeanEnc": 1.36}


def main(argv=None):
    parser = main_moco.build_parser()
    parser.prog, parser.description = f"python -m {__spec__.name}", __doc__
    next(action for action in parser._actions if action.dest == "data").help = argparse.SUPPRESS  # it reads no images
    add = parser.add_argument_group("benchmark").add_argument
    add("--all", action="store_true", help="measure the baseline, each design and all five")
    add("--seconds", metavar="S", default=20, type=number(float, 0, 10**6), help="measuring time per row and side")
    add("--json", action="store_true", help="end with one line of JSON")
    help = "leave out the column splits; it needs a second model, which --compile must compile, too"
    add("--skip-splits", action="store_true", help=help)
    words = sys.argv[1:] if argv is None else argv
    args = parser.parse_args([".", *words])
    vars(args).update(seed=0, command=shlex.join([*parser.prog.split(), *words]))
    try:
        run = plan_launch(args)
        speed_flags.settle(args)
        check_stem(args.arch, args.stem)
        args.total_batch = args.batch_size * run.nodes
        if args.batch_size % run.local:
            raise ValueError(
                f"--batch-size {args.batch_size} does not give {run.local} processes the same number of images; "
                f"give {max(args.batch_size // run.local, 2) * run.local}"
            )
        most = with_designs(args, table_rows(args)[-1])
        for splits in {args.bn_splits, 1}:  # 1, since the cost of the groups is measured, too
            check_model(argparse.Namespace(**(vars(most) | {"bn_splits": splits})), run)
        plan = main_moco.view_plan(most)
        check_memory(plan.views, args.batch_size, 4, "a smaller --batch-size")  # as floats
    except ValueError as error:
        parser.error(error)
    start_processes(bench, run, args, run)


def bench(device, args, run):
    """One process of the benchmark; global rank 0 prints."""
    torch.backends.cudnn.benchmark = True
    # The compiler counts the encoders of all rows as one. At its limit it would silently stop compiling.
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    product = product_tflops(device, args.precision)
    if rank() == 0:
        versions = f"torch {torch.__version__}, Python {platform.python_version()}"
        print(f"{hardware(device)}, {run.world} processes, {versions}")
        own = f"--precision {args.precision or 'as torch does'}, --bn-splits {args.bn_splits}"
        print(f"ours: {own}{', compiled' * args.compile}; original: float32, TF32 convolutions on GPUs that have them")
        print(f"a large matrix product: {product:.2f} TFLOP/s a process")
        print(" | ".join(f"{title:>{width}}" for title, width in COLUMNS.values()), flush=True)
    rows, baseline, chosen = [], None, table_rows(args)
    task = Progress("step", len(chosen) * (1 + ROUNDS), "rounds")
    for on in chosen:
        row, ours = measure(device, with_designs(args, on), run, baseline, task)
        baseline = baseline or ours
        row["designs"] = in_words(designs_of({"design": on}), "+") or "baseline"
        row["cost_by_arithmetic"] = flops(args, on, pixels=True) / flops(args, (), pixels=True)
        row["cost_in_paper"] = PAPER.get(row["designs"])
        row["tflops"] = flops(args, on) * row["ours"] / run.world / 1e12
        row["of_product"] = row["tflops"] / product
        row["hours"] = IMAGENET * EPOCHS / row["ours"] / 3600
        rows.append(row)
        if rank() == 0:
            print(" | ".join(cell(row, name) for name in COLUMNS), flush=True)
    if rank() == 0:
        print(NOTES)
        if args.json:
            row = rows[0] if args.all else rows[-1]
            facts = {"command": args.command, "hardware": hardware(device), "torch": torch.__version__}
            print(json.dumps({**row, **facts, "processes": run.world, "product_tflops": product, "rows": rows}))


NOTES = """cost: time over the baseline's time; arithmetic: the same, computed from the number of pixels;
paper: the same, from the paper's hours; splits: time with --bn-splits over time without;
peak GB: memory of a GPU's tensors, or of the process on a CPU;
hours: for 100 epochs of ImageNet; bytes: sent per process and step over gloo"""
COLUMNS = {  # name of a figure: title, width
    "designs": ("designs", 41),
    "ours": ("ours, images/s", 14),
    "original": ("original", 8),
    "ours_over_original": ("ours/original", 13),
    "cost": ("cost", 5),
    "cost_by_arithmetic": ("arithmetic", 10),
    "cost_in_paper": ("paper", 5),
    "cost_of_splits": ("splits", 6),
    "memory_gb": ("peak GB", 7),
    "tflops": ("TFLOP/s", 7),
    "of_product": ("of product", 10),
    "hours": ("hours", 7),
    "image_bytes": ("image bytes", 11),
    "image_bytes_over_original": ("/original", 9),
    "step_bytes": ("step bytes", 10),
    "step_bytes_over_original": ("/original", 9),
}
RATIOS = {  # name of a figure: the two steps whose rates it compares
    "ours_over_original": ("ours", "original"),
    "cost": ("baseline", "ours"),
    "cost_of_splits": ("one_group", "ours"),
}


def cell(row, name):
    """A figure of a row as text, at the width of its column."""
    value, width = row[name], COLUMNS[name][1]
    if value is None:
        return f"{'-':>{width}}"
    if isinstance(value, str):
        return f"{value:>{width}}"
    return f"{value:{width},.0f}" if value >= 1000 else f"{value:{width}.3g}"


def table_rows(args):
    """The combinations of designs to measure, each as --design's words; first the baseline, to which costs refer."""
    if args.all:
        return [(), *((design,) for design in PAPER_SIDES), PAPER_SIDES]
    return [(), tuple(args.design)] if args.design else [()]


def with_designs(args, on):
    """A copy of `args` in which exactly the designs `on` are turned on."""
    return argparse.Namespace(**(vars(args) | {"design": list(on)}))


def original_has(args, plan):
    """Whether the original project has such a step: it puts each design only on the side where the paper has it."""
    return not plan.target.mini and not plan.source.averaged and designs_of(args).get("asym_bn", "target") == "target"


def measure(device, args, run, baseline, task):
    """Measures one combination of designs.

    Args:
        baseline: a function that takes one step of the baseline, which is timed alternately with the others; None if
            this combination is the baseline.
        task: a Progress, to which 1 + ROUNDS rounds are added.

    Returns:
        A dict of the figures (rates are in images/s over all processes), and a function that takes our step.
    """
    plan = main_moco.view_plan(args)
    n = args.total_batch // run.world
    images = [torch.randn(n, 3, view.size, view.size, device=device) for view in plan.views]
    views = plan.split(images)
    torchs_own = tf32_flags()

    def set_flags(name):
        set_tf32_flags(*torchs_own)
        if name != "original":
            set_precision(args.precision)

    plain = argparse.Namespace(**(vars(args) | {"bn_splits": 1}))
    makers = {"ours": lambda: our_step(device, args, run, plan, images)}
    if original_has(args, plan):
        makers["original"] = lambda: the_originals_step(device, args, list(views.values())[:3])
    if args.bn_splits > 1 and not args.skip_splits:
        makers["one_group"] = lambda: our_step(device, plain, run, plan, images)
    gc.collect()  # frees what the previous row has left
    before, steps = allocated(device), {}
    for name, make in makers.items():
        set_flags(name)
        steps[name] = make()
        for _ in range(WARM_UP):
            steps[name]()
        if name == "ours":  # before the other steps occupy memory
            memory = peak_memory(steps[name], device, before)
    ours = steps["ours"]
    if baseline:
        steps["baseline"] = baseline
    seconds, rates = {}, {name: [] for name in steps}
    for round_ in range(-1, ROUNDS):  # round -1 finds out how many steps a round has
        for name, step in steps.items():
            set_flags(name)
            k = 2 if round_ < 0 else max(1, math.ceil(args.seconds / ROUNDS / seconds[name]))
            seconds[name] = from_rank_0(timed(step, k) / k)
            if round_ >= 0:
                rates[name].append(args.total_batch / seconds[name])
        task.add()
    result = {name: statistics.median(rates[name]) if name in rates else None for name in ("ours", "original")}
    for name, (a, b) in RATIOS.items():
        result[name] = ratio(rates[a], rates[b]) if a in rates and b in rates else None
    result["cost"] = result["cost"] if baseline else 1.0
    result["memory_gb"] = memory
    sent_images = torch.cat([view.flatten() for view in (*views["im_k"], *views["im_k_mini"])])
    # Many calls, since each shuffle differs.
    calls = max(1, min(6_000, 2**30 // (sent_images.numel() // n * 4)) // args.total_batch)
    sent = {name: traffic(step, 2) for name, step in steps.items()}
    sent["image_ours"] = traffic(measuring.shuffle_of(views["im_k"], views["im_k_mini"], args.bn_splits), calls)
    sent["image_original"] = traffic(lambda: gather(sent_images), 5) if "original" in steps else None
    for what, prefix in (("step", ""), ("image", "image_")):
        a, b = sent[f"{prefix}ours"], sent.get(f"{prefix}original")
        result[f"{what}_bytes"], result[f"{what}_bytes_over_original"] = a, a / b if a and b else None
    set_flags("original")
    return result, ours


def ratio(a, b):
    """The median over the rounds of the ratio of two rates."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def our_step(device, args, run, plan, images):
    """A function that takes one step of main_moco.py."""
    model, optimizer = main_moco.build(args, device)
    scaler, step = grad_scaler(device, args.precision), count()
    batch = args.total_batch // run.world
    net = data_parallel(model, device, lambda net: main_moco.noise_loss(plan, args.precision, net, batch))
    net.train()
    return lambda: main_moco.train_step(net, optimizer, scaler, plan, images, next(step), args.precision)


def the_originals_step(device, args, views):
    """A function that takes one step as the original does."""
    net = OriginalMoCo(
        functools.partial(make_network, args.arch, args.stem),
        *(args.moco_dim, args.moco_k, args.moco_m, args.moco_t, "asym_bn" in designs_of(args), device),
    ).to(device)
    optimizer = torch.optim.SGD(net.parameters(), args.lr, args.momentum, weight_decay=args.weight_decay)
    if is_initialized():
        net = DistributedDataParallel(net, device_ids=[device.index] if device.type == "cuda" else None)
    return lambda: original_step(net, optimizer, views)


def flops(args, on, pixels=False):
    """Floating-point operations of a step per image: 1 forward pass, and for the source 2 more for its backward pass.

    With `pixels`, a pass costs its number of pixels instead. The ratio of such costs is the column "arithmetic".
    """
    plan = main_moco.view_plan(with_designs(args, on))

    def forward(view):
        return view.size**2 if pixels else encoder_flops(args.arch, args.stem, args.moco_dim, view.size)

    source, target = (sum(map(forward, side.full + side.mini)) for side in (plan.source, plan.target))
    return 3 * source + target


@functools.cache
def encoder_flops(arch, stem, dim, size):
    """Floating-point operations of a forward pass for one image of `size` x `size` pixels."""
    net = add_projector(make_network(arch, stem, dim)).eval().to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 3, size, size, device="meta"))
    return counter.get_total_flops()


if __name__ == "__main__":
    main()
