"""--on-bad-image skip: another image in the place of one that can't be decoded, and a list of those that can't."""

import os

from moco.console import say
from moco.image_folder import BadImageError
from moco.randomness import SUBSTITUTES, generator

FEW, SHARE = 10, 0.001  # as many bad images a run bears, or this share of all, whichever is more


class TooManyBadImages(ValueError):
    """The data set, not a file of it, is broken."""


class Substitutes:
    """Finds a substitute for an image that can't be decoded, as a function of (seed, epoch, index).

    The images that can't are listed in a file, a path a line. It outlives the run, so that a resumed one goes on
    counting, and all processes and their data workers write it.

    Args:
        folder: an ImageFolder. seed: of the run. path: of the list.
    """

    def __init__(self, folder, seed, path):
        self.folder, self.seed, self.path = folder, seed, path
        self.noted = set()  # by this process, should the list not be writable
        self.limit = min(max(FEW, int(SHARE * len(folder))), len(folder) - 1)  # one must be there to take their place

    def decode(self, load, epoch, index):
        """(what `load(index)` returns, `index`), or those of the substitute.

        Args:
            load: decodes an image by its index; raises BadImageError where it can't.

        Raises:
            TooManyBadImages: more can't be decoded than the limit.
        """
        choices, shown = None, index
        while True:
            try:
                return load(shown), shown
            except BadImageError as error:
                self._note(shown, error)
            choices = choices or generator(SUBSTITUTES, self.seed, epoch, index)
            shown = int(choices.integers(len(self.folder)))

    def listed(self):
        """The images of the folder that could not be decoded so far: a set of absolute paths."""
        try:
            with open(self.path, "rb") as file:
                paths = {os.fsdecode(line) for line in file.read().splitlines()}
        except OSError:  # there is none yet, or none that can be kept
            return set()
        root = os.path.join(os.path.abspath(self.folder.root), "")
        return {path for path in paths if path.startswith(root)}

    def _note(self, index, error):
        path = os.path.abspath(self.folder.path(index))
        listed = self.listed() | self.noted
        if path not in listed:
            self.noted.add(path)
            listed.add(path)
            try:
                os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
                with open(self.path, "ab") as file:
                    file.write(os.fsencode(path) + b"\n")
            except OSError as trouble:
                say(f"warning: can't write {self.path!r}: {trouble.strerror}", True)
            say(f"warning: {error}; another takes its place ({len(listed)} so far, {self.limit} at most)", True)
        if len(listed) > self.limit:
            raise TooManyBadImages(
                f"{len(listed)} images can't be decoded, more than {self.limit}; they are listed in {self.path!r}: "
                "mend or remove them, and delete the list"
            )
