"""Makes report.md from report.json: the tables of moco/benchmarks/README.md, and what is left to do."""

from moco.engine.design_flags import DESIGNS

MISSING = "not measured yet"
TRY_OUT = "**A try-out with --small, on a CPU. Its figures say nothing about a GPU.**"
ROWS = {name.replace("_", "-"): design.title for name, design in DESIGNS.items()}
ROWS = {"baseline": "baseline", **ROWS, "all": "all five"}  # in names of parts: in tables
STEP = {  # column: figure of the benchmark `step`, unit
    "ours, images/s": ("ours", ""),
    "the original's, images/s": ("original", ""),
    "ours / original": ("ours_over_original", ""),
    "cost": ("cost", ""),
    "peak memory": ("memory_gb", " GB"),
    "hours for 100 epochs": ("hours", ""),
}
VERSIONS = {"torch": "torch", "torchvision": "torchvision", "numpy": "NumPy", "PIL": "Pillow", "python": "Python"}
VERSIONS |= {"driver": "driver", "cuda": "CUDA", "cudnn": "cuDNN", "nccl": "NCCL"}


def markdown(report):
    """The text of report.md for `report`, the dict of report.json."""
    parts = report["parts"]
    done = {name: part["figures"] for name, part in parts.items() if part["figures"]}
    blocks = [TRY_OUT] * report["small"] + ["# GPU report", *machine(report)]
    for batch in (256, 32):
        where = "Small sizes, CPU" if report["small"] else f"One GPU, ResNet-50, 224 px, batch {batch}"
        blocks += [f"## The training step, batch {batch}", f"{where}:", *step(parts, done, batch)]
    for title, section in (
        ("The augmentation on the device", augmentation(done)),
        ("Memory over epochs", memory(done)),
        ("Runs", runs(done)),
        ("What is not done", unfinished(report)),
        ("Commands and times", commands(parts)),
    ):
        blocks += [f"## {title}", *section] if (section := list(section)) else []
    return "\n\n".join(blocks) + "\n"


def table(columns, rows):
    """A table in Markdown; `rows` is an iterable of lists of texts."""
    lines = [[cell.replace("|", "\\|") for cell in row] for row in [columns, *rows]]
    lines = ["|".join(f" {cell} " if cell else " " for cell in line) for line in lines]
    return "\n".join(f"|{line}|" for line in [lines[0], "|".join(["---"] * len(columns)), *lines[1:]])


def number(x, unit=""):
    """A number with three significant digits, or more if it is 1000 or greater, and its unit; "-" for None."""
    return "-" if x is None else f"{x:,.0f}{unit}" if abs(x) >= 100 else f"{x:.3g}{unit}"


def percent(share):
    """A share as a percentage."""
    return f"{100 * share:.1f} %"


def code(lines):
    """A block of shell commands."""
    return "\n".join(["```bash", *lines, "```"])


def machine(report):
    """Yields the hardware and the versions."""
    facts = report["machine"]
    gpu = f"{facts['gpus']} x {facts['device']} with {number(facts['gpu_gb'])} GB, " if facts["gpus"] else ""
    versions = ", ".join(f"{title} {facts[name]}" for name, title in VERSIONS.items() if facts.get(name))
    yield f"Hardware: {gpu}{facts['cpu']}, {number(facts['memory_gb'])} GB of main memory. Versions: {versions}."
    yield f"Commit: {', '.join(report['commits'])}. Date: {report['date']}."
    if "note" in facts:
        yield f"Nothing is compiled: {facts['note']}."


def step(parts, done, batch):
    """Yields the commands and the table of the training step at one batch."""
    baseline = f"step-baseline-{batch}"
    if baseline in parts and parts[baseline]["commands"]:
        yield code(parts[baseline]["commands"])
        yield (
            "The other rows add the flags of their designs and `--skip-splits`. Each row is a run of its own, which "
            "measures the baseline, too; *cost* refers to that."
        )
    rows = []
    for name, title in ROWS.items():
        figures = done.get(f"step-{name}-{batch}")
        cells = [number(figures[key], unit) for key, unit in STEP.values()] if figures else [MISSING, *[""] * 5]
        rows.append([title, *cells])
    yield table(["designs", *STEP], rows)
    if figures := done.get(baseline):
        product, share = number(figures["product_tflops"]), percent(figures["of_product"])
        text = f"A large matrix product in the same number format reaches {product} TFLOP/s, a step {share} of that."
        if splits := figures["cost_of_splits"]:
            text += f" With `--bn-splits`, the step takes {number(splits)} times as long as without."
        if batch == 32:
            text += " AsymBN changes nothing at this size, since there is only one batch-norm group."
        yield text


