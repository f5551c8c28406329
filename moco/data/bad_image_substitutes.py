"""--on-bad-image skip: uses another image instead of one that can't be decoded, and lists the bad images in a file."""

import os

from moco.counter_based_rng import SUBSTITUTES, generator
from moco.data.image_reading import BadImageError
from moco.pipe_safe_print import say

FEW, SHARE = 10, 0.001  # a run tolerates 10 bad images, or 0.1 % of all images if that is more


class TooManyBadImages(ValueError):
    """So many images can't be decoded that the data set itself must be broken."""


class Substitutes:
    """Finds a substitute for an image that can't be decoded, as a function of (seed, epoch, index).

    The bad images are listed in a file, one path per line. All processes and their data workers append to it. A
    resumed run reads it again and continues to count.

    Args:
        folder: an ImageFolder. seed: the run's seed. path: where the list is kept.

    Attributes:
        limit: number of bad images that a run tolerates.
    """

    def __init__(self, folder, seed, path):
        self.folder, self.seed, self.path = folder, seed, path
        self.noted = set()  # bad images that this process found, in case the list is not writable
        self.limit = min(max(FEW, int(SHARE * len(folder))), len(folder) - 1)  # at least one good image is needed

    def decode(self, load, epoch, index):
        """Decodes image `index`, or a substitute for it.

        Args:
            load: decodes an image by its index and raises BadImageError if it can't.

        Returns:
            (what `load` returned, the index of the image that it decoded).

        Raises:
            TooManyBadImages: more than `limit` images can't be decoded.
            ImageReadError: the system and not the image is at fault.
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
        """The set of absolute paths of this folder's images that are on the list."""
        try:
            with open(self.path, "rb") as file:
                paths = {os.fsdecode(line) for line in file.read().splitlines()}
        except OSError:  # there is no list yet, or it can't be read
            return set()
        root = os.path.abspath(self.folder.root)
        return {path for path in paths if path.startswith((os.path.join(root, ""), f"{root}!"))}

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
            count = f"{len(listed)} bad so far, limit {self.limit}"
            say(f"warning: {error}; another image is used instead ({count})", True)
        if len(listed) > self.limit:
            raise TooManyBadImages(
                f"{len(listed)} images can't be decoded, more than {self.limit}; they are listed in {self.path!r}; "
                "repair or remove them, and delete the list"
            )


class NextGoodImage:
    """The next image of an ImageFolder that can be decoded, for one that can't: the same in all of its views.

    It has the interface of Substitutes, but keeps no list: each process warns once of each bad image.
    """

    def __init__(self, folder):
        self.folder, self.noted = folder, set()

    def decode(self, load, epoch, index):
        """As `Substitutes.decode`; raises the BadImageError of image `index` if no image can be decoded."""
        first = None
        for step in range(n := len(self.folder)):
            shown = (index + step) % n
            try:
                return load(shown), shown
            except BadImageError as error:
                first = first or error
                if shown not in self.noted:
                    self.noted.add(shown)
                    say(f"warning: {error}; the next image is used instead", True)
        raise first
