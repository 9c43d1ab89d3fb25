"""Whether a picture is all there, where its decoder would fill what is missing with black or grey and say nothing.

```
PNG          the checksum of each chunk that counts; and, if the last row is black or it is interlaced, every row
JPEG         libjpeg's own warnings (it has no checksums), and what it is silent about; scans that never come
WebP, AVIF,  a hole of zeros, which packed pixels do not have
TIFF
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
    "instead of RST|Inconsistent progression|(?P<many>[0-9]+) extraneous bytes before marker 0x(?P<marker>[0-9a-f]+)"
)
"""Warnings of libjpeg after which pixels are missing or wrong. What it says of versions, colours and the order of a
scan's parts never is; bytes too many are harmless before the end, where they are padding."""
MOST_EXTRA = 16
"""Bytes of any kind that a writer may leave before the end of a JPEG."""
MARKER = re.compile(rb"\xff[^\0\xd0-\xd7\xff]")
"""What ends the packed pixels of a scan."""
MOST_ZEROS = {"WEBP": (16, 5000), "AVIF": (1024, 5000), "TIFF": (256, 300)}
"""Zeros in a row that packed pixels may have, and one more for each so many pixels of the picture. A flat WebP ends in
one for each 8,600 to 10,500 pixels; of other pictures no row of 16 was seen (flat, half noise, dots, gradients, from 64
to 6,000 pixels a side). AVIF keeps metadata among the pixels, and deflate packs a flat kilobyte into a zero."""
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
    return next(filter(None, (hole(format, packed, pixels) for packed in _packed(format, content))), None)


def hole(format: str, packed: bytes, pixels: int) -> str | None:
    """Where a hole of zeros is in the packed pixels of a picture of so many `pixels`, in words; None: nowhere."""
    most, pixels_a_zero = MOST_ZEROS[format]
    zeros = bytes(most + pixels // pixels_a_zero + 1)
    return f"a hole of zeros at byte {packed.find(zeros):,} of its pixels" if zeros in packed else None


def jpeg_pixels(content: bytes, colours: str, least: int = 0) -> np.ndarray | None:
    """A whole JPEG's pixels as Pillow has them, uint8[height width 3], of CMYK `colours` [... 4]; at a half, a quarter
    or an eighth of their size if that has `least` on each side.

    None if libjpeg's own interface cannot read it: odd in a way that Pillow may know, or nothing that can be read.
    Raises `ValueError` for one that is not whole.
    """

    def decoded(jpeg: bytes, *, strict: bool) -> np.ndarray:
        return simplejpeg.decode_jpeg(jpeg + END_OF_JPEG, colours, min_height=least, min_width=least, strict=strict)

    try:
        return decoded(content, strict=True)
    except ValueError as error:
        found = DAMAGE.search(str(error))
        if found is None:
            return None
        scans = content.rpartition(END_OF_JPEG)[0] or content
        if found["marker"] != "d9" or not _are_padding(scans[-int(found["many"]) :]):
            raise
    packed = scans.rstrip(b"\0")
    try:  # zeros may be there to fill up, or in place of what is missing: then it ends too early
        decoded(packed + b"\0" * packed.endswith(b"\xff"), strict=True)
    except ValueError as error:
        found = DAMAGE.search(str(error))
        if found and found["marker"] != "d9":
            raise
    return decoded(content, strict=False)  # bytes too many are the only thing that is wrong


def _are_padding(extra: bytes) -> bool:
    """Whether bytes that are left over before a JPEG's end are of one sign, or few."""
    return len(extra) <= MOST_EXTRA or not extra.strip(b"\0") or not extra.strip(b"\xff")


def scans_are_missing(jpeg: bytes) -> bool:
    """Whether a JPEG of several scans ends between two of them: a part of its numbers, or their last bit, never comes.

    A progressive one sends the numbers of each colour (0: the mean, 1 to 63) in several scans, each up to a bit.
    """
    missing, at = set[tuple[int, int]](), 2
    while at + 4 <= len(jpeg) and jpeg[at] == 0xFF:
        kind, length = jpeg[at + 1], int.from_bytes(jpeg[at + 2 : at + 4], "big")
        said = jpeg[at + 4 : at + 2 + length]
        if kind in (0xC0, 0xC1, 0xC2) and len(said) > 6:
            missing = {(colour, number) for colour in said[6::3][: said[5]] for number in range(64)}
        at += 2 + length
        if kind == 0xDA and len(said) > 3:
            colours, (first, last, bits) = said[1 : 1 + 2 * said[0] : 2], said[-3:]
            if bits & 15 == 0:
                missing -= {(colour, number) for colour in colours for number in range(first, last + 1)}
            ended = MARKER.search(jpeg, at)
            at = ended.start() if ended else len(jpeg)
    return bool(missing)


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
        return wanted > 0 and wanted > len(unpacker.flush())  # of all that there is: what is left is a few bytes
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


def _packed(format: str, content: bytes) -> Iterator[bytes]:
    """The packed pixels of a WebP or AVIF: its chunks of them, less name and size; nothing of other formats."""
    if format == "AVIF":
        found = re.search(rb"(.{4})mdat", content, re.DOTALL)
        size = int.from_bytes(found[1], "big") if found else 0
        yield content[found.end() :][: size if size > 1 else None] if found else b""  # or it goes to the end
    chunks = re.finditer(rb"(VP8 |VP8L|ALPH)(.{4})", content, re.DOTALL) if format == "WEBP" else ()
    for found in chunks:
        packed = content[found.end() :][: int.from_bytes(found[2], "little")]
        if found[1] != b"ALPH" or (packed and packed[0] & 3):  # transparency may be as it is
            yield packed
