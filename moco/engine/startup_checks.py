"""Checks before any work is done: whatever does not fit ends the script with one clear line and exit code 2."""

import os
import re
import secrets

from moco.engine import speed_flags
from moco.engine.checkpoint_atomic_write import TEMPORARY
from moco.engine.checkpoint_resume import check_resume
from moco.engine.launch_plan import memory, plan_launch


def parse_and_check(parser, prepare, argv=None, least=1):
    """Parses a command line and runs every check; exits with one line and code 2 if a check fails.

    Args:
        parser: a Parser with the shared flags.
        prepare: called as `prepare(args, launch)` for the checks of the script itself; raises ValueError or OSError if
            one fails.
        least: number of images that each process needs in a batch.

    Returns:
        (args, launch, what `prepare` returned). `args.seed` is set where `launch.has_rank_0`; elsewhere it may be
        None. `args.total_batch` is the batch of all nodes.
    """
    args = parser.parse_args(argv)
    try:
        launch = plan_launch(args)
        speed_flags.settle(args)
        args.total_batch = args.batch_size * launch.nodes
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
        if launch.has_rank_0 and args.seed is None:
            args.seed = secrets.randbits(31)
    except (ValueError, OSError) as error:
        parser.error(error)
    return args, launch, prepared


def check_queue(keys, dim, total_batch):
    """Raises ValueError if a queue of --moco-k `keys` is smaller than a batch, or does not fit into the memory."""
    if keys < total_batch:
        raise ValueError(f"--moco-k {keys} is smaller than a batch of {total_batch}; give {total_batch} or more")
    if 4 * keys * dim > memory():
        raise ValueError(f"--moco-k {keys} keys of --moco-dim {dim} do not fit into the memory; give fewer")


def check_enough_images(folder, total_batch):
    """Raises ValueError if an ImageFolder has fewer images than one batch of `total_batch`."""
    if len(folder) < total_batch:
        raise ValueError(
            f"{folder.root!r} has {len(folder)} images, fewer than one batch of {total_batch}; "
            f"give a smaller --batch-size"
        )


def check_training(args, launch, folder, names, build):
    """The checks of both scripts before a training: enough images, and --resume. Sets `args.images`.

    Args:
        folder: the ImageFolder of the training images. names: the script's CheckpointNames.
        build: called without arguments; returns (model, optimizer) as the run will have them.

    Raises:
        ValueError: a check failed.
    """
    check_enough_images(folder, args.total_batch)
    args.images = len(folder)
    check_resume(args, launch, build, names.resumable())


def prepare_output(names, launch):
    """Creates the output folder and removes what an earlier run left half-written; only where rank 0 will run.

    Args:
        names: the script's CheckpointNames. launch: a Launch.

    Raises:
        ValueError: the folder can't be made or written to.
    """
    folder = names.folder
    if not launch.has_rank_0:
        return
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output-dir {folder!r} can't be made: {error.strerror}; give another") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"--output-dir {folder!r} is not writable; give another")
    for file in os.listdir(folder):
        if file.endswith(TEMPORARY) and re.fullmatch(names.pattern(), file.removesuffix(TEMPORARY)):
            os.remove(os.path.join(folder, file))
