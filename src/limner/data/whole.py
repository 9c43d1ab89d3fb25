"""Whether a picture is all there, where its decoder would fill what is missing with black or grey and say nothing.

```
PNG          the checksum of each chunk that counts; and, if the last row is black or it is interlaced, every row
JPEG         libjpeg's own warnings (it has no checksums); a hole of zeros that it passes by
WebP, AVIF   a hole of zeros, which packed pixels do not have; decode.py looks for it in a TIFF's strips
```

A disk that was full, a download that was cut and a file that has holes are found so. A few changed bits where there are
no checksums (in all but PNG), and zeros where nothing is packed (BMP, PPM), are another picture, and nothing can tell.
"""

import re
import zlib
from collections.abc import Iterator

import numpy as np
import simplejpeg

END_OF_JPEG = b"\xff\xd9"
DAMAGE = re.compile(
    "premature end of data segment|Premature end of JPEG|bad (Huffman|arithmetic) code|"
    "instead of RST|Inconsistent progression|(extraneous bytes)"
)
"""Warnings of libjpeg after which pixels are missing. Bytes too many are harmless where no hole is before them; what
it says of versions, colours and the order of a scan's parts always is."""
HOLE, JPEG_HOLE = bytes(1024), bytes(64)
"""Zeros in a row that packed pixels do not have. In a JPEG a flat picture may, but then no bytes are left over."""
MOST_ZEROS, PIXELS_A_ZERO = 64, 5000
"""Zeros in a row that a WebP or AVIF may have. A flat WebP ends in one for each 8,600 to 10,500 pixels; of other
pictures, and of AVIF, no row of 16 was seen (flat, half noise, dots, gradients, from 64 to 6,000 pixels a side)."""
PIECE = 2**20
"""Bytes that are unpacked at a time."""
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""The pictures that an interlaced PNG consists of: first column and row, and steps between columns and rows."""


def damage(format: str, content: bytes, pixels: int) -> str | None:
    """What is wrong with the bytes of a picture of so many `pixels`, in words, as far as it shows before it is decoded;
    None: nothing."""
    if format == "PNG":
        broken = (kind.decode("ascii", "replace") for kind, chunk in _chunks(content) if not _is_whole(chunk))
        return next((f"the checksum of the chunk {kind} is wrong" for kind in broken), None)
    most = MOST_ZEROS + pixels // PIXELS_A_ZERO
    if format in ("WEBP", "AVIF") and bytes(most + 1) in (packed := _packed(format, content)):
        return f"a hole of zeros at byte {packed.find(bytes(most + 1)):,} of its pixels"
    return None


def jpeg_pixels(content: bytes, colours: str, least: int = 0) -> np.ndarray | None:
    """A whole JPEG's pixels as Pillow has them, uint8[height width 3], of CMYK `colours` [... 4]; at a half, a quarter
    or an eighth of their size if that has `least` on each side.

    None if libjpeg's own interface cannot read it: odd in a way that Pillow may know, or nothing that can be read.
    Raises `ValueError` for one that is not whole.
    """
    try:
        return simplejpeg.decode_jpeg(content + END_OF_JPEG, colours, min_height=least, min_width=least)
    except ValueError as error:
        found = DAMAGE.search(str(error))
        scans, end, _ = content[content.find(b"\xff\xda") :].rpartition(END_OF_JPEG)
        if found and (not found[2] or not end or JPEG_HOLE in scans.rstrip(b"\0")):
            raise
    return None


def rows_are_missing(png: bytes) -> bool:
    """Whether a PNG has fewer bytes of pixels than its header says; what it unpacks to is counted, not kept."""
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    bits = png[24] * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(png[25], 1)
    passes = ADAM7 if png[28] else ((0, 0, 1, 1),)
    sizes = ((-(-(width - x) // across), -(-(height - y) // down)) for x, y, across, down in passes)
    wanted = sum((1 + -(-columns * bits // 8)) * rows for columns, rows in sizes if columns > 0 and rows > 0)
    unpacker = zlib.decompressobj()
    try:
        for _, chunk in (one for one in _chunks(png) if one[0] == b"IDAT"):
            packed = chunk[4:-4]
            while packed and wanted > 0:
                wanted -= len(unpacker.decompress(packed, PIECE))
                packed = unpacker.unconsumed_tail
        return wanted > len(unpacker.flush())
    except zlib.error:
        return True


def _chunks(png: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """The chunks of a PNG that a reader needs, by name, each from its name to its checksum, up to the end's."""
    at, view = 8, memoryview(png)
    while len(kind := png[at + 4 : at + 8]) == 4 and kind != b"IEND":
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")
        if kind[:1].isupper():
            yield kind, view[at + 4 : end]
        at = end


def _is_whole(chunk: memoryview) -> bool:
    return zlib.crc32(chunk[:-4]) == int.from_bytes(chunk[-4:], "big")


def _packed(format: str, content: bytes) -> bytes:
    """The packed pixels of a WebP or AVIF: the first chunk of them, less its size."""
    found = re.search(rb"VP8[ L](.{4})" if format == "WEBP" else rb"(.{4})mdat", content, re.DOTALL)
    if found is None:
        return b""
    size = int.from_bytes(found[1], "little" if format == "WEBP" else "big")
    return content[found.end() :][: size if size > 1 else None]  # an AVIF's may be said elsewhere, or go to the end
