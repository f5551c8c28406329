"""Tar archives for the fuzzer: valid ones of many kinds, and mutations of the fields of their headers."""

import io
import tarfile

from moco.data.tar_headers import BLOCK, is_header

IMAGE = b"\xff\xd8\xff image"
LONG = "n" * 90 + "/" + "m" * 120 + ".jpg"
FIELDS = {"name": (0, 100), "size": (124, 12), "type": (156, 1), "link": (157, 100), "magic": (257, 8)}
FIELDS |= {"prefix": (345, 155)}
VALUES = {
    "name": (
        b"../../etc/1.jpg",
        b"/abs/1.jpg",
        b"a\nb/1.jpg",
        b"\xff\xfe.jpg",
        b"",
        b"/",
        b"./..",
        b"cat.tar",
        b"0.cls",
    ),
    "size": (
        b"77777777777",
        b"-0000000001",
        b"0000000009x",
        b"\x80" + b"\xff" * 11,
        b"\xff" * 12,
        b"\x80" + bytes(11),
    ),
    "type": tuple(bytes([kind]) for kind in b"0123456757DgxXLKSMVN\0z\xff"),
    "link": (b"", b".", b"..", b"../../x.jpg", b"/etc/passwd", b"0.jpg", b"loop1.jpg", b"cat", b"a/" * 49),
    "magic": (b"ustar\x0000", b"ustar  \0", bytes(8)),
    "prefix": (b"..", b"/", b"cat.tar", b".hidden", b"\n", b"x/" * 77),
}


def archive(members, format=tarfile.PAX_FORMAT):
    """The bytes of a tar archive; each of `members` is (name, data, type, target of a link, pax headers)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as file:
        for name, data, kind, link, headers in members:
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname, member.pax_headers = len(data), kind, link, headers
            file.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def plain(*names, data=IMAGE):
    """Members for `archive`: regular files with equal data."""
    return [(name, data, tarfile.REGTYPE, "", {}) for name in names]


def archives(_rng):
    """Valid archives of many kinds: a list of (extension, bytes)."""
    link = [("cat/2.jpg", b"", tarfile.SYMTYPE, "0.jpg", {}), ("cat/3.jpg", b"", tarfile.LNKTYPE, "cat/0.jpg", {})]
    loop = [(f"loop{i}.jpg", b"", tarfile.SYMTYPE, f"loop{1 - i}.jpg", {}) for i in range(2)]
    classes = archive(plain("0.jpg", "1.jpg"))
    nested = archive(plain("cat.tar", "dog.tar", data=classes))
    shard = plain("0.jpg") + plain("0.cls", data=b"7") + plain("1.jpg") + plain("1.cls", data=b"3\n")
    sparse = [("cat/0.jpg", IMAGE, tarfile.REGTYPE, "", {"GNU.sparse.major": "1", "GNU.sparse.name": "x"})]
    kinds = [plain("cat/0.jpg", "cat/deep/1.jpg", "dog/2.png", ".hidden/3.jpg"), plain("0.jpg", "1.jpg", "notes.txt")]
    kinds += [plain("cat/0.jpg") + link + loop, plain("train.tar", data=nested), shard, plain(LONG, "é/1.jpg"), sparse]
    formats = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)
    valid = [archive(kind, format) for kind in kinds for format in formats]
    return [(".tar", data) for data in (*valid, nested, nested.replace(b"cat.tar", b"cat.jpg"))]


def mutated_headers(data, rng):
    """A copy of an archive with one to three changed fields of headers, most of them with the right checksum."""
    data = bytearray(data)
    starts = [i for i in range(0, len(data) - BLOCK + 1, BLOCK) if is_header(data[i : i + BLOCK])]
    for _ in range(rng.randrange(1, 4)):
        start, name = rng.choice(starts), rng.choice(list(FIELDS))
        offset, size = FIELDS[name]
        value = rng.choice(VALUES[name]) if rng.random() < 0.8 else rng.randbytes(size)
        data[start + offset : start + offset + size] = value[:size].ljust(size, b"\0")
        if rng.random() < 0.9:
            data[start + 148 : start + 156] = b" " * 8
            data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + BLOCK])
    return bytes(data)
