"""JPEGs of many kinds for the tests of decoding, made from a seed."""

import io

import numpy as np
from PIL import Image

from moco.data.image_decoding import JPEG


def noise(width, height, mode="RGB"):
    """An image of noise, which is the hardest to decode equally."""
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def jpeg(width=52, height=40, mode="RGB", **options):
    """The bytes of a JPEG."""
    file = io.BytesIO()
    noise(width, height, mode).save(file, "JPEG", **options)
    return file.getvalue()


def pillow(data):
    """What Pillow decodes: H x W x 3, uint8; None if it refuses the file."""
    try:
        return np.asarray(Image.open(io.BytesIO(data), formats=["JPEG"]).convert("RGB"))
    except Exception:
        return None


def segment(marker, content):
    """A segment of a JPEG; `marker` is its second byte."""
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def exif(orientation, order="big", thumbnail=b""):
    """EXIF data with an orientation, and bytes behind it."""
    header = (b"MM" if order == "big" else b"II") + (42).to_bytes(2, order) + (8).to_bytes(4, order)
    entry = (1, 2), (0x0112, 2), (3, 2), (1, 4), (orientation, 2), (0, 2), (0, 4)
    return b"Exif\0\0" + header + b"".join(value.to_bytes(size, order) for value, size in entry) + thumbnail


def framed(data, frame=None, sampling=None, bits=None, size=None, channels=None):
    """A JPEG with another frame header: its marker, its first channel's sampling, and so on."""
    data = bytearray(data)
    at = max(data.find(b"\xff\xc0\0"), data.find(b"\xff\xc2\0"))
    for value, place in ((frame, 1), (bits, 4), (channels, 9), (sampling, 11)):
        if value is not None:
            data[at + place] = value
    if size is not None:
        data[at + 5 : at + 9] = size[1].to_bytes(2, "big") + size[0].to_bytes(2, "big")
    return bytes(data)


def with_segment(data, marker, content, before=b"\xff\xdb"):
    """A JPEG with one more segment, before the first table or the last `before`."""
    at = data.index(before) if before == b"\xff\xdb" else data.rindex(before)
    return data[:at] + segment(marker, content) + data[at:]


def ycck(data):
    """A JPEG of CMYK pixels that declares them as YCCK."""
    at = data.index(b"Adobe") + 11
    return data[:at] + b"\2" + data[at + 1 :]


SIZES = [(1, 1), (7, 9), (8, 8), (16, 16), (17, 33), (52, 40)]
# The name of a kind -> its bytes. A header of the first group is read without Pillow.
PLAIN = {
    **{
        f"{w} x {h}, subsampling {s}{', progressive' * p}": jpeg(w, h, subsampling=s, progressive=p)
        for w, h in SIZES
        for s in (0, 1, 2)
        for p in (False, True)
    },
    "4:4:0": framed(jpeg(32, 16, subsampling=1), sampling=0x12),
    "4:1:1": framed(jpeg(32, 16, subsampling=2), sampling=0x41),
    "grey": jpeg(mode="L"),
    "grey, progressive": jpeg(mode="L", progressive=True),
    "CMYK": jpeg(mode="CMYK"),
    "CMYK, subsampled": jpeg(mode="CMYK", subsampling=2),
    "YCCK": ycck(jpeg(mode="CMYK")),
    "restart markers": jpeg(restart_marker_blocks=2),
    "restart markers, progressive": jpeg(restart_marker_rows=1, progressive=True),
    "an ICC profile in two segments": jpeg(400, 300, quality=40, icc_profile=b"x" * 70000),
    "a comment with a frame header in it": jpeg(comment=JPEG + segment(0xC0, b"\x08\0\1\0\1\1\1\x11\0")),
    "trailing garbage": jpeg() + b"garbage" * 1000,
    "another JPEG behind it": jpeg() + jpeg(9, 9),
    "large": jpeg(301, 200, quality=100),  # more than Pillow reads at once
    "EXIF between the scans": with_segment(jpeg(progressive=True), 0xE1, exif(6), before=b"\xff\xda"),
    "another frame type": framed(jpeg(), frame=0xC1),
    "corrupt data": jpeg()[:900] + b"\x55" * 40 + jpeg()[940:],
}
OTHER = {
    **{
        f"orientation {n}, {order} endian": jpeg(exif=exif(n, order))
        for n in range(1, 9)
        for order in ("big", "little")
    },
    "orientation 6, progressive": jpeg(progressive=True, exif=exif(6)),
    "orientation 6, grey": jpeg(mode="L", exif=exif(6)),
    "a thumbnail": jpeg(exif=exif(1, thumbnail=jpeg(16, 12))),
    "a thumbnail of a turned image": jpeg(exif=exif(8, thumbnail=jpeg(16, 12))),
    "XMP before EXIF": with_segment(jpeg(exif=exif(6)), 0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>"),
    "EXIF data without its name": with_segment(jpeg(), 0xE1, b"\0" * 6 + exif(6)[6:]),
    "two EXIF segments": with_segment(jpeg(exif=exif(1)), 0xE1, exif(6)),
    "Photoshop's segment": with_segment(jpeg(), 0xED, b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\0"),
    "several pictures": with_segment(jpeg(), 0xE2, b"MPF\0MM\0*\0\0\0\x08\0\0"),
    "fill bytes before a marker": jpeg().replace(b"\xff\xdb", b"\xff\xff\xff\xdb", 1),
    "tables with 16-bit values": jpeg().replace(
        jpeg()[20:89], segment(0xDB, b"\x10" + b"".join(bytes([0, b]) for b in jpeg()[25:89])), 1
    ),
}
EITHER = {  # Pillow's build decides
    "arithmetic coding": framed(jpeg(), frame=0xC9),
    "arithmetic coding, progressive": framed(jpeg(progressive=True), frame=0xCA),
}
REFUSED = {
    "12 bits": framed(jpeg(), bits=12),
    "no height": framed(jpeg(), size=(52, 0)),
    "no width": framed(jpeg(), size=(0, 40)),
    "2 channels": framed(jpeg(), channels=2),
    "lossless": framed(jpeg(), frame=0xC3),
    "hierarchical": framed(jpeg(), frame=0xC5),
    "two frame headers": with_segment(jpeg(), 0xC0, b"\x08\0\1\0\1\1\1\x11\0"),
    "more pixels than Pillow decodes": framed(jpeg(), size=(65500, 65500)),
    "a table that is cut short": with_segment(jpeg(), 0xDB, bytes(30)),
    "an ICC profile that is cut short": with_segment(jpeg(), 0xE2, b"ICC_PROFILE\0"),
    "JFIF data that are cut short": with_segment(jpeg(), 0xE0, b"JFIF\0"),
    "Photoshop's segment, cut short": with_segment(jpeg(), 0xED, b"Photoshop 3.0\0" + b"8BIM\4\4"),
    "only a start": JPEG,
    "no scan": jpeg()[: jpeg().index(b"\xff\xda")],
}
