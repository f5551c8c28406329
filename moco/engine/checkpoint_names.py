"""The names of a script's checkpoint files, and which of them exist, may be resumed, or are to be removed."""

import glob
import os
import re
from dataclasses import dataclass, replace

ENDING = ".pth.tar"
LAST = "last"  # the checkpoint within an epoch


@dataclass(frozen=True)
class CheckpointNames:
    """The checkpoint files of one script in one folder.

    Attributes:
        folder: --output-dir.
        prefix: beginning of the names of the files that a run can be resumed from.
        numbered: whether each epoch writes a file of its own (PREFIX_EPOCH), or all epochs the same file (PREFIX).
        best: name of the file for the best epoch, without its ending; None if there is none.
        keep: number of newest epochs whose files are kept; None keeps all.

    Raises:
        ValueError: `prefix` can't be part of a file name.
    """

    folder: str
    prefix: str
    numbered: bool
    best: str | None = None
    keep: int | None = None

    def __post_init__(self):
        fits = len(os.fsencode(self.prefix)) <= 211 and self.prefix.isprintable()
        if os.path.basename(self.prefix) != self.prefix or not fits:
            tag = self.prefix.removeprefix("checkpoint_")
            raise ValueError(
                f"--tag {tag!r} must have at most 200 bytes, no path separator and no control character, as part of a "
                "file name"
            )

    def of_epoch(self, epoch):
        """The path of the checkpoint after the 0-based `epoch`."""
        return self._path(f"{self.prefix}_{epoch:04d}" if self.numbered else self.prefix)

    def within_epoch(self):
        """The path of the checkpoint that --save-every and a stop signal write."""
        return self._path(f"{self.prefix}_{LAST}")

    def of_best(self):
        """The path of the best epoch's checkpoint; `best` must not be None."""
        return self._path(self.best)

    def lock_file(self):
        """The path of the hidden file that a run of this script and tag locks."""
        return os.path.join(self.folder, f".{self.prefix}.lock")

    def bad_images(self):
        """The path of the list of --on-bad-image skip: bad_images.txt for main_moco.py without --tag."""
        tag = self.prefix.removeprefix("checkpoint_") if self.numbered else "-lincls"
        return os.path.join(self.folder, f"bad_images{'_' * (self.numbered and tag != '')}{tag}.txt")

    def in_earlier_folders(self):
        """The paths of all files that a later run has moved into folders `earlier-ID`."""
        folders = glob.glob(os.path.join(glob.escape(self.folder), "earlier-*"))
        return [path for folder in sorted(folders) for path in replace(self, folder=folder).resumable()]

    def _path(self, name):
        return os.path.join(self.folder, name + ENDING)

    def pattern(self):
        """A regular expression for all names that this script writes. Its group is the epoch, LAST or None."""
        epoch = rf"_(\d{{4,}}|{LAST})" if self.numbered else rf"(?:_({LAST}))?"
        others = f"|{re.escape(self.best + ENDING)}" if self.best else ""
        return rf"{re.escape(self.prefix)}{epoch}{re.escape(ENDING)}{others}"

    def existing(self):
        """All existing files of this script.

        Returns:
            dict from path to the epoch in the name (an int), LAST, or None if the files are not numbered.
        """
        files = os.listdir(self.folder) if os.path.isdir(self.folder) else []
        return {
            os.path.join(self.folder, match[0]): int(match[1]) if match[1] not in (LAST, None) else match[1]
            for match in filter(None, map(re.compile(self.pattern()).fullmatch, sorted(files)))
        }

    def resumable(self):
        """The existing files that --resume auto chooses from: all except the best one; a dict as of `existing`."""
        best = self.best and self.of_best()
        return {path: name for path, name in self.existing().items() if path != best}

    def outdated(self, epoch):
        """The paths to remove, by `keep`, after the checkpoint of `epoch` is written."""
        if self.keep is None:
            return []
        return [path for path, name in self.resumable().items() if isinstance(name, int) and name <= epoch - self.keep]

    def files_to_come(self, epochs, fresh):
        """The number of files that the remaining `epochs` epochs will create, for the check of the disk space.

        A `fresh` run keeps the existing files, which belong to an earlier run.
        """
        existing = () if fresh else self.resumable().values()
        if not self.numbered:
            return max(0, 2 + (self.best is not None) - len(existing))
        files = min(self.keep or epochs, epochs) + 1  # 1 for the checkpoint within an epoch
        return max(0, files - (len(existing) if self.keep else LAST in existing))
