"""Demo: pretraining on a small fake ImageNet, and what its result is worth, beside a random encoder.

    python -m moco.tools.demo [--dir DIR] [--epochs 6] [--seed 0]

It calls the scripts and tools as a user would, and prints each command: pretraining, kNN, linear classification, and,
of the result, curves, nearest neighbours, and an export that is loaded again. The pretraining runs in one process, on
one GPU or on the CPU. Of the programs after it, two run at a time; the output of each is printed when it has ended.
"""

import sys

if not __package__:  # otherwise `import moco` fails
    print("error: this program can't be started by its path; use python -m moco.tools.demo", file=sys.stderr)
    sys.exit(2)

import importlib.util
import json
import math
import os
import re
import shlex
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from moco.engine.command_line import SEED, Parser, number, output_folder
from moco.engine.launch_plan import cores
from moco.tools.fake_imagenet import CLASSES

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
K = 512
ARCH, SIZE = "resnet18", "48"
SHARED = ["-a", ARCH, "--crop-size", SIZE, "-b", "32", "--augment-on", "device"]
# A few hundred steps need a faster target and a lower temperature than the paper's 150,000.
PRETRAINING = ["--lr", "0.015", "--moco-k", str(K), "--moco-m", "0.99", "--moco-t", "0.1"]
DESIGNS = ["--enable-asym-aug"]
LINEAR = ["--lr", "0.05", "--epochs", "1"]  # LARS, which the paper uses, needs more steps
RANDOM = "none"
LOAD = """import torch, torchvision
model = torchvision.models.{arch}()
print(model.load_state_dict(torch.load({path!r}, weights_only=True), strict=False))"""


def demo(folder, epochs, images=200, val=50, seed=0):
    """Runs the demo in `folder` and prints a summary.

    Args:
        epochs: of the pretraining. images, val: training and validation images per class.
        seed: random seed of the images and of every run.

    Returns:
        dict of the figures of the summary: `first_loss`, `last_loss`, and for `knn` and `linear` the pair of
        accuracies in percent of the pretrained and of the random encoder.
    """
    start, data = time.monotonic(), os.path.join(folder, "imagenet")
    shared = [*SHARED, "--seed", str(seed)]
    heading(1, "a fake ImageNet of 12 classes, 4 shapes with 3 textures")
    made = ["--train", images, "--val", val, "--size", "64", "--seed", seed, "--workers", 2]
    run("-m", "moco.tools.fake_imagenet", data, *made)

    heading(2, "pretraining, without labels")
    pretraining = run(
        *("main_moco.py", *shared, *PRETRAINING, *DESIGNS, "--epochs", epochs, "--keep", "1"),
        *("--knn-every", epochs, "--output-dir", folder, data),
    )
    losses, knn = epoch_losses(pretraining), [float(re.findall(r"\* kNN Acc@1 ([\d.]+)", pretraining)[-1])]
    checkpoint = os.path.join(folder, f"checkpoint__{epochs - 1:04d}.pth.tar")

    heading(3, "kNN by a random encoder, linear classification on both encoders, pictures, and an export")
    backbone, pictures = os.path.join(folder, "backbone.pth"), ["neighbours.png"]
    classify = ["main_lincls.py", *shared, *LINEAR, "--pretrained"]
    commands = [
        ["-m", "moco.tools.knn", RANDOM, data, "--arch", ARCH, "--crop-size", SIZE, "--json"],
        [*classify, checkpoint, "--output-dir", folder, data],
        [*classify, RANDOM, "--output-dir", os.path.join(folder, "random"), data],
        ["-m", "moco.tools.neighbours", checkpoint, data, "--random", "--out", os.path.join(folder, pictures[0])],
        ["-m", "moco.tools.export", checkpoint, backbone, "--to", "torchvision"],
    ]
    if importlib.util.find_spec("matplotlib"):
        pictures.append("curves.png")
        commands.append(["-m", "moco.tools.plot", folder, "--out", os.path.join(folder, pictures[-1])])
    else:
        print("\nno curves, since matplotlib is not installed: pip install matplotlib")
    of_random, *linear = run_two_at_a_time(commands)[:3]
    knn.append(json.loads(of_random.splitlines()[-1])["acc1"])
    linear = [best_accuracy(log) for log in linear]

    heading(4, "the exported backbone, loaded by torchvision")
    run("-c", LOAD.format(arch=ARCH, path=backbone))

    figures = {"first_loss": losses[min(losses)], "last_loss": losses[max(losses)], "knn": knn, "linear": linear}
    print(summary(figures, folder, pictures, timedelta(seconds=round(time.monotonic() - start))))
    return figures


