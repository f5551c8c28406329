"""Keeps runs apart: before a run writes, it moves the files of other runs out of its way. Nothing is overwritten.

Each run has an id, which its checkpoints and log lines contain. If a run resumes a file in --output-dir, it owns the
files of its script and tag there that contain its id and are not newer than that file. A run that resumes no file in
--output-dir owns no file there. All other files are moved into `earlier-ID/` in the same folder, where ID is the run
that wrote them.
"""

import contextlib
import os
import secrets
from itertools import count

from moco.engine.checkpoint_file_read import check_intact, check_numbers, read
from moco.engine.checkpoint_format import UNKNOWN, CheckpointError, progress_of, run_of
from moco.pipe_safe_print import say

UNREADABLE = ""  # stands for the run that wrote a file which can't be read


def new_id():
    """A random id for a run: 8 hexadecimal digits."""
    return secrets.token_hex(4)


def files_of_others(names, run, place):
    """The existing files of a script that a run must not touch.

    Args:
        names: the script's CheckpointNames. run: the id of the run that starts.
        place: (finished epochs, finished steps of the next epoch) of the file in the folder that the run resumes; None
            if it resumes none of them.

    Returns:
        dict from the id of a run, or UNREADABLE, to its paths, the least advanced first.
    """
    found = {}
    for path in names.existing():
        try:
            checkpoint = read(path, check=False)
            check_numbers(checkpoint, path)
            owner, progress = run_of(checkpoint), progress_of(checkpoint)
        except CheckpointError:
            owner, progress = UNREADABLE, (0, 0)
        if place is None or owner != run or progress > place:
            found.setdefault(owner, []).append((progress, path))
    return {owner: [path for _, path in sorted(files)] for owner, files in found.items()}


def move_files_of_others(names, run, place, dry_run=False):
    """Moves the files of `files_of_others` into `earlier-ID/`, and prints a line for each earlier run.

    The list of bad images is moved along, unless the run owns files in the folder. The newest checkpoint is moved
    last. So if the program is killed meanwhile, --resume auto still finds it.

    Args:
        names, run, place: as for `files_of_others`. dry_run: whether only to print what would be moved.

    Returns:
        dict from the old to the new path of each moved file.

    Raises:
        ValueError: a file can't be moved.
    """
    moved, groups, listed = {}, files_of_others(names, run, place), names.bad_images()
    if place is None and os.path.exists(listed):
        groups.setdefault(next(iter(groups), UNKNOWN), []).insert(0, listed)
    for owner, paths in groups.items():
        folder = _free_folder(names.folder, owner or UNKNOWN, paths)
        targets = {path: os.path.join(folder, os.path.basename(path)) for path in paths}
        newest = None if owner == UNREADABLE else _newest_intact([path for path in paths if path != listed])
        if not dry_run:
            _move(targets)
            moved |= targets
        n = len(paths) - (listed in paths)
        line = f"{_in_words(n, owner, run, place)} {'would be' if dry_run else 'were' if n > 1 else 'was'} moved to "
        way_back = f"; to continue from there instead, give --resume {newest if dry_run else targets.get(newest)}"
        say(f"note: {line}{folder!r}{way_back if newest else ''}")
    return moved


def _in_words(n, owner, run, place):
    if n == 0:
        return "the list of bad images of an earlier run"
    checkpoints = f"checkpoint{'s' * (n > 1)}"
    if owner == UNREADABLE:
        return f"{n} unreadable {checkpoints}"
    if owner == run:
        return f"{n} {'other' if place is None else 'newer'} {checkpoints} of this run"
    return f"{n} {checkpoints} of the earlier run {owner}"


def _newest_intact(paths):
    """The last of some checkpoints, listed from the least advanced, that is not damaged; None if there is none."""
    for path in reversed(paths):
        with contextlib.suppress(CheckpointError):
            check_intact(path)
            return path
    return None


def _move(targets):
    for path, target in targets.items():
        try:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if os.path.islink(path):  # a relative link would point to nothing in the other folder
                os.symlink(os.path.realpath(path), target)
                os.remove(path)
            else:
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
