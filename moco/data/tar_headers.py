"""Reads the headers of an uncompressed tar archive: the members' names and where their data lie. No data are read.

It knows the formats of POSIX (ustar and pax) and of GNU tar. Python's tarfile is not used, since it takes a truncated
archive for a complete one, and trusts sizes that a damaged or hostile header declares.
"""

import os
import struct
from typing import NamedTuple

BLOCK = 512
AHEAD = 4096  # bytes that one request reads; small members need no request of their own then
LONGEST = 2**20  # bytes of an extended header, which holds long names
AFTER_END = 2**16  # bytes after the end mark that are searched for a further archive
ZERO = bytes(BLOCK)
FIELDS = struct.Struct("100s24x12s12x8s1s100s8s80x155s12x")  # name, size, checksum, type, link, magic, prefix
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf": "7z",
    b"Rar!": "rar",
}
FILE, FOLDER, HARD_LINK, SYMBOLIC_LINK = "file", "folder", "hard link", "symbolic link"
KINDS = {b"1": HARD_LINK, b"2": SYMBOLIC_LINK, b"5": FOLDER, b"D": FOLDER}  # by type; all others are files
WITHOUT_DATA = b"123456"  # types: links, devices, folders and pipes, whatever their size field says
EXTENDED = b"xXgLK"  # types: headers that describe the member after them


class ArchiveError(OSError):
    """An archive whose images can't be read in place; the message names it, the rule and the way out."""


class Member(NamedTuple):
    """A member of an archive.

    Attributes:
        name: in bytes, as the archive has it. kind: FILE, FOLDER, HARD_LINK or SYMBOLIC_LINK.
        offset: where its data begin in the file, in bytes. size: of its data, in bytes.
        link: the target of a link, in bytes.
    """

    name: bytes
    kind: str
    offset: int
    size: int
    link: bytes


def members(descriptor, start, end, archive):
    """Yields the Members of an archive, in its order.

    Args:
        descriptor: of an open file. start, end: the part of it that the archive takes, in bytes.
        archive: its name for the messages.

    Raises:
        ArchiveError: it is compressed, truncated, damaged, or no tar; or a member is sparse.
    """
    ahead, at, position = os.pread(descriptor, min(AHEAD, end - start), start), start, start
    if len(ahead) < BLOCK or not (ahead.startswith(ZERO) or is_header(ahead[:BLOCK])):
        raise no_tar(archive, ahead)
    common, own = {}, {}  # what extended headers say of all further members, and of the next one
    while True:
        if position + BLOCK > end:
            raise truncated(archive, "it has no end mark")
        if not at <= position <= at + len(ahead) - BLOCK:
            ahead, at = os.pread(descriptor, min(AHEAD, end - position), position), position
        header = ahead[position - at : position - at + BLOCK]
        if header == ZERO:
            check_end(descriptor, position, end, archive)
            return
        if not is_header(header):
            raise damaged(archive, position, start)
        name, size, _, kind, link, magic, prefix = FIELDS.unpack(header)
        name = cut(name)
        if magic == b"ustar\x0000" and prefix[0]:
            name = cut(prefix) + b"/" + name
        position += BLOCK
        data = position
        try:
            size = integer(size)
            if kind not in WITHOUT_DATA:
                if kind not in EXTENDED:
                    size = int({**common, **own}.get(b"size", size))
                position += -(-size // BLOCK) * BLOCK
                if data + size > end:
                    raise truncated(archive, f"{os.fsdecode(name)!r} lacks its last {data + size - end:,} bytes")
            if kind in EXTENDED:
                if size > LONGEST:
                    raise ValueError
                (common if kind == b"g" else own).update(extended(os.pread(descriptor, size, data), kind))
                continue
        except ValueError:
            raise damaged(archive, data - BLOCK, start) from None
        more, own = {**common, **own}, {}
        name, link = more.get(b"path", name), more.get(b"linkpath", cut(link))
        if kind == b"S" or b"sparse" in more:
            raise ArchiveError(
                f"the member {archive + '!' + os.fsdecode(name)!r} is stored as a sparse file, which can't be read in "
                "place; make the archive again without --sparse"
            )
        if kind == b"M":
            raise ArchiveError(f"{archive!r} is a later volume of an archive of several; join the volumes")
        if kind == b"V":  # the name of the archive
            continue
        old_folder = kind in (b"0", b"\0") and name.endswith(b"/")
        yield Member(
            name, FOLDER if old_folder else KINDS.get(kind, FILE), data, 0 if kind in WITHOUT_DATA else size, link
        )


def is_header(block):
    """Whether a block of 512 bytes is the header of a member: whether its checksum is right."""
    try:
        declared = integer(block[148:156])
    except ValueError:
        return False
    total = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    if total == declared:
        return True
    return total - 256 * sum(byte > 127 for byte in block[:148] + block[156:]) == declared  # old, signed checksums


def integer(field):
    """The number in a field of a header: octal digits, or binary if its first byte says so; raises ValueError."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = cut(field).strip()
    if digits.strip(b"01234567"):
        raise ValueError
    return int(digits or b"0", 8)


def cut(field):
    """The bytes of a field up to the first zero byte."""
    return field.partition(b"\0")[0]


def extended(data, kind):
    """What an extended header says of a member: a dict of bytes with `path`, `linkpath`, `size` or `sparse`, if any.

    Raises:
        ValueError: the header is damaged.
    """
    if kind in b"LK":  # GNU tar's long names
        return {b"path" if kind == b"L" else b"linkpath": cut(data)}
    records, start = {}, 0
    while start < len(data) and data[start]:
        length, space, _ = data[start : start + 20].partition(b" ")
        if not length.isdigit():  # int() would take "-9", "+9" and "1_0", too
            raise ValueError
        end = start + int(length)
        key, equals, value = data[start + len(length) + 1 : end].partition(b"=")
        if not (space and equals and value.endswith(b"\n") and end <= len(data)):
            raise ValueError
        if key in (b"path", b"linkpath"):
            records[key] = value[:-1]
        elif key == b"size":
            records[key] = value[:-1][:20]
            if not records[key].isdigit():
                raise ValueError
        elif key.startswith(b"GNU.sparse."):
            records[b"sparse"] = value
        start = end
    return records


def check_end(descriptor, position, end, archive):
    """Raises ArchiveError if another archive follows the end mark at `position`, as `cat` would join them."""
    after = os.pread(descriptor, min(AFTER_END, end - position), position)
    if any(is_header(after[i : i + BLOCK]) for i in range(BLOCK, len(after) - BLOCK + 1, BLOCK)):
        raise ArchiveError(
            f"{archive!r} goes on after its end mark at byte {position:,}, as if several archives had been joined by "
            "cat; keep them as separate files, or join them by tar --concatenate"
        )


def truncated(archive, why):
    """The ArchiveError about an archive that ends too early."""
    return ArchiveError(f"{archive!r} is truncated: {why}; copy or download it again")


def damaged(archive, position, start):
    """The ArchiveError about an archive with an impossible header at `position` of its file."""
    return ArchiveError(
        f"{archive!r} is damaged: the header at its byte {position - start:,} is not valid; copy or download it again"
    )


def no_tar(archive, head):
    """The ArchiveError about a file that is no uncompressed tar; `head` is its beginning."""
    for magic, name in COMPRESSED.items():
        if head.startswith(magic):
            return ArchiveError(
                f"{archive!r} is compressed ({name}), so that no image in it can be read by itself; unpack it, or "
                "make it an uncompressed tar"
            )
    return ArchiveError(f"{archive!r} is no tar archive; give a folder of images or an uncompressed tar")
