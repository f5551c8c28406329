"""Exports the backbone of a checkpoint to a file that another library loads, and shows how it is loaded there.

    python -m moco.tools.export CHECKPOINT [CHECKPOINT ...] OUT --to torchvision|timm|detectron2|safetensors

A checkpoint is any file that --pretrained of main_lincls.py takes. It can't be loaded into a network directly: its
names begin with module.encoder_q, so load_state_dict(..., strict=False) finds none of them and changes nothing.
"""

import sys

if not __package__:  # otherwise `import moco` fails
    print("error: this program can't be started by its path; use python -m moco.tools.export", file=sys.stderr)
    sys.exit(2)

import argparse
import importlib.util
import os
import re

import torch

from moco.engine import checkpoint_atomic_write
from moco.engine.architectures import IMAGENET, SMALL, architectures, is_resnet, meta_network
from moco.engine.checkpoint_file_read import read
from moco.engine.checkpoint_format import CheckpointError, run_of
from moco.engine.command_line import Parser, output_file, output_folder
from moco.engine.design_flags import DESIGNS, designs_of, in_words
from moco.engine.pretrained_backbone import SOURCE, TARGET, backbone_for, encoder_of, stem_of
from moco.engine.progress import Progress
from moco.evaluation.pretrained_encoder import arch_of, open_encoder
from moco.pipe_safe_print import first_line, say
from moco.tools.internal.export_formats import FORMATS
from moco.views.normalize import MEAN, STD

PIXELS = 64  # side of the images by which the written file is checked


def main(argv=None):
    example = "runs/multicrop/checkpoint__0099.pth.tar resnet50.pth --to torchvision"
    parser = Parser(__doc__, __spec__.name, example)
    add = parser.add_argument
    add("checkpoints", metavar="CHECKPOINT", nargs="+", help="checkpoint to export")
    add("out", metavar="OUT", help="file to write; for several checkpoints, the folder to write to")
    add("--to", metavar="LIBRARY", required=True, choices=FORMATS, help=f"library, one of {', '.join(FORMATS)}")
    add("-a", "--arch", metavar="ARCH", choices=architectures(), help="network (default: that of the checkpoint)")
    add("--target", action="store_true", help="export encoder_k, the target encoder, instead of encoder_q")
    args = parser.parse_args(argv)
    form, encoder, shown = FORMATS[args.to], TARGET if args.target else SOURCE, {}
    if form.package and not importlib.util.find_spec(form.package):
        parser.error(f"--to {args.to} needs a package that is not installed; run pip install {form.package}")
    try:
        paths = destinations(args.checkpoints, args.out, form.endings)
        networks = [checked_network(path, args.arch, encoder, args.to) for path in args.checkpoints]
        progress = Progress("export", len(paths), "checkpoints")
        for checkpoint, network, path in zip(args.checkpoints, networks, paths, strict=True):
            say(export(checkpoint, network[0], encoder, form, path))
            shown[network] = path
            progress.add()
    except (CheckpointError, OSError, argparse.ArgumentTypeError) as error:
        parser.error(error)
    for (arch, stem), path in shown.items():
        say("\n".join(["", form.header, *form.usage(path, arch, stem)]))


def destinations(checkpoints, out, endings):
    """The path that each checkpoint is exported to.

    Args:
        out: a file, or a folder. In a folder a file has the name of its checkpoint, and before it that of the
            checkpoint's folder if several checkpoints have the same name.

    Raises:
        argparse.ArgumentTypeError: a path can't be written, or a checkpoint would be overwritten.
    """
    is_folder = os.path.isdir(out) or out.endswith("/")
    if len(checkpoints) == 1 and not is_folder:
        paths = [output_file(*endings)(out)]
    elif not is_folder and out.lower().endswith(endings):
        raise argparse.ArgumentTypeError(f"{out!r} is one file for {len(checkpoints)} checkpoints; give a folder")
    else:
        names = [re.sub(r"(\.pth?)?(\.tar)?$", "", os.path.basename(path)) for path in checkpoints]
        if len(set(names)) < len(names):
            folders = [os.path.basename(os.path.dirname(os.path.abspath(path))) for path in checkpoints]
            names = [f"{folder}-{name}" for folder, name in zip(folders, names, strict=True)]
        paths = [os.path.join(output_folder(out), name + endings[0]) for name in names]
    for i, path in enumerate(paths):
        if path in paths[:i]:
            both = f"{checkpoints[paths.index(path)]!r} and {checkpoints[i]!r}"
            raise argparse.ArgumentTypeError(f"{both} would both be written to {path!r}; export them one by one")
        if os.path.exists(path) and (is_checkpoint(path) or any(same_file(path, other) for other in checkpoints)):
            why = "is a checkpoint, which is not overwritten"
            raise argparse.ArgumentTypeError(f"{path!r} {why}; give another OUT as the last path")
    return paths


