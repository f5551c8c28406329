"""The commands of the README, verbatim, ready to be run small."""

import os
import re
import shlex

README = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "README.md")


def commands(script):
    """Arguments of every command of the README that calls `script`, in order, each a list of words.

    As on the first of two nodes, where SLURM fills in the numbers.
    """
    with open(README) as file:
        blocks = re.findall(r"^```bash\n(.*?)^```", file.read(), flags=re.MULTILINE | re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ").replace("$SLURM_NNODES", "2").replace("$SLURM_NODEID", "0")
    lines = text.replace("bash -c 'exec ", "").splitlines()
    lines = [line.removesuffix("'") if line.count("'") % 2 else line for line in lines]
    return [shlex.split(line.split(script, 1)[1]) for line in lines if script in line]


def small(words, data, nproc, output_dir, **more):
    """The words with the data set replaced and flags that make the run tiny; a later flag overrides an earlier one."""
    words = [str(data) if word == "/path/to/imagenet" else word for word in words]
    flags = {"arch": "resnet18", "batch-size": 24, "crop-size": 32, "nproc": nproc, "workers": 1, "print-freq": 1}
    flags |= {"output-dir": output_dir, **more}
    if "--dist-url" in words:
        flags["dist-url"] = f"file://{output_dir}/rendezvous"  # a port may be taken
    return words + [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
