"""The index of an uncompressed tar archive: its folders and files as an image folder has them, and where they lie.

A tar counts as the folder that it would be unpacked to. If all that it holds is a folder of its own name, as in
train.tar made by `tar cf train.tar train`, then it counts as that folder.
"""

import os
import stat
from array import array
from bisect import bisect_left
from collections import defaultdict

from moco.data.file_extensions import folder_of, is_archive
from moco.data.folder_walk import Content, is_hidden
from moco.data.tar_headers import FOLDER, HARD_LINK, SYMBOLIC_LINK, ArchiveError, members

DEEPEST = 4  # archives within each other
HOPS = 40  # links that lead to links, as on Linux
LONGEST_PATH = 4096  # bytes, as on Linux


class TarTree:
    """The folders and files in one archive.

    Args:
        path: of the file. name: of the archive for the messages. listing: a Listing.
        start, size: the part of the file that the archive takes, in bytes; None for the whole file.
        depth: number of archives around this one. inside: its path in the archive around it, if there is one.

    Attributes:
        path, name: as above. state: (size, modification time in nanoseconds) of the file.
        offsets, sizes: arrays: where the data of each member begin in the file, and their size, in bytes; the offset
            is -1 for a link that is broken, hidden or replaced.

    Raises:
        ArchiveError: the archive can't be read in place, a link leads out of it, or a name leads out of its folder.
        OSError: the file can't be read.
    """

    def __init__(self, path, name, listing, start=0, size=None, depth=0, inside=""):
        self.path, self.name, self.depth = path, name, depth
        self.offsets, self.sizes = array("q"), array("q")
        self._folders = {"": None}  # path -> (names, each followed by a slash; array of their numbers), or None
        self._hidden, self._broken, links = set(), [], {}
        descriptor = open_regular(path)
        try:
            status = os.fstat(descriptor)
            self.state = status.st_size, status.st_mtime_ns
            end = status.st_size if size is None else start + size
            if hasattr(os, "posix_fadvise"):  # otherwise the system would read data between the headers
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            last, folder = None, ""
            for member in members(descriptor, start, end, name):
                listing.add()
                above, _, file = member.name.rpartition(b"/")
                odd = file in (b"", b".", b"..") or b"\0" in file or len(member.name) > LONGEST_PATH
                if member.kind == FOLDER or above != last or odd:
                    parts = self._parts(member.name)
                    file = os.fsencode(parts.pop()) if parts and member.kind != FOLDER else b""
                    last, folder = above, "/".join(parts)
                    self._add_folder(parts, folder)
                if not file:
                    last = None
                    continue
                link = member.kind in (HARD_LINK, SYMBOLIC_LINK)
                if link:
                    links[len(self.offsets)] = folder, os.fsdecode(file), member
                self._add_file(folder, file, -1 if link else member.offset, member.size)
        finally:
            os.close(descriptor)
        if links:
            self._follow(links)
        self._base = self._find_base(folder_of(os.path.basename(inside or path)))

    def _parts(self, name):
        """The parts of a member's path as a list of strings, without "." and empty ones."""
        parts = [part for part in os.fsdecode(name).split("/") if part not in ("", ".")]
        long = f"more than {LONGEST_PATH} bytes" if len(name) > LONGEST_PATH else None
        what = "'..'" if ".." in parts else "a zero byte" if b"\0" in name else long
        if what:
            raise ArchiveError(
                f"the member {self.name + '!' + os.fsdecode(name[:200])!r} has {what} in its path; make the archive "
                "again from within the folder of the images"
            )
        return parts

    def _add_folder(self, parts, folder):
        if folder not in self._folders:
            self._folders[folder] = None
            if is_hidden_path(folder):
                first = next(i for i, part in enumerate(parts) if is_hidden(part))
                self._hidden.add("/".join(parts[: first + 1]))

    def _add_file(self, folder, file, offset, size):
        if self._folders[folder] is None:
            self._folders[folder] = bytearray(), array("q")
        names, numbers = self._folders[folder]
        names += file + b"/"
        numbers.append(len(self.offsets))
        self.offsets.append(offset)
        self.sizes.append(size)

    def _members(self, folder):
        """Yields (name, number) of each file and link of a folder, also of hidden and replaced ones, in order."""
        if self._folders.get(folder) is not None:
            names, numbers = self._folders[folder]
            yield from zip(os.fsdecode(bytes(names[:-1])).split("/"), numbers, strict=True)

    def _follow(self, links):
        """Gives each link the data of its target; `links` is a dict from its number to (folder, file, Member).

        As after unpacking, a symbolic link means the last member of that name, a hard link the last one before it. A
        link whose target is missing, or that leads back to itself, counts as broken.
        """
        numbers, folders = {}, sorted(self._folders)  # numbers: folder -> name -> its members' numbers, in order

        def all_of(folder, file):
            if folder not in numbers:
                numbers[folder] = defaultdict(list)
                for name, number in self._members(folder):
                    numbers[folder][name].append(number)
            return numbers[folder].get(file, [])

        for number, (folder, file, _) in links.items():
            path = f"{folder}/{file}".lstrip("/")
            if is_hidden_path(path) or all_of(folder, file)[-1] != number:
                continue
            end, hops = number, 0
            while end in links and hops < HOPS:
                link, hops = links[end][2], hops + 1
                place = self._target(folder, link)
                if place is None:
                    raise self._odd_link(path, f"{os.fsdecode(link.link)!r}, which is not in the archive")
                found = all_of(*place)
                if link.kind == SYMBOLIC_LINK:
                    folder, count = place[0], len(found)
                else:  # if it means a symbolic link, that leads on from the folder of the hard link
                    count = bisect_left(found, end)
                end = found[count - 1] if count else None
            target = "/".join(filter(None, place))
            first = bisect_left(folders, target)
            if end is not None and end not in links:
                if is_archive(target) or is_archive(file):
                    raise self._odd_link(path, f"the archive {target!r}")
                self.offsets[number], self.sizes[number] = self.offsets[end], self.sizes[end]
            elif end is None and f"{folders[min(first, len(folders) - 1)]}/".startswith(f"{target}/" * bool(target)):
                raise self._odd_link(path, f"the folder {target!r}")
            else:
                self._broken.append(path)

    def _target(self, folder, link):
        """The (folder, file) that a link in `folder`, a Member, leads to; None if it leads out of the archive."""
        words = os.fsdecode(link.link).split("/")
        parts = [] if link.kind == HARD_LINK else folder.split("/") * bool(folder)
        if (link.kind == SYMBOLIC_LINK and words[0] == "") or b"\0" in link.link:
            return None
        for word in words:
            if word == ".." and not parts:
                return None
            if word == "..":
                parts.pop()
            elif word not in ("", "."):
                parts.append(word)
        return "/".join(parts[:-1]), "".join(parts[-1:])

    def _odd_link(self, path, what):
        return ArchiveError(
            f"the link {self.name + '!' + path!r} leads to {what}; make the archive again "
            "with tar --dereference, or unpack it"
        )

    def _find_base(self, own):
        """The folder that the archive stands for: its only one, if that is called `own`; otherwise "", the whole."""
        visible = {folder.partition("/")[0] for folder in self._folders} - {""}
        alone = {name for name in visible if not is_hidden(name)} == {own}
        return own if alone and not self._content("").files else ""

    def below(self):
        """The Contents of all folders.

        Returns:
            A Content of the top, whose `hidden` and `broken` are those of the whole archive; and a dict from the name
            of each folder at the top to an iterable of (path, Content) for it and all folders below it.
        """
        groups, hidden, base = defaultdict(list), len(self._hidden), f"{self._base}/" if self._base else ""
        skip = len(base)
        for folder, held in self._folders.items():
            if is_hidden_path(folder):
                continue
            if folder != self._base and folder.startswith(base):
                groups[folder[skip:].partition("/")[0]].append(folder)
            if held and (held[0].startswith(b".") or b"/." in held[0]):
                hidden += sum(map(is_hidden, dict(self._members(folder))))
        top = self._content(self._base)
        top = top._replace(folders=dict.fromkeys(groups, False), broken=self._broken, hidden=hidden)
        return top, {
            name: ((folder[skip:], self._content(folder)) for folder in folders) for name, folders in groups.items()
        }

    def _content(self, folder):
        members = dict(self._members(folder))  # of equal names, the last one counts
        files = {file: number for file, number in members.items() if self.offsets[number] >= 0 and not is_hidden(file)}
        return Content({}, files, [], 0, self, folder)

    def inner(self, number, path, listing):
        """The TarTree of the member with that number, an archive; `path` is its own in this archive."""
        name = f"{self.name}!{path}"
        if self.depth + 1 >= DEEPEST:
            raise ArchiveError(
                f"{name!r} lies in {DEEPEST} archives within each other, which is too deep; unpack the outer ones"
            )
        return TarTree(self.path, name, listing, self.offsets[number], self.sizes[number], self.depth + 1, path)


def is_hidden_path(path):
    """Whether a part of a path in an archive is hidden."""
    return any(map(is_hidden, filter(None, path.split("/"))))


def open_regular(path):
    """Opens a file for reading; returns its descriptor; raises OSError, also if it is a pipe or a device."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise ArchiveError(f"{path!r} is no regular file; give a folder of images or an uncompressed tar")
