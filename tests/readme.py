"""The documents' commands and code, verbatim, ready to be run small."""

import os
import re
import shlex

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
README = os.path.join(ROOT, "README.md")
MAP = os.path.join(ROOT, "moco", "README.md")
ENGINE = os.path.join(ROOT, "moco", "engine", "README.md")


def blocks(language, document=README):
    """The code blocks of a document in that language, a list of texts."""
    with open(document) as file:
        return re.findall(rf"^```{language}\n(.*?)^```", file.read(), flags=re.MULTILINE | re.DOTALL)


def commands(script):
    """Arguments of every command that calls `script` in README.md and moco/engine/README.md, each a list of words.

    SLURM's variables are filled in, as on the first of two nodes and in the second job of an array.
    """
    text = "\n".join(blocks("bash") + blocks("bash", ENGINE)).replace("\\\n", " ")
    text = text.replace("$SLURM_NNODES", "2").replace("$SLURM_NODEID", "0")
    text = text.replace("${flags[$SLURM_ARRAY_TASK_ID]}", "--enable-multicrop").replace("$SLURM_ARRAY_TASK_ID", "1")
    lines = text.replace("bash -c 'exec ", "").splitlines()
    lines = [line.removesuffix("'") if line.count("'") % 2 else line for line in lines]
    return [shlex.split(line.split(script, 1)[1]) for line in lines if script in line]


def small(words, data, nproc, output_dir, **more):
    """The words with the data set replaced and flags that make the run tiny; a later flag overrides an earlier one."""
    words = [str(data) if word == "/path/to/imagenet" else word for word in words]
    flags = {"arch": "resnet18", "batch-size": 24, "crop-size": 32, "nproc": nproc, "workers": 1, "print-freq": 1}
    flags |= {"output-dir": output_dir, **more}
    return words + [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