def summary(figures, folder, pictures, took):
    """The text at the end."""
    chance = f"{100 / len(CLASSES):.1f} %"
    rows = [("", "pretrained", "random encoder", "chance")]
    for name, key in (("kNN top-1", "knn"), ("linear top-1", "linear")):
        rows.append((name, *(f"{value:.1f} %" for value in figures[key]), chance))
    table = "\n".join(f"  {name:14}{a:>12}{b:>17}{c:>10}" for name, a, b, c in rows)
    return f"""
Summary, after {took}
{table}
  loss: {figures["first_loss"]:.3f} in the first epoch, {figures["last_loss"]:.3f} in the last; ln(K + 1) = \
{math.log(K + 1):.3f} at chance level
  to look at, in {folder}: {", ".join(pictures)}
Next, on real data (a folder with train/ and val/, each with one folder per class):
  python main_moco.py -a resnet50 --multiprocessing-distributed --enable-multicrop DIR"""


def heading(number, text):
    """Prints what comes next."""
    print(f"\n=== {number} of 4: {text}", flush=True)


def run(*words):
    """Prints a Python command, runs it in the repository's root, and shows and returns its output."""
    words = [str(word) for word in words]
    print(f"\n$ python {shlex.join(words)}", flush=True)
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    lines = []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    if process.wait():
        sys.exit(process.returncode)
    return "".join(lines)


def run_two_at_a_time(commands):
    """Runs Python commands as `run` does, each on half of the cores; returns the list of their outputs."""
    threads = str(max(1, cores() // 2))

    def start(words):
        return subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": threads},
        )

    outputs = []
    with ThreadPoolExecutor(2) as pool:
        for words, process in zip(commands, pool.map(start, commands), strict=True):
            print(f"\n$ python {shlex.join(map(str, words))}\n{process.stdout}", end="", flush=True)
            if process.returncode:
                pool.shutdown(cancel_futures=True)
                sys.exit(process.returncode)
            outputs.append(process.stdout)
    return outputs


def epoch_losses(log):
    """The mean loss of each epoch: dict from epoch to loss."""
    found = re.findall(r"^epoch (\d+) ended: mean loss ([^\s,]+)", log, flags=re.MULTILINE)
    return {int(epoch): float(loss) for epoch, loss in found}


def best_accuracy(log):
    """The best validation accuracy of a linear classification, in percent."""
    return max(float(x) for x in re.findall(r"^ \* Acc@1 ([\d.]+)", log, flags=re.MULTILINE))


def main(argv=None):
    parser = Parser(__doc__, __spec__.name)
    help = "folder to work in (default: a new temporary folder)"
    parser.add_argument("--dir", type=output_folder, help=help)
    parser.add_argument("--epochs", metavar="N", type=number(int, 1), default=6, help="epochs of the pretraining")
    parser.add_argument("--seed", metavar="N", type=SEED, default=0, help="random seed of the images and runs")
    args = parser.parse_args(argv)
    folder = os.path.abspath(args.dir) if args.dir else tempfile.mkdtemp(prefix="asym-siam-demo-")
    demo(folder, args.epochs, seed=args.seed)


if __name__ == "__main__":
    main()