def is_checkpoint(path):
    """Whether a file is a checkpoint of a training, not an export."""
    try:
        return "state_dict" in read(path, check=False)
    except CheckpointError:
        return False


def same_file(path, other):
    """Whether two paths lead to the same file."""
    return os.path.exists(other) and os.path.samefile(path, other)


def checked_network(path, arch, encoder, library):
    """The (architecture, stem) of a checkpoint, which is checked as far as possible without reading all of it.

    Raises:
        CheckpointError: the file can't be used, or the library does not have the network.
    """
    if path == "none":
        raise CheckpointError("random weights ('none') are not exported; give the path of a checkpoint")
    checkpoint = read(path, check=False)
    state = encoder_of(checkpoint, path, encoder)
    arch = arch or arch_of(checkpoint, path, state)
    stem = stem_of(checkpoint, state) if is_resnet(arch) else IMAGENET
    backbone_for(meta_network(arch, stem), checkpoint, path, arch, encoder)
    if arch not in (networks := FORMATS[library].networks):
        way_out = f"give --to torchvision or safetensors, or a checkpoint of {', '.join(networks)}"
        raise CheckpointError(f"--to {library} knows no {arch}, the network of {path!r}; {way_out}")
    if stem == SMALL and not FORMATS[library].small_stem:
        way_out = "give --to torchvision, timm or safetensors"
        raise CheckpointError(f"--to {library} knows no {arch} with --stem small, the network of {path!r}; {way_out}")
    return arch, stem


def export(checkpoint, arch, encoder, form, path):
    """Writes the backbone of a checkpoint to `path`, and loads it again.

    Args:
        checkpoint: path of the file. encoder: SOURCE or TARGET. form: one of FORMATS.

    Returns:
        A line that says what was written.

    Raises:
        CheckpointError: the checkpoint is damaged or has values that are not finite, or the file can't be written.
        SystemExit: the written file does not pass `check` (code 1).
    """
    source = open_encoder(checkpoint, arch, encoder=encoder)
    state = source.network.state_dict()
    if broken := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise CheckpointError(f"in the checkpoint {checkpoint!r}, {broken[0]} is not finite; give an earlier one")
    tensors = {form.tensor_name(name): tensor for name, tensor in state.items() if form.tensor_name(name)}
    about = metadata(source, encoder)
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        checkpoint_atomic_write.save(tensors, path, lambda tensors, file: form.write(tensors, about, file))
    except OSError as error:
        raise CheckpointError(f"can't write {path!r}: {error.strerror}; make room, or give another OUT") from error
    try:
        reader = check(path, form, tensors, source)
    except Exception as error:  # each library has errors of its own
        sys.exit(f"error: {path!r} was written, but could not be loaded again: {first_line(error)}; do not use it")
    size = f"{len(tensors)} tensors, {os.path.getsize(path) / 1e6:.1f} MB"
    name = arch + " with the small stem" * (source.stem == SMALL)
    done = f"wrote {path!r}: {encoder} of {name}, {source.crop_size} px, {size}"
    return f"{done}; loaded again by {reader}: equal features"


def check(path, form, tensors, source):
    """Loads a written file and compares it with what it was made of.

    Args:
        form: one of FORMATS. tensors: what the file must hold. source: the PretrainedEncoder that it comes from.

    Returns:
        What has loaded it, in words.

    Raises:
        ValueError: the file gives other tensors or other features.
        Exception: whatever the library raises.
    """
    written = form.read(path)
    if written.keys() != tensors.keys() or not all(torch.equal(written[name], tensors[name]) for name in tensors):
        raise ValueError("its tensors differ")
    network, reader = form.load(path, source.arch, source.stem)
    images = torch.randn(2, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(0))
    if not torch.allclose(network(images), source.network(images), 1e-4, 1e-5, equal_nan=True):
        raise ValueError("its features differ")
    return reader


def metadata(source, encoder):
    """What a user of an exported file may need, a dict of strings. `source` is a PretrainedEncoder."""
    checkpoint, options = source.checkpoint, source.checkpoint.get("options", {})
    designs = in_words(designs_of(options))
    known = "design" in options or any(f"enable_{name}" in options for name in DESIGNS)
    values = {
        "format": "pt",  # transformers asks for it
        "architecture": source.arch,
        "stem": source.stem,
        "encoder": encoder,
        "run": run_of(checkpoint),
        "epoch": checkpoint.get("epoch", "unknown"),
        "step": checkpoint.get("step", 0),
        "designs": designs or ("none" if known else "unknown"),
        "crop_size": source.crop_size,
        "mean": MEAN,
        "std": STD,
    }
    return {name: str(value) for name, value in values.items()}


if __name__ == "__main__":
    main()
