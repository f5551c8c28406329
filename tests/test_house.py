"""The house's rules: which way imports run, how long files are, and what lies beside what can be run."""

import ast
import inspect
import os
import runpy
import sys

import pytest

from moco.engine import early_signals

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PRIMITIVES = ("precision", "counter_based_rng", "distributed", "pipe_safe_print")
# From the bottom to the top. A module imports from lower layers and from its own package.
LAYERS = [
    PRIMITIVES,
    ("views", "batchnorm", "shuffle_bn", "optim"),
    ("builder", "loss", "asymmetry", "data"),
    ("engine", "evaluation", "loader"),
    ("main_moco", "main_lincls"),
    ("tools", "benchmarks", "faults"),
]
ALSO = {  # imports within a layer that the design allows
    ("builder", "asymmetry"),
    ("evaluation", "engine"),
    ("evaluation", "loader"),
    ("faults", "tools"),
}
METHOD_KNOWS_NOT = {"argparse", "os", "pathlib", "subprocess"}  # what builder.py, loss.py and asymmetry/ do not import
RUNNABLE = ("tools", "benchmarks", "faults")


def python_files(*folders):
    """The paths of all Python files in folders of the repository, relative to it."""
    found = []
    for folder in folders:
        for top, _, files in os.walk(os.path.join(ROOT, folder)):
            found += [os.path.relpath(os.path.join(top, f), ROOT) for f in files if f.endswith(".py")]
    return sorted(found)


SOURCES = [*python_files("moco"), "main_moco.py", "main_lincls.py"]


def room(module):
    """The unit that a rule speaks of: a script, a package below moco, or a file directly in moco; None for others."""
    parts = module.split(".")
    if parts[0] in ("main_moco", "main_lincls"):
        return parts[0]
    return parts[1] if parts[0] == "moco" and len(parts) > 1 else None


def imports_of(source):
    """The names of all modules that a source imports, at any depth of the code."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level:
            names.add("." * node.level + (node.module or ""))
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "moco" else {node.module}
            )
    return names


def broken_rules(path, source):
    """What a file's imports break, a list of messages."""
    mine = room(path.removesuffix(".py").replace(os.sep, "."))
    if mine in (None, "__init__"):
        return []
    heights = {name: height for height, layer in enumerate(LAYERS) for name in layer}
    if mine not in heights:
        return [f"{path}: {mine} stands in no layer; add it to LAYERS"]
    messages = []
    for name in sorted(imports_of(source)):
        other = room(name)
        if name.startswith("."):
            messages.append(f"{path} imports {name}: write the whole name of the module, as everywhere else")
        elif other is None:
            if mine in ("builder", "loss", "asymmetry") and name.split(".")[0] in METHOD_KNOWS_NOT:
                messages.append(f"{path} imports {name}: the method knows no flags and no files")
        elif other not in heights:
            messages.append(f"{path} imports {name}, which stands in no layer; add it to LAYERS")
        elif mine != other and (mine, other) not in ALSO and heights[other] >= heights[mine]:
            messages.append(f"{path} imports {name}: {mine} may only import from layers below it, not from {other}")
    return messages


def read(path):
    with open(os.path.join(ROOT, path)) as file:
        return file.read()


def test_imports_run_one_way():
    messages = [message for path in SOURCES for message in broken_rules(path, read(path))]
    assert not messages, "\n".join(messages)


@pytest.mark.parametrize(
    "path, source, message",
    [
        ("moco/views/x.py", "from moco.asymmetry.scalemix import scalemix", "views may only import from layers below"),
        ("moco/asymmetry/x.py", "def f():\n    import moco.builder", "asymmetry may only import from layers below it"),
        ("moco/builder.py", "import argparse", "the method knows no flags"),
        ("moco/data/x.py", "from moco import loader", "data may only import from layers below it, not from loader"),
        ("moco/engine/x.py", "import main_moco", "engine may only import from layers below it, not from main_moco"),
        ("main_moco.py", "from moco.tools.demo import run", "not from tools"),
        ("moco/views/x.py", "from ..asymmetry import scalemix", "write the whole name"),
        ("moco/views/x.py", "from . import randaugment", "write the whole name"),
        ("moco/new.py", "", "new stands in no layer"),
    ],
)
def test_a_broken_rule_is_named(path, source, message):
    (found,) = broken_rules(path, source)
    assert message in found and path in found


def test_files_stay_short():
    lengths = {path: read(path).count("\n") for path in [*SOURCES, *python_files("tests")]}
    limits = {path: 200 if path.startswith("main_") else 300 for path in lengths}
    assert not {path: n for path, n in lengths.items() if n > limits[path]}
    assert len([path for path in SOURCES if path.count(os.sep) == 1]) <= 11  # directly in moco/
    readme = read("README.md")
    assert readme.count("\n") <= 250 and len(readme.split()) <= 2200


def test_train_is_short():
    for script in ("main_moco.py", "main_lincls.py"):
        (train,) = [n for n in ast.parse(read(script)).body if isinstance(n, ast.FunctionDef) and n.name == "train"]
        assert train.end_lineno - train.lineno < 30, script


COMMANDS = [path for path in python_files(*(f"moco/{name}" for name in RUNNABLE)) if path.count(os.sep) == 2]


@pytest.mark.parametrize("path", [path for path in COMMANDS if not path.endswith("__init__.py")])
def test_what_lies_beside_a_command_is_a_command(path, monkeypatch, capsys):
    module = path.removesuffix(".py").replace(os.sep, ".")
    monkeypatch.setattr(sys, "argv", [path, "--help"])
    monkeypatch.setattr(early_signals, "exit_on_signals", lambda: None)  # of this process
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(SystemExit) as stop:
        runpy.run_module(module, run_name="__main__")
    out = capsys.readouterr().out
    assert stop.value.code == 0 and out.startswith(f"usage: python -m {module} ")


@pytest.mark.parametrize("path", [path for path in python_files("moco") if '__name__ == "__main__"' in read(path)])
def test_a_command_that_is_started_by_its_path_names_the_way_to_start_it(path, capsys):
    module = path.removesuffix(".py").replace(os.sep, ".")
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(os.path.join(ROOT, path), run_name="__main__")
    line = f"error: this program can't be started by its path; use python -m {module}\n"
    assert stop.value.code == 2 and capsys.readouterr() == ("", line)


@pytest.mark.parametrize("path", [path for path in SOURCES if not path.endswith("__init__.py")])
def test_every_file_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(read(path))), path


def test_names_that_forks_use_stay():
    from moco.asymmetry.scalemix import scalemix
    from moco.batchnorm import SplitBatchNorm
    from moco.builder import MoCo
    from moco.loader import CropsTransform, GaussianBlur
    from moco.optim import LARS

    assert all(map(callable, (scalemix, SplitBatchNorm, CropsTransform, GaussianBlur, LARS)))
    arguments = ["base_encoder", "dim", "K", "m", "T", "enable_asym_bn", "seed", "asym_bn_group", "bn_splits"]
    assert list(inspect.signature(MoCo).parameters)[: len(arguments)] == arguments
    assert list(inspect.signature(MoCo.forward).parameters)[:5] == ["self", "im_q", "im_q_mini", "im_k", "step"]