def augmentation(done):
    """Yields the table of the device's part of the augmentation, and its share of a step if the step is measured."""
    rows = []
    for batch, figures in done.get("augmentation", {}).items():
        for name in ("baseline", "all"):
            ms, images = figures["ms"][name], figures["batch"]
            step = done.get(f"step-{name}-{batch}")
            step = step and 1000 * images / step["ours"]
            share = percent(ms / step) if step else MISSING
            rows.append([ROWS[name], str(images), number(ms), number(ms / images), number(step), share])
    if rows:
        yield table(["designs", "batch", "ms a batch", "ms an image", "step, ms", "share of the step"], rows)
        yield "On a GPU the augmentation runs beside the previous step, so its share of the time is at most this."


def memory(done):
    """Yields the table of the memory of epochs, and whether it grows."""
    figures = done.get("memory")
    if not figures:
        return
    titles = {"reserved": "peak reserved, GB", "allocated": "peak allocated, GB", "resident": "process at the end, GB"}
    rows = [
        [title, *(number(epoch[kind] and epoch[kind] / 1e9) for epoch in figures["epochs"])]
        for kind, title in titles.items()
        if kind in figures["epochs"][0]
    ]
    yield table(["epoch", *map(str, range(1, len(figures["epochs"]) + 1))], rows)
    if "growth" in figures:
        flat = "flat" if figures["flat"] else "NOT flat"
        yield f"After epoch 2 the {figures['kind']} memory grew by {percent(figures['growth'])}; it is {flat}."


def runs(done):
    """Yields the table of the tests and the real runs."""
    if rows := list(results(done)):
        yield table(["part", "result"], rows)


def results(done):
    """Yields the rows of that table."""
    if tests := done.get("tests"):
        yield ["tests marked `gpu`", ", ".join(f"{count} {what}" for what, count in tests.items())]
    if run := done.get("run"):
        speed = f"{number(run['images_per_s'])} images/s, `Wait` {percent(run['wait'])}"
        yield ["`main_moco.py --fast`", f"{speed}; {run['workers']} workers, {run['steps']} steps of {run['batch']}"]
    if run := done.get("preemption"):
        equal = f"by up to {run['difference']:.3g}" if run["difference"] else "in no bit"
        where = f"--deterministic, stopped after {run['steps_before']} of {run['steps']} steps and resumed"
        yield ["SIGTERM and resume", f"{where}: weights and momentum differ {equal} from an uninterrupted run's"]
    if run := done.get("lincls"):
        network = "of the run above" if run["pretrained"] else "of random weights"
        result = f"top-1 {number(run['val_acc1'])} % on 12 classes after an epoch on the network {network}"
        yield ["linear classification", f"{result}, `Wait` {percent(run['wait'])}"]
    if run := done.get("nccl"):
        yield ["NCCL, two processes", f"mean loss {number(run['loss'])}" if "loss" in run else "their sum is right"]


def unfinished(report):
    """Yields which parts failed, were skipped, did not fit or were not run yet, and the output of failed ones."""
    nothing = {"status": "not run yet", "reason": ""}
    left = {name: report["parts"].get(name, nothing) for name in report["names"]}
    left = {name: part for name, part in left.items() if part["status"] != "done"}
    reasons = {}
    for name, part in left.items():
        reasons.setdefault((part["status"], part["reason"]), []).append(f"`{name}`")
    if left:
        yield table(["parts", "status", "reason"], ([", ".join(names), *why] for why, names in reasons.items()))
    for name, part in left.items():
        if part["status"] == "failed":
            yield f"The end of the output of `{name}`; `{name}.log` has all of it:"
            yield "\n".join(["```", *part["output"], "```"])


def commands(parts):
    """Yields the commands of each part that ran; DIR is the folder of the report."""
    for name, part in parts.items():
        if part["commands"]:
            yield f"`{name}`, {number(part['seconds'])} s:"
            yield code(part["commands"])
