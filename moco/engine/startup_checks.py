"""Checks before any work is done: whatever does not fit ends the script with one clear line and exit code 2."""

import argparse
import os
import re
import secrets
from itertools import chain

from moco.asymmetry.asym_bn import check_group
from moco.batchnorm import check_splits
from moco.data.image_places import image_places
from moco.engine import options_without_effect, speed_flags
from moco.engine.architectures import check_stem
from moco.engine.checkpoint_atomic_write import TEMPORARY
from moco.engine.checkpoint_resume import check_resume
from moco.engine.command_line import output_folder
from moco.engine.design_flags import designs_of
from moco.engine.earlier_runs import move_files_of_others, new_id
from moco.engine.launch_plan import memory, plan_launch
from moco.engine.output_lock import holder_of, lock_output, unlock_output
from moco.engine.tensorboard_log import event_classes
from moco.pipe_safe_print import say


def parse_and_check(parser, prepare, argv=None, least=1):
    """Parses a command line and runs every check; exits with one line and code 2 if a check fails.

    Args:
        parser: a Parser with the shared flags.
        prepare: called as `prepare(args, launch)` for the checks of the script itself; raises ValueError or OSError if
            one fails.
        least: number of images that each process needs in a batch.

    Returns:
        (args, launch, what `prepare` returned). `args.seed` and `args.run`, the id of the run, are set where
        `launch.has_rank_0`; on other nodes they are not valid yet. `args.total_batch` is the batch of all nodes.
    """
    args = parser.parse_args(argv)
    given = {name for name, value in vars(args).items() if value != parser.get_default(name)}
    args.run, args.notes = new_id(), []
    try:
        if args.dry_run and getattr(args, "evaluate", False):
            raise ValueError(
                "--dry-run has nothing to show for --evaluate, which writes no file; give only one of them"
            )
        if args.resume == "":
            raise ValueError("--resume is empty; give a file or auto, or leave the flag out")
        check_stem(args.arch, args.stem)
        launch = plan_launch(args)
        speed_flags.settle(args)
        if args.tensorboard and launch.has_rank_0:
            event_classes()  # raises ValueError
        args.total_batch = args.batch_size * launch.nodes
        if args.batch_size < least and launch.local == 1:
            raise ValueError(f"--batch-size {args.batch_size} is too small; give {least} or more")
        if args.batch_size % launch.local or args.batch_size < least * launch.local:
            raise ValueError(
                f"--batch-size {args.batch_size} does not give each of the {launch.local} processes of this node the "
                f"same number of images, {least} at least; give "
                f"{max(args.batch_size // launch.local, least) * launch.local}"
            )
        if args.start_epoch is not None and args.start_epoch >= args.epochs:
            raise ValueError(
                f"--start-epoch {args.start_epoch} must be smaller than --epochs {args.epochs}, since it counts from 0"
            )
        prepared = prepare(args, launch)
        if launch.has_rank_0:
            args.seed = secrets.randbits(31) if args.seed is None else args.seed
            for note in args.notes + options_without_effect.notes(args, given, launch.mode == "alone"):
                say(note)
    except (ValueError, OSError) as error:
        unlock_output()
        named = isinstance(error, OSError) and error.filename is not None
        parser.error(f"can't read {error.filename!r}: {error.strerror}" if named else error)
    return args, launch, prepared


def check_model(args, launch):
    """Raises ValueError if the queue or the batch-norm groups do not fit the batch, the processes or the memory."""
    keys, dim = args.moco_k, args.moco_dim
    if keys < args.total_batch:
        raise ValueError(
            f"--moco-k {keys} is smaller than a batch of {args.total_batch}; give {args.total_batch} or more"
        )
    if 4 * keys * dim > memory():
        raise ValueError(f"--moco-k {keys} keys of --moco-dim {dim} do not fit into the memory; give fewer")
    check_splits(args.bn_splits, args.batch_size // launch.local)
    if "asym_bn" in designs_of(args):
        check_group(args.asym_bn_group, launch.world, args.bn_splits)


def cap_batch(args, launch, images):
    """Reduces the batch to the number of training images, if it is larger; for a script that fills up its last batch.

    Adds a line about it to `args.notes`.
    """
    if args.total_batch > images >= launch.world:
        given, args.batch_size = args.batch_size, images // launch.world * launch.local
        args.total_batch = args.batch_size * launch.nodes
        args.notes.append(
            f"note: --batch-size {given} is more than the {images} training images; it becomes {args.batch_size}, "
            f"and the learning rate {args.lr:g} x {args.batch_size} / 256 = {args.lr * args.batch_size / 256:g}"
        )


def check_enough_images(folder, total_batch):
    """Raises ValueError if an ImageFolder has fewer images than one batch of `total_batch`."""
    if len(folder) < total_batch:
        raise ValueError(
            f"{folder.root!r} has {len(folder)} images, fewer than one batch of {total_batch}; "
            f"give a smaller --batch-size"
        )


def check_training(args, launch, folder, names, build):
    """The checks of both scripts before a training: enough images, and --resume. Sets `args.images`.

    If there is a lock file, it also locks the output folder, which may take 10 s.

    Args:
        folder: the ImageFolder of the training images. names: the script's CheckpointNames.
        build: called without arguments; returns (model, optimizer) as the run will have them.

    Returns:
        The place from which a resumed run continues, or None; as `check_resume`.

    Raises:
        ValueError: a check failed.
    """
    check_enough_images(folder, args.total_batch)
    args.images = len(folder)
    if launch.has_rank_0 and not args.dry_run:
        lock_output(names, args.run, create=False)  # so that --resume auto sees the last file of a run that just ends
    return check_resume(args, launch, build, names)


def prepare_output(args, names, launch, place):
    """Creates and locks the output folder, and tidies it up: the last check, only where rank 0 will run.

    Files that an earlier run left half-written are removed, and its checkpoints are moved out of the way. With
    --dry-run, nothing is changed. `args.resume`, `args.pretrained` and `args.init_from` follow their files.

    Args:
        names: the script's CheckpointNames. launch: a Launch. place: as `check_training` returns it.

    Raises:
        ValueError: the folder can't be made or written to, another run uses it, or a file can't be moved.
    """
    folder = names.folder
    if not launch.has_rank_0:
        return
    for images in chain.from_iterable(map(image_places, filter(None, (args.data, getattr(args, "knn_data", None))))):
        images = os.path.realpath(images)
        if os.path.commonpath([images, os.path.realpath(folder)]) == images:
            raise ValueError(f"--output-dir {folder!r} lies in {images!r}, among the images; give a folder elsewhere")
    try:
        output_folder(folder)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"--output-dir {error}") from error
    own_files = set(map(os.path.realpath, names.existing()))
    own_place = place if args.resume and os.path.realpath(args.resume) in own_files else None
    if args.dry_run:
        if holder := holder_of(names):
            say(f"note: {holder} writes into {folder!r} at the moment; without --dry-run, this run would be refused")
        move_files_of_others(names, args.run, own_place, dry_run=True)
        return
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output-dir {folder!r} can't be made: {error.strerror}; give another") from error
    lock_output(names, args.run)
    for file in os.listdir(folder):
        if file.endswith(TEMPORARY) and re.fullmatch(names.pattern(), file.removesuffix(TEMPORARY)):
            os.remove(os.path.join(folder, file))
    moved = move_files_of_others(names, args.run, own_place)
    new_paths = {os.path.realpath(old): new for old, new in moved.items()}
    for name in {"resume", "pretrained", "init_from"} & vars(args).keys():
        if path := getattr(args, name):
            setattr(args, name, new_paths.get(os.path.realpath(path), path))
