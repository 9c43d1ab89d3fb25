"""Broken metadata never costs a picture; an orientation counts where it can be read."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from limner.data import bare as module
from limner.data.bare import TIFF_TAGS, bare
from limner.data.decode import FORMATS, Unreadable, decode, to_rgb

PIXELS = np.kron(np.random.default_rng(0).integers(0, 256, (6, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
EXACT = {"PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}, "JPEG": {"quality": 95}, "AVIF": {"quality": 100}}


def encoded(format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, format, **EXACT[format] | options)
    return buffer.getvalue()


UPRIGHT = {format: decode(encoded(format), 48) for format in EXACT}


def tag(number: int, kind: int, count: int, value: int) -> bytes:
    return struct.pack("<HHII", number, kind, count, value)


def exif(*tags: bytes, count: int | None = None) -> bytes:
    """EXIF data of these tags, less what begins it."""
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags) if count is None else count) + b"".join(tags) + bytes(4)


TURN = tag(0x0112, 3, 1, 6)
SOUND = {  # a quarter to the right
    "little-endian": exif(TURN),
    "big-endian": b"MM\0*\0\0\0\x08\0\1" + struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + bytes(4),
    "cut after the orientation": exif(TURN, count=40),
    "of four bytes": exif(tag(0x0112, 4, 1, 6)),
    "of four bytes, big-endian": b"MM\0*\0\0\0\x08\0\1" + struct.pack(">HHII", 0x0112, 4, 1, 6) + bytes(4),
    "a tag that leads nowhere": exif(TURN, tag(0x011A, 5, 1, 2**31 - 1)),
    "a folder that leads to itself": exif(TURN, tag(0x8769, 4, 1, 8)),
    "written twice": b"Exif\0\0" + exif(TURN),
}
BROKEN = {
    "no EXIF": b"garbage!",
    "nothing": b"",
    "its first bytes": b"II*",
    "its head": b"II*\0\x08\0\0\0",
    "an offset of gigabytes": b"II*\0\xff\xff\xff\x7f" + TURN,
    "tags that are not there": exif(count=65_535),
    "another byte order": b"XX*\0" + exif(TURN)[4:],
    "orientation 0": exif(tag(0x0112, 3, 1, 0)),
    "orientation 9": exif(tag(0x0112, 3, 1, 9)),
    "an orientation of text": exif(tag(0x0112, 2, 4, 0x36363636)),
    "several orientations elsewhere": exif(tag(0x0112, 5, 1, 6)),
    "a resolution that is none": exif(tag(0x011A, 2, 4, 0x41414141), tag(0x0128, 3, 9999, 7)),
}


def segment(kind: int, content: bytes, length: int | None = None) -> bytes:
    """A JPEG with a segment more."""
    plain = encoded("JPEG")
    length = len(content) + 2 if length is None else length
    return plain[:2] + bytes([0xFF, kind]) + struct.pack(">H", length) + content + plain[2:]


def chunk(kind: bytes, content: bytes, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def with_chunk(content: bytes, *, after: bool = False) -> bytes:
    """A PNG with a chunk more, before its pixels or after."""
    plain = encoded("PNG")
    at = len(plain) - 12 if after else 33
    return plain[:at] + content + plain[at:]


def with_tags(*tags: bytes, compression: str | None = None) -> bytes:
    """A TIFF with tags more."""
    plain = encoded("TIFF", compression=compression)
    (at,) = struct.unpack("<I", plain[4:8])
    (count,) = struct.unpack("<H", plain[at : at + 2])
    entries = [plain[at + 2 + 12 * number : at + 14 + 12 * number] for number in range(count)]
    entries = sorted([*entries, *tags], key=lambda entry: struct.unpack("<H", entry[:2]))
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return plain[:4] + struct.pack("<I", len(plain)) + plain[8:] + directory


def as_webp(kind: bytes, content: bytes, *, length: int | None = None) -> bytes:
    """A WebP with a chunk of metadata, first for a profile and else last."""
    plain = encoded("WEBP")[12:]
    size = struct.pack("<I", len(content) if length is None else length)
    added = kind + size + content + bytes(len(content) % 2)
    flags = {b"ICCP": 0x20, b"EXIF": 0x08, b"XMP ": 0x04}[kind]
    sides = struct.pack("<I", PIXELS.shape[1] - 1)[:3] + struct.pack("<I", PIXELS.shape[0] - 1)[:3]
    head = b"VP8X" + struct.pack("<I", 10) + bytes([flags, 0, 0, 0]) + sides
    body = head + (added + plain if kind == b"ICCP" else plain + added)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def as_avif(content: bytes, *first: bytes) -> bytes:
    """An AVIF whose EXIF data, of these tags first, is overwritten."""
    sound = exif(*first, tag(0x010F, 7, 4, 0), tag(0x0110, 7, 4, 0))
    plain = encoded("AVIF", exif=b"Exif\0\0" + sound)
    at, content = plain.index(sound[:8]), content[: len(sound)]
    return plain[:at] + content + plain[at + len(content) :]


def is_picture(pixels: np.ndarray, expected: np.ndarray) -> bool:
    return pixels.shape == expected.shape and bool((np.abs(pixels.astype(int) - expected) <= 1).all())


def check(content: bytes, format: str, *, turned: bool = False) -> None:
    """The picture is as it is without metadata, or turned, in all the ways to read it."""
    expected = np.rot90(UPRIGHT[format], -1) if turned else UPRIGHT[format]
    for fast in (False, True):
        assert is_picture(decode(content, 48, fast=fast), expected), fast


@pytest.mark.parametrize("said", [*SOUND, *BROKEN])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "PNG at its end", "WEBP"])
def test_exif_turns_where_it_can_be_read_and_costs_nothing_where_not(format: str, said: str):
    content = (SOUND | BROKEN)[said]
    wrapped = {
        "JPEG": segment(0xE1, b"Exif\0\0" + content),
        "PNG": with_chunk(chunk(b"eXIf", content)),
        "PNG at its end": with_chunk(chunk(b"eXIf", content), after=True),
        "WEBP": as_webp(b"EXIF", content),
    }
    check(wrapped[format], format.split(" ")[0], turned=said in SOUND)


@pytest.mark.parametrize("said", BROKEN)
def test_exif_of_an_avif_says_nothing(said: str):
    check(as_avif(BROKEN[said]), "AVIF")
    check(as_avif(BROKEN[said], TURN), "AVIF", turned=True)  # by a part of its own, as the format has it


BOMB = zlib.compress(bytes(2**21))
XMP = b'<x tiff:Orientation="6"/>'
RAW = b"\nexif\n      36\n" + (b"Exif\0\0" + exif(TURN)).hex().encode() + b"\n"
CHUNKS = {
    "a text that unpacks to megabytes": chunk(b"zTXt", b"k\0\0" + BOMB),
    "an international one": chunk(b"iTXt", b"k\0\1\0\0\0" + BOMB),
    "a profile": chunk(b"iCCP", b"k\0\0" + BOMB),
    "a profile packed in no known way": chunk(b"iCCP", b"k\0\7abc"),
    "half a profile": chunk(b"iCCP", b"k"),
    "a text with a wrong checksum": chunk(b"tEXt", b"k\0v", 1),
    "EXIF with a wrong checksum": chunk(b"eXIf", exif(TURN), 1),
    "an unknown chunk with a wrong checksum": chunk(b"prVt", b"x", 1),
    "a text packed in no known way": chunk(b"zTXt", b"k\0\x09abc"),
    "a text that is not packed": chunk(b"zTXt", b"k\0\0abc"),
    "half a gamma": chunk(b"gAMA", b"a"),
    "half a white point": chunk(b"cHRM", b"aa"),
    "half a size": chunk(b"pHYs", b"a"),
    "half a colour space": chunk(b"sRGB", b""),
    "half a transparency": chunk(b"tRNS", b"a", 3),
    "half an animation": chunk(b"acTL", b"a"),
    "an animation of nothing": chunk(b"acTL", bytes(8)),
    "half a frame": chunk(b"fcTL", b"zz"),
    "no frame": chunk(b"fdAT", b""),
    "a length beyond the end": b"\x7f\xff\xff\xfftEXtab",
    "a length that is too small": b"\0\0\0\1tEXtabcdefghijkl",
    "ImageMagick's EXIF, not hexadecimal": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n8\nzz"),
    "XMP that is no text": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0\xff\xfe"),
}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", CHUNKS)
def test_broken_chunks_of_a_png(name: str, after: bool):
    check(with_chunk(CHUNKS[name], after=after), "PNG")


@pytest.mark.parametrize(
    "content",
    [
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP)),
        chunk(b"tEXt", b"Raw profile type exif\0" + RAW),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(RAW)),
        CHUNKS["a text that unpacks to megabytes"] + chunk(b"eXIf", exif(TURN)),
        CHUNKS["a text with a wrong checksum"] + chunk(b"eXIf", exif(TURN)),
    ],
    ids=["XMP", "packed XMP", "ImageMagick's", "packed ImageMagick's", "beside a bomb", "beside a wrong checksum"],
)
def test_a_png_says_in_many_ways_how_it_is_turned(content: bytes):
    check(with_chunk(content), "PNG", turned=True)


SEGMENTS = {
    "half of JFIF": segment(0xE0, b"JFIF\0"),
    "a sign of more pictures that is none": segment(0xE2, b"MPF\0garbage"),
    "half a sign of more pictures": segment(0xE2, b"MPF\0II*\0\x08\0\0\0\3\0"),
    "half a profile": segment(0xE2, b"ICC_PROFILE\0"),
    "one of seven parts of a profile": segment(0xE2, b"ICC_PROFILE\0\1\7xx"),
    "half of Adobe's": segment(0xEE, b"Adobe"),
    "half of Photoshop's": segment(0xED, b"Photoshop 3.0\x008BIM\3\xed\0\0\xff"),
    "half of FlashPix": segment(0xE2, b"FPXR\0"),
    "half of XMP": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<bro"),
    "no comment": segment(0xFE, b""),
    "a length beyond the end": segment(0xE1, b"Exif\0\0II", 60_000),
    "a length that is too small": segment(0xE1, b"Exif\0\0II*\0" + bytes(20), 8),
    "a length of nothing": segment(0xE1, b"abcd", 0),
}


@pytest.mark.parametrize("name", SEGMENTS)
def test_broken_segments_of_a_jpeg(name: str):
    check(SEGMENTS[name], "JPEG")


def test_xmp_turns_a_jpeg_and_a_webp():
    check(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP), "JPEG", turned=True)
    check(as_webp(b"XMP ", XMP), "WEBP", turned=True)


def test_broken_chunks_of_a_webp():
    for kind in (b"ICCP", b"EXIF", b"XMP "):
        check(as_webp(kind, b"garbage!"), "WEBP")
        check(as_webp(kind, b"garbage!", length=10_000_000), "WEBP")
    check(as_webp(b"ICCP", b"garbage!", length=2), "WEBP")
    check(as_webp(b"EXIF", exif(TURN), length=10_000_000), "WEBP", turned=True)


TAGS = {
    "a text beyond the end": tag(270, 2, 5000, 2**31 - 1),
    "EXIF beyond the end": tag(34665, 4, 1, 2**31 - 1),
    "GPS that leads to itself": tag(34853, 4, 1, 8),
    "a profile of gigabytes": tag(34675, 7, 2**31 - 1, 8),
    "XMP beyond the end": tag(700, 1, 50, 2**31 - 1),
    "a resolution beyond the end": tag(282, 5, 1, 2**31 - 1),
    "an unknown type": tag(305, 99, 1, 5),
    "no text": tag(305, 2, 0, 0),
    "orientation 0": tag(274, 3, 1, 0),
    "an orientation of another type": tag(274, 5, 1, 6),
    "pictures inside that are none": tag(330, 4, 1, 8),
    "half of Photoshop's": tag(34377, 1, 8, 8),
}


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("name", TAGS)
def test_broken_tags_of_a_tiff(name: str, compression: str | None):
    check(with_tags(TAGS[name], compression=compression), "TIFF")
    check(with_tags(TAGS[name], TURN, compression=compression), "TIFF", turned=True)


def test_of_several_pages_the_first_counts():
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "TIFF", save_all=True, append_images=[Image.new("RGB", (9, 9))] * 3)
    check(buffer.getvalue(), "TIFF")
    plain = encoded("TIFF")
    assert bare(plain) is not None
    with pytest.raises(Unreadable, match="131,072 strips"):
        decode(with_tags(tag(273, 4, module.MAX_STRIPS + 1, 8)), 48)


@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_of_large_offsets_is_read_too(big: bool):
    check(encoded("TIFF", big_tiff=big), "TIFF")


@pytest.mark.parametrize(
    "content",
    [
        segment(0xE1, b"Exif\0\0garbage!"),
        with_chunk(chunk(b"eXIf", b"garbage!")),
        with_chunk(CHUNKS["a text that unpacks to megabytes"], after=True),
        with_chunk(CHUNKS["half a gamma"], after=True),
        with_chunk(CHUNKS["a profile packed in no known way"], after=True),
        with_chunk(chunk(b"tEXt", b"Raw profile type exif\0zz"), after=True),
        as_webp(b"EXIF", b"garbage!"),
        with_tags(TAGS["XMP beyond the end"]),
    ],
)
@pytest.mark.filterwarnings("ignore:::PIL")  # whoever opens it is told by Pillow
def test_a_picture_that_somebody_opened_is_not_lost_either(content: bytes):
    opened = Image.open(io.BytesIO(content))
    expected = UPRIGHT[str(opened.format)]
    assert is_picture(np.asarray(to_rgb(opened)), expected)


def test_what_somebody_turned_by_hand_is_turned():
    image = Image.fromarray(PIXELS)
    image.getexif()[0x0112] = 6
    assert np.array_equal(np.asarray(to_rgb(image)), np.rot90(PIXELS, -1))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@given(data=st.data())
def test_any_bytes_as_metadata_leave_the_pixels(format: str, data: st.DataObject):
    said = data.draw(st.binary(max_size=80))
    wrapped = {
        "JPEG": lambda: segment(data.draw(st.sampled_from([0xE1, 0xE2, 0xED, 0xFE])), said),
        "PNG": lambda: with_chunk(chunk(data.draw(st.sampled_from([b"iTXt", b"eXIf", b"iCCP", b"acTL"])), said)),
        "WEBP": lambda: as_webp(data.draw(st.sampled_from([b"ICCP", b"EXIF", b"XMP "])), said),
        "TIFF": lambda: with_tags(
            tag(data.draw(st.integers(330, 60_000).filter(lambda one: one not in TIFF_TAGS)), 7, len(said), 0)
        ),
    }
    content = wrapped[format]()
    found = bare(content)
    assert found is not None and found.format == format
    check(content, format, turned=found.orientation == 6) if found.orientation in (1, 6) else None


@given(content=st.binary(max_size=200), begin=st.sampled_from([0, 2, 3, 8, 12, 16, 40]))
def test_bytes_of_any_kind_are_a_format_or_none(content: bytes, begin: int):
    for plain in (encoded("JPEG"), encoded("PNG"), as_webp(b"EXIF", b""), encoded("TIFF")):
        found = bare(plain[:begin] + content)
        assert found is None or (found.format in FORMATS and 1 <= found.orientation <= 8)


def test_a_plain_picture_is_not_copied():
    for format in ("JPEG", "PNG", "WEBP"):
        content = encoded(format)
        found = bare(content)
        assert found is not None and found.content is content
