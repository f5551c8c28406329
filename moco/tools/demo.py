"""Demo: pretraining with three designs on a tiny fake ImageNet, then linear classification.

    python -m moco.tools.demo [--dir DIR]

It calls the two scripts as a user would, and prints each command before it runs it. It takes two processes on a CPU,
or one process per GPU on at most two GPUs.
"""

import sys

if not __package__:  # otherwise `import moco` fails
    print("error: this program can't be started by its path; use python -m moco.tools.demo", file=sys.stderr)
    sys.exit(2)

import math
import os
import re
import shlex
import subprocess
import tempfile

import torch

from moco.engine.command_line import Parser, output_folder
from moco.tools.fake_imagenet import CLASSES

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
K = 256
SHARED = ["-a", "resnet18", "--crop-size", "32", "-b", "32", "--seed", "0"]
PRETRAINING = ["--lr", "0.03", "--moco-k", str(K), "--moco-m", "0.99"]
DESIGNS = ["--enable-scalemix", "--enable-asym-bn", "--enable-mean-encoding"]
PROBE = ["--lars", "--lr", "400"]  # times 32 / 256; a few hundred steps of a tiny batch need a large rate


def demo(folder, epochs=16, probe_epochs=15, images=60):
    """Runs the demo in `folder` and prints a summary.

    Args:
        epochs, probe_epochs: epochs of the pretraining and of the linear classification. images: training images per
            class.

    Returns:
        (mean loss of the first epoch, mean loss of the last epoch, top-1 of the linear classification in percent).
    """
    data = os.path.join(folder, "imagenet")
    shared = [*SHARED, "--nproc", str(processes())]
    run("-m", "moco.tools.fake_imagenet", data, "--train", str(images), "--size", "96")
    pretraining = run(
        *("main_moco.py", *shared, *PRETRAINING, "--epochs", str(epochs)),
        *("--keep", "1", *DESIGNS, "--output-dir", folder, data),
    )
    checkpoint = os.path.join(folder, f"checkpoint__{epochs - 1:04d}.pth.tar")
    probe = run(
        *("main_lincls.py", *shared, *PROBE, "--epochs", str(probe_epochs)),
        *("--pretrained", checkpoint, "--output-dir", folder, data),
    )
    losses = epoch_losses(pretraining)
    first, last = losses[min(losses)], losses[max(losses)]
    top1 = max(float(x) for x in re.findall(r"\* Acc@1 ([\d.]+)", probe))
    print(
        f"""
Summary
  loss at chance level  {math.log(K + 1):.3f}   ln(K + 1)
  loss, first epoch     {first:.3f}   low, since the queue starts with noise, which is easy to distinguish
  loss, last epoch      {last:.3f}
  linear top-1          {top1:.1f} %  (chance: {100 / len(CLASSES):.1f} %)
  checkpoints           {folder}
Next, on real data (a folder with train/ and val/, each with one folder per class):
  python main_moco.py -a resnet50 --multiprocessing-distributed --enable-multicrop DIR"""
    )
    return first, last, top1


def processes():
    """How many processes to start: one per GPU, two at most, and two on a CPU."""
    return min(torch.cuda.device_count(), 2) or 2


def run(*words):
    """Prints a Python command, runs it in the repository's root, and shows and returns its output."""
    print(f"\n$ python {shlex.join(words)}", flush=True)
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    lines = []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    if process.wait():
        sys.exit(process.returncode)
    return "".join(lines)


def epoch_losses(log):
    """The mean loss of each epoch: dict from epoch to loss."""
    found = re.findall(r"^epoch (\d+) ended: mean loss ([^\s,]+)", log, flags=re.MULTILINE)
    return {int(epoch): float(loss) for epoch, loss in found}


def main(argv=None):
    parser = Parser(__doc__, __spec__.name)
    help = "folder to work in (default: a new temporary folder)"
    parser.add_argument("--dir", type=output_folder, help=help)
    args = parser.parse_args(argv)
    demo(os.path.abspath(args.dir) if args.dir else tempfile.mkdtemp(prefix="asym-siam-demo-"))


if __name__ == "__main__":
    main()
