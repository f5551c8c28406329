"""Reading tar headers, against Python's tarfile; and what is no complete, uncompressed archive."""

import gzip
import io
import os
import re
import tarfile

import pytest

from moco.data import tar_headers
from moco.data.tar_headers import FILE, FOLDER, HARD_LINK, SYMBOLIC_LINK, ArchiveError
from tests.data.archives import archive_of, link

LONG = "deep/" * 30 + "é" * 60 + ".jpg"  # too long for one field of a header


def members(path, start=0):
    with open(path, "rb") as file:
        return list(tar_headers.members(file.fileno(), start, os.fstat(file.fileno()).st_size, "A"))


def folder(name):
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    return info


EVERYTHING = (folder("cat"), ("cat/0.jpg", b"x" * 513), ("cat/1.jpg", b""), (LONG, b"y" * 512), ("z", b"z" * 5000))
EVERYTHING += (link("cat/2.jpg", "0.jpg"), link("cat/3.jpg", "cat/0.jpg", tarfile.LNKTYPE), link("4", LONG))


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_names_places_and_links_are_those_of_tarfile(tmp_path, format):
    chosen = EVERYTHING if format != tarfile.USTAR_FORMAT else (*EVERYTHING[:3], ("d" * 99 + "/" + "f" * 90, b"u"))
    path = archive_of(tmp_path / "a.tar", *chosen, format=format)
    kinds = {
        tarfile.REGTYPE: FILE,
        tarfile.DIRTYPE: FOLDER,
        tarfile.LNKTYPE: HARD_LINK,
        tarfile.SYMTYPE: SYMBOLIC_LINK,
    }
    with tarfile.open(path) as archive:
        expected = [(os.fsencode(m.name), kinds[m.type], m.offset_data, m.size, m.linkname.encode()) for m in archive]
    assert [(m.name.rstrip(b"/"), *m[1:]) for m in members(path)] == expected


def test_an_archive_may_begin_anywhere_in_a_file(tmp_path):
    path = archive_of(tmp_path / "a.tar", *EVERYTHING)
    shifted = tmp_path / "b"
    shifted.write_bytes(b"?" * 777 + path.read_bytes())
    assert [(m.name, m.offset - 777, m.size) for m in members(shifted, 777)] == [
        (m.name, m.offset, m.size) for m in members(path)
    ]


def test_sizes_beyond_the_octal_digits_are_read(tmp_path):
    """A member of 9 GB, as a file with a hole."""
    info = tarfile.TarInfo("big")
    info.size = 9 * 2**30
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with open(tmp_path / "a.tar", "wb") as file:
            file.write(info.tobuf(format))
            file.seek(info.size, os.SEEK_CUR)
            file.write(bytes(1024))
        assert members(tmp_path / "a.tar")[0].size == info.size


def test_few_requests_and_no_data_are_read(tmp_path, monkeypatch):
    path = archive_of(tmp_path / "a.tar", *((f"{i}.jpg", b"x" * 100_000) for i in range(9)))
    pread, read = os.pread, []
    monkeypatch.setattr(os, "pread", lambda *args: read.append(pread(*args)) or read[-1])
    assert len(members(path)) == 9
    assert len(read) <= 12 and sum(map(len, read)) < 12 * tar_headers.AHEAD


GOOD = io.BytesIO()
with tarfile.open(fileobj=GOOD, mode="w") as good:
    for name in ("0.jpg", "1.jpg"):
        info = tarfile.TarInfo(name)
        info.size = 700
        good.addfile(info, io.BytesIO(b"x" * 700))
GOOD = GOOD.getvalue()  # header at 0, data to 1212, header at 1536, data to 2748, end at 3072


def renewed(data):
    """The same with the right checksum of the first header."""
    data = data[:148] + b" " * 8 + data[156:]
    return data[:148] + b"%06o\0 " % sum(data[:512]) + data[156:]


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "'A' is no tar archive; give a folder of images or an uncompressed tar"),
        (b"GIF89a" * 500, "'A' is no tar archive"),
        (gzip.compress(GOOD), "'A' is compressed (gzip), so that no image in it can be read by itself; unpack it"),
        (gzip.compress(b""), "'A' is compressed (gzip)"),
        (b"BZh91AY" * 100, "'A' is compressed (bzip2)"),
        (b"PK\x03\x04" + bytes(600), "'A' is compressed (zip)"),
        (GOOD[:2700], "'A' is truncated: '1.jpg' lacks its last 48 bytes; copy or download it again"),
        (GOOD[:2800], "'A' is truncated: it has no end mark"),
        (GOOD[:3072], "'A' is truncated: it has no end mark"),
        (GOOD[:3300], "'A' is truncated: it has no end mark"),
        (GOOD[:1536], "'A' is truncated: it has no end mark"),
        (GOOD[:1700], "'A' is truncated: it has no end mark"),
        (GOOD[:1540] + b"!" + GOOD[1541:], "'A' is damaged: the header at its byte 1,536 is not valid"),
        (GOOD + GOOD, "'A' goes on after its end mark at byte 3,072, as if several archives had been joined by cat"),
        (renewed(GOOD[:124] + b"-0000000012\0" + GOOD[136:]), "'A' is damaged: the header at its byte 0"),
        (renewed(GOOD[:124] + b"\xff" * 12 + GOOD[136:]), "'A' is damaged: the header at its byte 0"),
        (renewed(GOOD[:124] + b"\x80" + b"\x7f" * 11 + GOOD[136:]), "'A' is truncated: '0.jpg' lacks its last 154,"),
        (
            renewed(GOOD[:156] + b"S" + GOOD[157:]),
            "'A!0.jpg' is stored as a sparse file, which can't be read",
        ),
        (renewed(GOOD[:156] + b"M" + GOOD[157:]), "'A' is a later volume of an archive of several"),
        (renewed(GOOD[:156] + b"x" + GOOD[157:]), "'A' is damaged: the header at its byte 0"),
    ],
)
def test_what_is_refused(tmp_path, data, message):
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ArchiveError, match=re.escape(message)):
        members(tmp_path / "a")


def test_one_zero_block_is_an_end_mark_and_what_is_behind_may_be_cut(tmp_path):
    (tmp_path / "a").write_bytes(GOOD[: 3072 + 512])
    assert len(members(tmp_path / "a")) == 2


def test_many_records_of_an_extended_header_take_no_time_that_grows_with_the_square():
    assert tar_headers.extended(b"5 x=\n" * (tar_headers.LONGEST // 5), b"x") == {}


@pytest.mark.parametrize(
    "data",
    [
        *(b"9", b"0 a=b\n", b"-5 a=b\n", b"6 a=bc\n", b"99 path=x\n", b"10 size=x\n"),
        *(b"+7 a=b\n", b"1_0 a=bcd\n", b" 7 a=b\n", b"-9 a=bcdefghi\n"),
    ],
)
def test_damaged_extended_headers(data):
    with pytest.raises(ValueError):
        tar_headers.extended(data, b"x")


def test_sparse_members_of_the_pax_format_are_refused(tmp_path):
    sparse = tarfile.TarInfo("cat/0.jpg")
    sparse.pax_headers = {"GNU.sparse.major": "1"}
    with pytest.raises(ArchiveError, match=re.escape("the member 'A!cat/0.jpg' is stored as a sparse")):
        members(archive_of(tmp_path / "a.tar", sparse))


def test_extended_headers_are_limited(tmp_path):
    path = archive_of(tmp_path / "a.tar", ("x" * (tar_headers.LONGEST + 9), b""), format=tarfile.GNU_FORMAT)
    with pytest.raises(ArchiveError, match="damaged"):
        members(path)
