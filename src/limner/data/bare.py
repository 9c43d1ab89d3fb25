"""The bytes of a picture without what lies beside its pixels, so that broken metadata never costs the picture.

```
content ─> known by its first bytes ─> EXIF, XMP, ICC, texts, previews, tags taken out ─> Bare, for Pillow
                                       └─> the orientation, where it can be read
```

Pillow reads metadata while it opens or loads a picture, and raises or warns over what is odd there. None of it matters
here but for the orientation, so none of it gets that far. What pixels need stays as it is, damage included: that is
found when they are decoded. Nothing in here raises, but for a TIFF in too many strips.
"""

import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple

ORIENTATION = 0x0112
SHORT, LONG = 3, 4
"""Kinds of numbers in EXIF: of two bytes, and of four."""
MAX_STRIPS = 2**17
"""Strips or tiles of a TIFF, at most: Pillow makes an object of each before anything is decoded."""
MAX_TEXT_BYTES = 2**20
"""Bytes that a packed text is unpacked to, at most."""
XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])")


class Bare(NamedTuple):
    """A picture's pixels, still encoded."""

    format: str
    """Pillow's name of it."""
    content: bytes
    orientation: int
    """As EXIF counts them, 1 to 8; 1 where none is told or it cannot be read."""


def bare(content: bytes) -> Bare | None:
    """The picture in `content` without its metadata; None if it begins as no format that is read."""
    begin = content[:16]
    if begin.startswith(b"\xff\xd8\xff"):
        return Bare("JPEG", *_jpeg(content))
    if begin.startswith(b"\x89PNG\r\n\x1a\n"):
        return Bare("PNG", *_png(content))
    if begin[:4] == b"RIFF" and begin[8:12] == b"WEBP":
        return Bare("WEBP", *_webp(content))
    if begin[4:8] == b"ftyp" and begin[8:12] in (b"avif", b"avis", b"mif1", b"msf1"):
        return Bare("AVIF", _avif(content), 1)
    if begin[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return Bare("TIFF", _tiff(content), 1)
    if begin.startswith((b"GIF87a", b"GIF89a")):
        return Bare("GIF", content, 1)
    if begin.startswith(b"BM"):
        return Bare("BMP", content, 1)
    return Bare("PPM", content, 1) if re.match(rb"P[1-6f]\s", begin) else None


# --- the orientation -------------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """A tag in a directory of TIFF's or EXIF's."""

    tag: int
    kind: int
    values: int
    """How many it has."""
    value: int
    """The value itself, of one short number."""
    content: bytes


class Directory(NamedTuple):
    """Where the first directory of a TIFF or EXIF is, and how numbers are written in it."""

    order: str
    start: int
    wide: int
    """Bytes of an offset: 4, in a BigTIFF 8."""
    counter: int
    """Bytes of the number of tags."""


def exif_orientation(exif: bytes) -> int:
    """The orientation in EXIF data, 1 to 8; 0 where there is none or it cannot be read."""
    exif = exif.removeprefix(b"Exif\0\0").removeprefix(b"Exif\0\0")  # some programs write it twice
    if exif[:2] not in (b"II", b"MM"):
        return 0
    return next((one.value for one in _entries(exif) if _is_orientation(one)), 0)


def _xmp_orientation(xmp: bytes) -> int:
    found = XMP_ORIENTATION.search(xmp)
    return int(found[1]) if found else 0


def _is_orientation(entry: Entry) -> bool:
    return entry.tag == ORIENTATION and entry.kind in (SHORT, LONG) and 1 <= entry.value <= 8


def _directory(content: bytes) -> Directory:
    order = "little" if content[:2] == b"II" else "big"
    if _number(content[2:4], order) == 43:
        return Directory(order, _number(content[8:16], order), 8, 8)
    return Directory(order, _number(content[4:8], order), 4, 2)


def _entries(content: bytes) -> Iterator[Entry]:
    """The tags of the first directory, as far as they are there."""
    order, start, wide, counter = _directory(content)
    first, length = start + counter, 4 + 2 * wide
    for at in range(first, first + length * _number(content[start:first], order), length):
        entry = content[at : at + length]
        if len(entry) < length:
            return
        kind = _number(entry[2:4], order)
        value = _number(entry[4 + wide : (8 if kind == LONG else 6) + wide], order)
        values = _number(entry[4 : 4 + wide], order)
        yield Entry(_number(entry[:2], order), kind, values, value, entry)


def _number(content: bytes, order: str) -> int:
    return int.from_bytes(content, "little" if order == "little" else "big")


# --- formats ---------------------------------------------------------------------------------------------------------


def _without(content: bytes, dropped: list[tuple[int, int]]) -> bytes:
    """`content` less these stretches (start, end), rising."""
    if not dropped:
        return content
    starts, ends = zip(*dropped, strict=True)
    return b"".join(content[end:start] for end, start in zip((0, *ends), (*starts, len(content)), strict=True))


def _jpeg(content: bytes) -> tuple[bytes, int]:
    """Without the segments of applications, but for two that tell which colours there are, and comments."""
    dropped, by_exif, by_xmp, at = list[tuple[int, int]](), 0, 0, 2
    while content[at : at + 1] == b"\xff" and (kind := content[at + 1 : at + 2]) != b"\xda":
        if kind == b"\xff":  # padding
            at += 1
            continue
        said = content[at + 4 : at + 20]
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        if (b"\xe0" <= kind <= b"\xef" or kind == b"\xfe") and not _tells_colours(kind, said[: max(0, end - at - 4)]):
            if kind == b"\xe1" and said.startswith(b"Exif\0\0"):
                by_exif = by_exif or exif_orientation(content[at + 4 : end])
            elif kind == b"\xe1" and said.startswith(b"http://ns.adobe."):
                by_xmp = by_xmp or _xmp_orientation(content[at + 4 : end])
            if content[end : end + 1] != b"\xff":  # its length is wrong: tables for the pixels come next
                end = content.find(b"\xff\xdb", end if end < len(content) else at + 4)
                if end < 0:
                    break
            dropped.append((at, end))
        at = end
    return _without(content, dropped), by_exif or by_xmp or 1


def _tells_colours(kind: bytes, said: bytes) -> bool:
    """Whether a segment is JFIF's or Adobe's, and whole."""
    is_jfif = kind == b"\xe0" and said.startswith(b"JFIF\0") and len(said) >= 14
    return is_jfif or (kind == b"\xee" and said.startswith(b"Adobe") and len(said) >= 12)


def _png(content: bytes) -> tuple[bytes, int]:
    """Without the chunks that a reader may pass over, but for transparency. Of an animation, its picture is left."""
    dropped, by_exif, by_xmp, at = list[tuple[int, int]](), 0, 0, 8
    while (kind := content[at + 4 : at + 8]).isalpha() and len(kind) == 4:
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        if kind[:1].islower():
            is_whole = kind in (b"tRNS", b"eXIf") and _is_whole(content[at + 4 : end])
            if kind == b"eXIf" and is_whole:
                by_exif = by_exif or exif_orientation(content[at + 8 : end - 4])
            elif kind in (b"tEXt", b"zTXt", b"iTXt"):
                name, text = _png_text(kind, content[at + 8 : end - 4])
                by_exif = by_exif or (_raw_orientation(text) if name == b"Raw profile type exif" else 0)
                by_xmp = by_xmp or (_xmp_orientation(text) if name == b"XML:com.adobe.xmp" else 0)
            if end != len(content) and not content[end + 4 : end + 8].isalpha():  # its length is wrong
                pixels = content.find(b"IDAT", at + 8)
                end = pixels - 4 if pixels > 0 else len(content)
            if kind != b"tRNS" or not is_whole:
                first = dropped.pop()[0] if dropped and dropped[-1][1] == at else at  # a million in a row are one
                dropped.append((first, end))
        at = end
    return _without(content, dropped), by_exif or by_xmp or 1


def _is_whole(chunk: bytes) -> bool:
    """Whether a chunk, from its name to its checksum, is as it was written."""
    return zlib.crc32(chunk[:-4]) == int.from_bytes(chunk[-4:], "big")


def _png_text(kind: bytes, chunk: bytes) -> tuple[bytes, bytes]:
    """The name and text of a text chunk, if it is one that may tell an orientation."""
    name, _, text = chunk.partition(b"\0")
    if name not in (b"Raw profile type exif", b"XML:com.adobe.xmp"):
        return b"", b""
    if kind == b"tEXt":
        return name, text
    if kind == b"zTXt":
        return name, _unpacked(text[1:])
    is_packed, text = text[:1] == b"\1", text[2:].split(b"\0", 2)[-1]
    return name, _unpacked(text) if is_packed else text


def _unpacked(packed: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(packed, MAX_TEXT_BYTES)
    except zlib.error:
        return b""


def _raw_orientation(text: bytes) -> int:
    """The orientation in EXIF data as ImageMagick writes it into a text: a name, its length, and hexadecimal lines."""
    try:
        return exif_orientation(bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii")))
    except ValueError:
        return 0


def _webp(content: bytes) -> tuple[bytes, int]:
    """Without the chunks of metadata, nor the word that they are there."""
    if content[12:16] != b"VP8X":
        return content, 1
    dropped, by_exif, by_xmp, at = list[tuple[int, int]](), 0, 0, 30
    while at + 8 <= len(content):
        kind, size = content[at : at + 4], int.from_bytes(content[at + 4 : at + 8], "little")
        end = at + 8 + size + size % 2
        if kind in (b"ICCP", b"EXIF", b"XMP "):
            if kind == b"EXIF":
                by_exif = by_exif or exif_orientation(content[at + 8 : end])
            elif kind == b"XMP ":
                by_xmp = by_xmp or _xmp_orientation(content[at + 8 : end])
            if kind == b"ICCP" and content[end : end + 4] not in (b"VP8 ", b"VP8L", b"ALPH", b"ANIM"):  # a wrong length
                found = re.compile(rb"VP8[ L]|ALPH|ANIM").search(content, at + 8)
                end = found.start() if found else end
            dropped.append((at, min(end, len(content))))
        at = end
    if dropped:
        chunks = _without(content, dropped)[21:]
        flags = bytes([content[20] & ~0x2C])
        content = b"RIFF" + (13 + len(chunks)).to_bytes(4, "little") + content[8:20] + flags + chunks
    return content, by_exif or by_xmp or 1


def _avif(content: bytes) -> bytes:
    """With its EXIF data named as something that nobody reads: what turns an AVIF is told elsewhere."""
    head = content[: 2**16]  # where the names of all parts are
    return re.sub(rb"(infe.{8}|infe.{10})Exif", rb"\1none", head, flags=re.DOTALL) + content[2**16 :]


# fmt: off
TIFF_TAGS = frozenset((
    256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332, 338, 339, 347,
    512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 532,
))
# fmt: on
"""Tags that say how the pixels of a TIFF are written."""
TIFF_PLACES = (273, 279, 324, 325)
"""Of these, the ones that say where strips and tiles are, and how long."""


def _tiff(content: bytes) -> bytes:
    """With its first directory only, and there the tags that pixels need. Raises `ValueError` for too many strips."""
    order, start, wide, counter = _directory(content)
    entries = [one for one in _entries(content) if one.tag in TIFF_TAGS or _is_orientation(one)]
    if any(one.tag in TIFF_PLACES and one.values > MAX_STRIPS for one in entries):
        raise ValueError(f"a TIFF of more than {MAX_STRIPS:,} strips or tiles")
    number = len(entries).to_bytes(counter, "little" if order == "little" else "big")
    directory = number + b"".join(one.content for one in entries) + bytes(wide)
    return content[:start] + directory + content[start + len(directory) :] if entries else content
