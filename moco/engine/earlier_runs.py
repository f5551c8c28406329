"""Keeps runs apart: before a run writes, it moves another run's checkpoints out of its way. Nothing is overwritten.

Each run has an id, which its checkpoints and log lines contain. A run owns the files of its script and tag in
--output-dir that contain its id and are not newer than the point from which it starts. All others are moved into
`earlier-ID/` in the same folder, where ID is the run that wrote them.
"""

import os
import secrets
from itertools import count

from moco.engine.checkpoint_file_read import check_numbers, read
from moco.engine.checkpoint_format import UNKNOWN, CheckpointError, progress_of, run_of

BAD_IMAGES = "bad_images.txt"  # the list of --on-bad-image skip in --output-dir


def new_id():
    """A random id for a run: 8 hexadecimal digits."""
    return secrets.token_hex(4)


def files_of_others(names, run, place):
    """The existing files of a script that a run must not touch.

    Args:
        names: the script's CheckpointNames. run: the id of the run that starts.
        place: (finished epochs, finished steps of the next epoch) of the checkpoint that it resumes; None for a fresh
            run, to which no existing file belongs.

    Returns:
        dict from the id of a run to its paths, the least advanced first. An unreadable file belongs to UNKNOWN; if
        the run resumes, such a file stays where it is, as one of the run's own that was damaged.
    """
    found = {}
    for path in names.existing():
        try:
            checkpoint = read(path, check=False)
            check_numbers(checkpoint, path)
            owner, progress = run_of(checkpoint), progress_of(checkpoint)
        except CheckpointError:
            if place is not None:
                continue
            owner, progress = UNKNOWN, (-1, 0)
        if place is None or owner != run or progress > place:
            found.setdefault(owner, []).append((progress, path))
    return {owner: [path for _, path in sorted(files)] for owner, files in found.items()}


def move_files_of_others(names, run, place, dry_run=False):
    """Moves the files of `files_of_others` into `earlier-ID/`, and prints a line for each earlier run.

    The list of bad images is moved along if the run is fresh. The newest file is moved last. So if the program is
    killed meanwhile, --resume auto still finds it.

    Args:
        names, run, place: as for `files_of_others`. dry_run: whether only to print what would be moved.

    Returns:
        dict from the old to the new path of each moved file.

    Raises:
        ValueError: a file can't be moved.
    """
    moved = {}
    for owner, paths in files_of_others(names, run, place).items():
        bad_images = os.path.join(names.folder, BAD_IMAGES)
        more = [bad_images] * (place is None and os.path.exists(bad_images) and bad_images not in moved)
        folder = _free_folder(names.folder, owner, [*more, *paths])
        targets = {path: os.path.join(folder, os.path.basename(path)) for path in [*more, *paths]}
        if not dry_run:
            _move(targets)
            moved |= targets
        what = f"{len(paths)} checkpoint{'s' * (len(paths) > 1)} of the earlier run {owner}"
        if owner == run:
            what = f"{len(paths)} newer checkpoint{'s' * (len(paths) > 1)} of this run"
        verb = f"would be moved to {folder!r}" if dry_run else f"moved to {folder!r}"
        file = "auto" if dry_run else targets[paths[-1]]
        print(f"note: {what} {verb}; to continue from there instead, give --resume {file}", flush=True)
    return moved


def _move(targets):
    for path, target in targets.items():
        try:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.rename(path, target)
        except OSError as error:
            raise ValueError(
                f"can't move {path!r} of an earlier run to {target!r}: {error.strerror}; give another --output-dir"
            ) from error


def _free_folder(folder, owner, paths):
    """The first of earlier-ID, earlier-ID-2, ... that holds no file with the name of one of `paths`."""
    for n in count(1):
        target = os.path.join(folder, f"earlier-{owner}" + f"-{n}" * (n > 1))
        if not any(os.path.lexists(os.path.join(target, os.path.basename(path))) for path in paths):
            return target
