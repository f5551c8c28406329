"""What a list of images passes over, counted by reason, and in words."""

import os
from collections import Counter
from typing import NamedTuple

from moco.data.file_extensions import EXTENSIONS

HIDDEN, OUTSIDE, BROKEN, PACKED = "hidden", "outside", "broken", "packed"  # reasons
EMPTY, EMPTY_ARCHIVES = "empty", "empty archives"
# In the order of PassedOver. Any other reason is an extension.
REASONS = (OUTSIDE, HIDDEN, BROKEN, PACKED, EMPTY, EMPTY_ARCHIVES)
NAMED = 3  # number of extensions that are named


class PassedOver(NamedTuple):
    """How many files and folders are not listed, by reason.

    Attributes:
        other_extensions: files in class folders with other extensions than those of images.
        commonest: list of the commonest of these extensions, in lower case with their dot; "none" stands for none.
        outside: files directly in the root, outside the class folders.
        hidden: hidden files and folders; a folder counts as one, whatever it holds.
        broken_links: symbolic links whose target is missing.
        archives: archives in places that hold images or folders, too.
        empty: folders in the root that hold no image.
        empty_archives: archives in the root that hold no image, where archives are the classes.
    """

    other_extensions: int
    commonest: list[str]
    outside: int
    hidden: int
    broken_links: int
    archives: int
    empty: int
    empty_archives: int

    @classmethod
    def of(cls, counts):
        """Makes it of a dict from reason to number; a reason is one of REASONS or an `extension`."""
        others = Counter({reason: n for reason, n in counts.items() if reason not in REASONS})
        commonest = [name or "none" for name, _ in others.most_common(NAMED)]
        return cls(others.total(), commonest, *(counts.get(reason, 0) for reason in REASONS))

    def clause(self, where=""):
        """The end of a sentence, such as "; passed over: 3 files with other extensions (.txt, .xml), 2 hidden".

        It is empty if nothing was passed over. `where` is put after "passed over".
        """
        names = ", ".join(name if name.isprintable() else ascii(name) for name in self.commonest)
        other = "another extension" if self.other_extensions == 1 else "other extensions"
        reasons = (
            (self.other_extensions, f"{plural(self.other_extensions, 'file')} with {other} ({names})"),
            (self.outside, f"{plural(self.outside, 'file')} outside the class folders"),
            (self.hidden, f"{self.hidden} hidden"),
            (self.broken_links, plural(self.broken_links, "broken link")),
            (self.archives, f"{plural(self.archives, 'archive')} beside unpacked images"),
            (self.empty, f"{plural(self.empty, 'folder')} without images"),
            (self.empty_archives, f"{plural(self.empty_archives, 'archive')} without images"),
        )
        words = ", ".join(text for n, text in reasons if n)
        return words and f"; passed over{where}: {words}"


def extension(file):
    """The extension of a file name in lower case, with its dot; "" if it has none."""
    return os.path.splitext(file)[1].lower()


def plural(n, noun, ending="s"):
    """The number and the noun, such as "1 file" and "2 files"."""
    return f"{n} {noun}{ending if n != 1 else ''}"


def no_images(folder, not_listed, way_out, whole=()):
    """The FileNotFoundError about a folder without images.

    `not_listed` and `whole` are dicts for `PassedOver.of`: of the folder, and of the whole archive that it lies in.
    """
    clauses = PassedOver.of(not_listed).clause() + PassedOver.of(dict(whole)).clause(" in the whole archive")
    return FileNotFoundError(f"no images in {folder!r}; {way_out} ({', '.join(EXTENSIONS)}){clauses}")
