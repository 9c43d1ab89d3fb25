"""Hostile data, made up here: shards, pictures, captions and indexes that somebody made by accident or on purpose.

Each case is a function that writes into an empty folder and says what limner should make of it. Beside what is hostile
lie four good pairs, which have to come through. `big` makes the case as large as benchmarks/hostile.py wants it; small
ones are for the tests. The same bytes each time.
"""

import gzip
import io
import json
import os
import pickle
import random
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save

from limner.config import ImageConfig
from limner.data.decode import DAMAGED, NO_IMAGE, TOO_LONG, TOO_MANY_PIXELS
from limner.data.loader import Loader
from limner.data.pairs import EMPTY, TOO_LARGE
from limner.data.sources.beside import FOLDER_LINK, HEIC, IMAGE, OTHER_LIST, OTHER_TABLE, OTHER_TAR
from limner.data.sources.folders import ALONE, HIDDEN, LEADS_OUT, LINKED, NO_FILE, OTHER, UNREAD_TEXT
from limner.data.sources.read import read_pairs
from limner.data.sources.shards import DOTTED, SEVERAL_IMAGES
from limner.data.tokenizer import Tokenizer
from limner.errors import DataError

GOOD = 4
BLOCK = 512
MOST_STEPS, MOST_PAIRS = 8, 64
NOT_PLAIN, CUT, NO_PAIR = "shard member that is not a plain file", "shard cut short", "no picture"
NO_TAR, LONG_NAME = "shard that is no tar file", "shard member with a name or header that is too long"
NOT_UTF8, BAD_JSON = "caption that is not UTF-8", "unreadable .json"
BAD_CHANCES = "caption_probabilities that do not fit the captions"


@dataclass(frozen=True)
class Expected:
    """What limner should make of a case. Reasons are compared up to their first bracket."""

    pairs: int = GOOD
    skipped: dict[str, int] = field(default_factory=dict)
    noted: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    error: str = ""
    """Part of the DataError that refuses all of it; else there is none."""
    opens: str = ""
    """What in the folder is opened, if not the folder."""
    megabytes: int = 64
    """Memory that the big case may take above what good pairs take."""


Case = Callable[[Path, bool], Expected]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    """Name a case after its function."""
    CASES[function.__name__.replace("_", "-")] = function
    return function


def through(path: Path, tokenizer: Tokenizer, *, workers: int = 2) -> dict[str, Any]:
    """The whole way of the pairs at `path`, about an epoch of it: what came of them, in the words of `Expected`."""
    try:
        source = read_pairs(path)
        size = min(len(source), MOST_PAIRS)
        loader = Loader(
            source,
            tokenizer,
            images=ImageConfig(resize=28, crop_min_area=0.5),
            image_size=24,
            batch_size=size,
            seed=0,
            cache_mb=1,
            workers=workers,
        )
        dropped = Counter[str]()
        for batch in loader.batches(0, min(MOST_STEPS, len(source) // size)):
            dropped.update(batch.dropped)
    except DataError as error:
        return {"error": str(error)}
    return {
        "pairs": len(source),
        "skipped": _short(source.skipped),
        "noted": _short(source.noted),
        "dropped": _short(dropped),
        "error": "",
    }


def _short(counts: Counter[str]) -> dict[str, int]:
    short = Counter[str]()
    for reason, count in counts.items():
        short[reason.split(" (")[0]] += count
    return dict(short)


def is_as(told: dict[str, Any], expected: Expected) -> bool:
    """Whether what came of a case is what was expected."""
    if expected.error or told["error"]:
        return bool(expected.error) and expected.error in told["error"]
    return told == {
        "pairs": expected.pairs,
        "skipped": _short(Counter(expected.skipped)),
        "noted": _short(Counter(expected.noted)),
        "dropped": _short(Counter(expected.dropped)),
        "error": "",
    }


# --- tar, by hand: tarfile writes no lies ----------------------------------------------------------------------------


def header(name: bytes | str, size: int, kind: bytes = b"0", **fields: bytes) -> bytes:
    """A tar header with a right checksum. `fields`: raw bytes for stated (the size), linkname, end (from byte 345)."""
    name = name.encode() if isinstance(name, str) else name
    content = bytearray(BLOCK)
    content[: len(name[:100])] = name[:100]
    content[100:124] = b"0000644\0" + b"0000000\0" * 2
    content[124:136] = fields.get("stated", b"%011o\0" % (size % 8**11))
    content[136:148] = b"00000000000\0"
    content[148:157] = b" " * 8 + kind
    linkname, end = fields.get("linkname", b""), fields.get("end", b"")
    content[157 : 157 + len(linkname)] = linkname
    content[257:265] = b"ustar  \0" if kind in b"LKS" else b"ustar\x0000"
    content[345 : 345 + len(end)] = end
    content[148:156] = b"%06o\0 " % sum(content)
    return bytes(content)


def padded(content: bytes) -> bytes:
    return content + b"\0" * (-len(content) % BLOCK)


def member(name: bytes | str, content: bytes, kind: bytes = b"0") -> bytes:
    return header(name, len(content), kind) + padded(content)


def pair(key: str | bytes, picture: bytes, caption: bytes = b"a caption", extension: str = "jpg") -> bytes:
    stem = key if isinstance(key, bytes) else key.encode()
    return member(stem + f".{extension}".encode(), picture) + member(stem + b".txt", caption)


def pax(*records: tuple[str, bytes]) -> bytes:
    return member("PaxHeader", b"".join(_record(*record) for record in records), b"x")


def _record(name: str, value: bytes) -> bytes:
    length = len(name) + len(value) + 3
    while length != len(name) + len(value) + 3 + len(str(length)):
        length = len(name) + len(value) + 3 + len(str(length))
    return b"%d %s=%s\n" % (length, name.encode(), value)


def encoded(format: str, size: tuple[int, int] = (32, 32), seed: int = 0, **options: Any) -> bytes:
    """A picture of made-up pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(buffer, format, **options)
    return buffer.getvalue()


def good_pairs() -> bytes:
    return b"".join(pair(f"good-{i}", encoded("JPEG", seed=i), b"picture number %d" % i) for i in range(GOOD))


def shard(folder: Path, *blocks: bytes, name: str = "0.tar", end: bytes = b"\0" * 1024) -> Path:
    """A shard of the good pairs and then `blocks`."""
    return written(folder / name, [good_pairs(), *blocks, end])


def written(path: Path, blocks: Iterable[bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for block in blocks:
            file.write(block)
    return path


# --- tars that end early or lie --------------------------------------------------------------------------------------


@case
def nothing_hostile(folder: Path, big: bool) -> Expected:
    shard(folder)
    return Expected()


@case
def cut_in_a_header(folder: Path, big: bool) -> Expected:
    shard(folder, header("a.jpg", 0)[:300], end=b"")
    return Expected(noted={CUT: 1})


@case
def cut_in_content(folder: Path, big: bool) -> Expected:
    shard(folder, member("a.txt", b"x"), header("a.jpg", 5000), b"\xff" * 3000, end=b"")
    return Expected(skipped={NO_PAIR: 1}, noted={CUT: 1})


@case
def cut_in_a_pax_header(folder: Path, big: bool) -> Expected:
    shard(folder, pax(("path", b"n" * 2000))[:1500], end=b"")
    return Expected(noted={CUT: 1})


@case
def cut_in_the_first_header(folder: Path, big: bool) -> Expected:
    written(folder / "0.tar", [good_pairs()[:200]])
    return Expected(error="whole, plain tar")


@case
def gzipped(folder: Path, big: bool) -> Expected:
    """Gzipped zeros, which would inflate to gigabytes."""
    with gzip.open(folder / "0.tar", "wb") as file:
        for _ in range(2048 if big else 4):
            file.write(bytes(2**20))
    return Expected(error="whole, plain tar")


@case
def html_and_other_shards(folder: Path, big: bool) -> Expected:
    shard(folder)
    (folder / "1.tar").write_text("<html>404</html>" * 100)
    return Expected(noted={NO_TAR: 1})


@case
def zero_filled_shard(folder: Path, big: bool) -> Expected:
    """As a download that has only made room: half of the data is not there, and that has to be said."""
    shard(folder)
    (folder / "1.tar").write_bytes(bytes(50_000))
    return Expected(noted={NO_TAR: 1})


@case
def empty_shard(folder: Path, big: bool) -> Expected:
    shard(folder)
    (folder / "1.tar").write_bytes(b"")
    return Expected(noted={NO_TAR: 1})


@case
def member_of_8_eib(folder: Path, big: bool) -> Expected:
    shard(folder, header("a.jpg", 0, stated=b"\x80\0\0\0" + (2**63 - 1).to_bytes(8, "big")))
    return Expected(noted={CUT: 1})


@case
def size_of_88_bits(folder: Path, big: bool) -> Expected:
    shard(folder, header("a.jpg", 0, stated=b"\x80" + b"\xff" * 11))
    return Expected(noted={CUT: 1})


@case
def negative_size(folder: Path, big: bool) -> Expected:
    shard(folder, header("a.jpg", 0, stated=b"-0000001000\0"), good_pairs())
    return Expected(noted={CUT: 1})


@case
def negative_binary_size(folder: Path, big: bool) -> Expected:
    shard(folder, header("a.jpg", 0, stated=b"\xff" * 12), good_pairs())
    return Expected(noted={CUT: 1})


@case
def pax_size_of_5000_digits(folder: Path, big: bool) -> Expected:
    shard(folder, pax(("size", b"9" * 5000)), member("a.jpg", b"x"))
    return Expected(noted={CUT: 1})


@case
def pax_length_too_long(folder: Path, big: bool) -> Expected:
    shard(folder, member("p", b"999 path=b.jpg\n", b"x"), pair("a", encoded("JPEG")))
    return Expected(skipped={NO_PAIR: 2})  # what is left of the header is the name


@case
def pax_length_too_short(folder: Path, big: bool) -> Expected:
    shard(folder, member("p", b"0 a=b\n2 \n-7 path=z\n", b"x"), pair("a", encoded("JPEG")))
    return Expected(pairs=GOOD + 1)


@case
def pax_header_of_2_gib(folder: Path, big: bool) -> Expected:
    size = 2**31 if big else 2**21
    path = shard(folder, header("p", size, b"x"), end=b"")
    os.truncate(path, path.stat().st_size + size)  # a hole: it takes no room on disk
    return Expected(noted={"shard without the mark of its end": 1})


@case
def pax_headers_in_a_row(folder: Path, big: bool) -> Expected:
    shard(folder, pax(("comment", b"x")) * (200_000 if big else 2000), pair("a", encoded("JPEG")))
    return Expected(pairs=GOOD + 1)


@case
def pax_records_of_many_names(folder: Path, big: bool) -> Expected:
    """Eleven bytes each, every one with a name of its own."""
    numbers = range(60 if big else 4)
    blocks = (member("p", b"".join(b"11 %06x=\n" % (i * 90_000 + j) for j in range(90_000)), b"x") for i in numbers)
    written(folder / "0.tar", [good_pairs(), *blocks, pair("a", encoded("JPEG")), bytes(1024)])
    return Expected(skipped={NO_PAIR: 1}, noted={LONG_NAME: 1})


@case
def long_name_chain(folder: Path, big: bool) -> Expected:
    chain = member("././@LongLink", b"n" * 3000 + b"\0", b"L") * (20_000 if big else 500)
    shard(folder, chain, member("././@LongLink", b"a.jpg\0", b"L"), pair("x", encoded("JPEG")), member("a.txt", b"a"))
    return Expected(pairs=GOOD + 1, skipped={NO_PAIR: 1})


@case
def names_of_a_mebibyte(folder: Path, big: bool) -> Expected:
    """Of bytes that are not UTF-8, and of folders in folders."""
    many = 32 if big else 2
    names = [b"%d" % i + b"\xff" * (2**20 - 20) + b".jpg" for i in range(many)] + [b"a/" * (2**19 - 5) + b"a.jpg"]
    blocks = [member("././@LongLink", name, b"L") + member("x", encoded("JPEG")) for name in names]
    shard(folder, *blocks)
    return Expected(noted={LONG_NAME: many + 1})


@case
def wrong_checksum(folder: Path, big: bool) -> Expected:
    wrong = bytearray(header("a.jpg", 1000))
    wrong[5] ^= 1
    shard(folder, bytes(wrong) + padded(bytes(1000)), pair("b", encoded("JPEG")))
    return Expected(noted={CUT: 1})


@case
def sparse_gnu(folder: Path, big: bool) -> Expected:
    """GNU's old kind, with blocks of map between header and content, and a stated size of a tebibyte."""
    extended = bytearray(bytes(41) + b"00000000000\0" * 8 + b"\1" + b"00010000000\0")
    more = bytes(504) + b"\1" + bytes(7)
    last = bytes(BLOCK)
    sparse = header("s.jpg", 1024, b"S", end=bytes(extended)) + more * 3 + last + bytes(1024)
    shard(folder, sparse, pair("a", encoded("JPEG")))
    return Expected(pairs=GOOD + 1, noted={NOT_PLAIN: 1})


@case
def sparse_gnu_without_end(folder: Path, big: bool) -> Expected:
    """Each block of the map says that another one follows."""
    more = bytes(504) + b"\1" + bytes(7)
    shard(folder, header("s.jpg", 0, b"S", end=bytes(137) + b"\1"), more * (100_000 if big else 1000), end=b"")
    return Expected(noted={NOT_PLAIN: 1, "shard without the mark of its end": 1})


@case
def sparse_pax(folder: Path, big: bool) -> Expected:
    told = pax(("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"9" * 15))
    shard(folder, told, member("s.jpg", b"1\n0\n0\n"), pair("a", encoded("JPEG")))
    return Expected(pairs=GOOD + 1, noted={NOT_PLAIN: 1})


@case
def links_devices_fifos(folder: Path, big: bool) -> Expected:
    kinds = (b"1", b"2", b"3", b"4", b"6")
    shard(folder, *(header(f"l{kind[0]}.jpg", 0, kind, linkname=b"/etc/passwd") for kind in kinds))
    return Expected(noted={NOT_PLAIN: 5})


@case
def links_with_a_size(folder: Path, big: bool) -> Expected:
    """Some writers state the size of what a link names; no content follows."""
    shard(folder, header("l.jpg", 1024, b"1", linkname=b"good-0.jpg"), pair("a", encoded("JPEG")))
    return Expected(pairs=GOOD + 1, noted={NOT_PLAIN: 1})


@case
def folders_with_a_size(folder: Path, big: bool) -> Expected:
    shard(folder, header("d/", 1024, b"5"), pair("d/a", encoded("JPEG")))
    return Expected(pairs=GOOD + 1)


@case
def a_long_link_target(folder: Path, big: bool) -> Expected:
    """The header that holds the target is no member of its own."""
    shard(folder, member("././@LongLink", b"t" * 200 + b"\0", b"K"), header("l.jpg", 0, b"2"))
    return Expected(noted={NOT_PLAIN: 1})


@case
def nested_tars(folder: Path, big: bool) -> Expected:
    content = pair("inner", encoded("JPEG")) + bytes(1024)
    for depth in range(1000 if big else 20):
        content = member(f"{depth}.tar", content) + bytes(1024)
    shard(folder, member("n.tar", content))
    return Expected(skipped={NO_PAIR: 1})


@case
def names_that_lead_out(folder: Path, big: bool) -> Expected:
    blocks = [
        pair(key, encoded("JPEG")) for key in ("../out", "/tmp/limner-out", "../../../../tmp/limner-out", "a/../../b")
    ]
    shard(folder, *blocks, member("..", b"x"), member("", b"x"), member("/", b"x"))
    return Expected(pairs=GOOD + 4, noted={"shard member without a name before its dot": 3})


@case
def names_that_are_not_utf8(folder: Path, big: bool) -> Expected:
    """Names of the same length that differ in bytes that are none."""
    shard(folder, *(pair(name, encoded("JPEG")) for name in (b"\xff", b"\xfe", b"\xe9", b"\xe8")))
    return Expected(pairs=GOOD + 4)


@case
def a_second_archive_far_behind_the_end(folder: Path, big: bool) -> Expected:
    """As of tar -b 4096, whose zeros at the end are megabytes."""
    shard(folder, end=bytes(2**30 if big else 2**21) + pair("a", encoded("JPEG")) + bytes(1024))
    return Expected(noted={"shard with more after the end of its archive": 1})


@case
def one_name_twice(folder: Path, big: bool) -> Expected:
    shard(folder, pair("a", encoded("JPEG")) * 3, pair("good-0", b"not a picture"))
    return Expected(pairs=GOOD + 1, noted={"shard member of the same name as another": 6})


@case
def tiny_members(folder: Path, big: bool) -> Expected:
    """Each pair takes 2 kB in the tar; in the big case there are 500,000, a million members."""
    number = 500_000 if big else 200
    content = encoded("GIF", (2, 2))

    def blocks() -> Iterator[bytes]:
        for i in range(number):
            yield pair(f"{i:06d}", content, b"x", "gif")
        yield bytes(1024)

    written(folder / "0.tar", blocks())
    return Expected(pairs=number, megabytes=700)


# --- captions and annotations ----------------------------------------------------------------------------------------


def annotated(folder: Path, *texts: bytes) -> None:
    """A shard with pairs whose .json is each of `texts`, and no .txt."""
    blocks = [member(f"j{i}.jpg", encoded("JPEG")) + member(f"j{i}.json", text) for i, text in enumerate(texts)]
    shard(folder, *blocks)


@case
def captions_that_are_not_utf8(folder: Path, big: bool) -> Expected:
    lone = json.dumps({"captions": ["\ud800 lone", "\udc80"]}).encode()
    utf16 = "ein Käse".encode("utf-16")
    shard(
        folder,
        pair("a", encoded("JPEG"), b"caf\xe9 \xff\xfe\0 x"),
        pair("d", encoded("JPEG"), "a dog".encode("utf-16-le")),
        pair("b", encoded("JPEG"), utf16),
        member("c.jpg", encoded("JPEG")) + member("c.json", lone),
    )
    return Expected(pairs=GOOD + 4, noted={NOT_UTF8: 2, "caption with NUL signs": 1})


@case
def zero_bytes(folder: Path, big: bool) -> Expected:
    empty_json = member("c.jpg", encoded("JPEG")) + member("c.json", b"")
    shard(folder, pair("a", b""), pair("b", encoded("JPEG"), b""), empty_json)
    return Expected(skipped={EMPTY: 1, "no caption": 2})


@case
def json_that_is_deep(folder: Path, big: bool) -> Expected:
    annotated(folder, b"[" * 100_000, b'{"a":' * 100_000)
    return Expected(skipped={"no caption": 2}, noted={BAD_JSON: 2})


@case
def captions_of_odd_types(folder: Path, big: bool) -> Expected:
    """None of these is a caption."""
    odd = [None, True, {"a": 1}, [["x"]], 1e308, {"captions": None}, {"caption": None}, {"captions": {"a": "b"}}]
    odd += [{"captions": [None]}, {"captions": [True, {"a": 1}, ["x"]]}, {"caption": {"a": 1}}, {"caption": ["x"]}]
    deep = b'{"captions":[' + b"[" * 200 + b"]" * 200 + b"]}"
    annotated(folder, deep, *(json.dumps(record).encode() for record in odd))
    return Expected(skipped={"no caption": len(odd) + 1}, noted={"caption that is no text": 7})


@case
def chances_of_odd_values(folder: Path, big: bool) -> Expected:
    odd = ['"x"', "null", "[null, 1]", "[true, -1]", "[NaN, 1]", "[Infinity, 1]", "[0, 0]", "[[], 1]", "{}", "[1]"]
    annotated(folder, *(b'{"captions":["a","b"],"caption_probabilities":%s}' % text.encode() for text in odd))
    return Expected(pairs=GOOD + len(odd), noted={BAD_CHANCES: len(odd) - 1})  # null is as good as none


def with_chances(folder: Path, chances: bytes, number: int = 8) -> None:
    annotated(folder, *[b'{"captions":["a","b"],"caption_probabilities":%s}' % chances] * number)


@case
def chances_of_400_digits(folder: Path, big: bool) -> Expected:
    with_chances(folder, b"[1, " + b"9" * 400 + b"]", 1)
    return Expected(pairs=GOOD + 1, noted={BAD_CHANCES: 1})


@case
def chances_whose_sum_is_infinite(folder: Path, big: bool) -> Expected:
    with_chances(folder, b"[1e308, 1.7e308]")
    return Expected(pairs=GOOD + 8, noted={BAD_CHANCES: 8})


@case
def chances_next_to_nothing(folder: Path, big: bool) -> Expected:
    with_chances(folder, b"[5e-324, 1e-323]", 40)
    return Expected(pairs=GOOD + 40, noted={BAD_CHANCES: 40})


@case
def json_of_10_mb(folder: Path, big: bool) -> Expected:
    annotated(folder, b'{"caption":"' + b"x" * 10_000_000 + b'"}')
    return Expected(skipped={"no caption": 1}, noted={".json over 1 MiB": 1})


@case
def many_captions(folder: Path, big: bool) -> Expected:
    number, captions = (32, 200_000) if big else (2, 10_000)
    annotated(folder, *[json.dumps({"captions": ["x"] * captions}).encode()] * number)
    return Expected(pairs=GOOD + number, noted={"captions after the first 1,000 of a pair": number})


@case
def captions_of_a_mebibyte(folder: Path, big: bool) -> Expected:
    words = random.Random(0)
    number, length = (32, 2**18) if big else (2, 2**14)
    text = b" ".join(bytes(words.choices(range(97, 123), k=3)) for _ in range(length))
    shard(folder, *(pair(f"a{i}", encoded("JPEG"), text) for i in range(number)))
    return Expected(pairs=GOOD + number, noted={"caption over 10,000 characters": number})


class Canary:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


@case
def pickles(folder: Path, big: bool) -> Expected:
    canary = pickle.dumps(Canary(folder.parent / "unpickled"))
    blocks = [member(f"{name}.{extension}", canary) for name in ("a", "good-0") for extension in ("pkl", "pyd", "pth")]
    blocks += [pair("b", canary), member("c.jpg", encoded("JPEG")), member("c.json", canary), member("c.cls", canary)]
    shard(folder, *blocks, member("c.txt", b"x"), member("c.npy", canary), member("c.pickle", canary))
    noted = {BAD_JSON: 1, "label that is no whole number": 1, ".npy beside a .cls": 1}
    return Expected(pairs=GOOD + 2, skipped={NO_PAIR: 1}, noted=noted, dropped={NO_IMAGE: 1})


@case
def jsonl_that_is_deep(folder: Path, big: bool) -> Expected:
    (folder / "a.jpg").write_bytes(encoded("JPEG"))
    (folder / "list.jsonl").write_text('{"path":"a.jpg","caption":"x"}\n' + "[" * 100_000 + "\n")
    return Expected(error="must be a JSON object", opens="list.jsonl")


@case
def jsonl_with_a_number_of_5000_digits(folder: Path, big: bool) -> Expected:
    (folder / "a.jpg").write_bytes(encoded("JPEG"))
    (folder / "list.jsonl").write_text('{"path":"a.jpg","caption":' + "9" * 5000 + "}\n")
    return Expected(error="must be a JSON object", opens="list.jsonl")


@case
def csv_cell_that_never_ends(folder: Path, big: bool) -> Expected:
    (folder / "a.jpg").write_bytes(encoded("JPEG"))
    (folder / "list.csv").write_text('path,caption\na.jpg,"' + "x" * (10**8 if big else 10**6))
    return Expected(error="The row that begins at line 2", opens="list.csv", megabytes=400)


def listed(folder: Path, name: str, content: str | bytes, **expected: Any) -> Expected:
    """A list beside the good pairs' pictures, good-0.jpg to good-3.jpg."""
    for number in range(GOOD):
        (folder / f"good-{number}.jpg").write_bytes(encoded("JPEG", seed=number))
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return Expected(opens=name, **expected)


def rows(count: int = GOOD, sign: str = ",") -> str:
    return "".join(f"good-{number % GOOD}.jpg{sign}caption {number}\n" for number in range(count))


@case
def csv_quote_in_the_middle_that_is_left_open(folder: Path, big: bool) -> Expected:
    content = "path,caption\n" + rows() + 'good-0.jpg,"a dog\n' + rows(100_000 if big else 10)
    return listed(folder, "list.csv", content, error="The row that begins at line 6", megabytes=128)


@case
def csv_rows_of_other_numbers_of_cells(folder: Path, big: bool) -> Expected:
    wrong = 100_000 if big else 10
    content = "path,caption\n" + rows() + "good-0.jpg,a,b\ngood-1.jpg\n" * (wrong // 2)
    return listed(folder, "list.csv", content, skipped={"row of another number of cells than the header": wrong})


@case
def csv_header_of_many_columns(folder: Path, big: bool) -> Expected:
    many = "," * (1_000_000 if big else 1000)
    content = "path,caption" + many + "\n" + "".join(row.rstrip() + many + "\n" for row in rows().splitlines())
    return listed(folder, "list.csv", content, megabytes=512)


@case
def csv_that_names_files_elsewhere(folder: Path, big: bool) -> Expected:
    places = ["/etc/passwd", "../../etc/passwd", "x" * 5000, "a\0b", "nowhere.jpg"]
    content = "path,caption\n" + rows() + "".join(f"{place},a dog\n" for place in places)
    return listed(folder, "list.csv", content, skipped={"picture file missing, or outside of the list's folder": 5})


@case
def csv_of_labels_alone(folder: Path, big: bool) -> Expected:
    return listed(folder, "list.csv", "path,label\n" + rows(), error="Labels are no captions")


@case
def csv_in_utf16(folder: Path, big: bool) -> Expected:
    return listed(folder, "list.csv", ("path,caption\n" + rows()).encode("utf-16"))


@case
def csv_in_utf16_without_its_mark(folder: Path, big: bool) -> Expected:
    content = ("path,caption\n" + rows()).encode("utf-16-le")
    return listed(folder, "list.csv", content)


@case
def tsv_with_a_quote_left_open(folder: Path, big: bool) -> Expected:
    """Quotes in a tsv may be signs like any other: each line is a row."""
    return listed(folder, "list.tsv", "path\tcaption\n" + rows(GOOD - 1, "\t") + 'good-3.jpg\t"a 5" dog\n')


@case
def tsv_of_a_quote_that_nothing_closes(folder: Path, big: bool) -> Expected:
    """The file's rest is in quotes, more than csv takes into a cell: then quotes are signs."""
    more = 'good-0.jpg\t"a dog\n' + rows(1, "\t") * (100_000 if big else 6000)
    noted = {"cell that begins with a quote that nothing closes": 1}
    return listed(folder, "list.tsv", "path\tcaption\n" + rows(sign="\t") + more, noted=noted, megabytes=128)


@case
def csv_whose_quote_swallows_rows(folder: Path, big: bool) -> Expected:
    """It ends in the next quote, so that one row of three cells is what is left of three lines."""
    swallowed = 'good-0.jpg,"a dog\ngood-1.jpg,a cat\ngood-2.jpg,a fox",x\n'
    skipped = {"row of another number of cells than the header": 3}
    noted = {"cell of several lines": 1}
    return listed(folder, "list.csv", "path,caption\n" + swallowed + rows(), skipped=skipped, noted=noted)


@case
def csv_of_line_ends_of_old(folder: Path, big: bool) -> Expected:
    content = "path,caption\n" + rows() + 'good-0.jpg,"a dog\ngood-1.jpg,a cat"\n'
    return listed(folder, "list.csv", content.replace("\n", "\r"), noted={"cell of several lines": 1})


@case
def csv_of_columns_twice(folder: Path, big: bool) -> Expected:
    content = "path,caption,Caption\n" + "".join(f"{row},another\n" for row in rows().splitlines())
    return listed(folder, "list.csv", content, noted={"column of the same name as another": 1})


@case
def jsonl_of_names_twice(folder: Path, big: bool) -> Expected:
    lines = [f'{{"path": "good-{number}.jpg", "caption": "a", "caption": "b"}}\n' for number in range(GOOD)]
    return listed(folder, "list.jsonl", "".join(lines), noted={"column of the same name as another": GOOD})


@case
def labels_that_are_no_numbers(folder: Path, big: bool) -> Expected:
    labels = (b"cat", b"-1", b"1.5", b"99999999999")
    labelled = [member(f"{n}.cls", label) + pair(str(n), encoded("JPEG")) for n, label in enumerate(labels)]
    noted = {"label that is no whole number": 3, "label below 0": 1}
    shard(folder, *labelled, member("e.cls", b" 3.0\n"), pair("e", encoded("JPEG")))
    return Expected(pairs=GOOD + 5, noted=noted)


@case
def what_git_lfs_leaves(folder: Path, big: bool) -> Expected:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
    shard(folder, pair("a", pointer), pair("b", encoded("JPEG"), pointer))
    return Expected(
        pairs=GOOD + 1,
        skipped={"no caption": 1},
        dropped={NO_IMAGE: 1},
        noted={"caption that Git LFS has in another place": 1},
    )


@case
def jsonl_of_late_columns(folder: Path, big: bool) -> Expected:
    lines = [{"path": "good-0.jpg", "caption": "a"}, {"caption": "b", "image": "good-1.jpg"}, {"label": 3}]
    lines += [{"text": ["c", "d"], "file_name": "good-2.jpg", "label": [[]] * 3}, {"path": "good-3.jpg", "title": "e"}]
    noted = {"label that is neither a number nor a text": 1}
    skipped = {"line without a picture's path": 1}
    return listed(folder, "list.jsonl", "\n".join(map(json.dumps, lines)), noted=noted, skipped=skipped)


@case
def metadata_that_names_few(folder: Path, big: bool) -> Expected:
    expected = listed(folder, "metadata.csv", "file_name,text\n" + rows(), skipped={IMAGE: 3})
    for name in ("more.jpg", "inner/more.PNG", "inner/deep/more.webp", "inner/.hidden/more.jpg"):
        written(folder / name, [encoded("JPEG")])
    return replace(expected, opens="")


# --- folders ---------------------------------------------------------------------------------------------------------


def loose(folder: Path) -> None:
    """The good pairs as files."""
    for number in range(GOOD):
        written(folder / f"good-{number}.jpg", [encoded("JPEG", seed=number)])
        written(folder / f"good-{number}.txt", [b"a caption"])


@case
def folder_of_links_in_circles(folder: Path, big: bool) -> Expected:
    loose(folder / "real")
    count = 1000 if big else 20
    for number in range(count):
        (folder / f"link-{number}").symlink_to([".", "..", "real", "/", f"link-{number}"][number % 5])
    broken = count // 5  # a link to itself is no folder
    return Expected(noted={LINKED: count - broken, OTHER: broken})


@case
def folder_of_links_to_a_folder_elsewhere(folder: Path, big: bool) -> Expected:
    loose(folder / ".elsewhere")
    (folder / ".elsewhere" / "back").symlink_to(folder)
    for number in range(50):
        (folder / f"link-{number:02d}").symlink_to(folder / ".elsewhere")
    return Expected(noted={LINKED: 50, HIDDEN: 1})


@case
def folder_that_is_deep(folder: Path, big: bool) -> Expected:
    loose(folder)
    here = os.open(folder, os.O_RDONLY)
    for _ in range(800 if big else 50):  # what cleans up takes no more
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    return Expected()


@case
def folder_of_other_files(folder: Path, big: bool) -> Expected:
    loose(folder)
    count = 20_000 if big else 20
    for number in range(count):
        (folder / f"{number}{['.md', '.txt', '.heic', ''][number % 4]}").touch()
        (folder / f".{number}.jpg").touch()
    noted = {HIDDEN: count, OTHER: count // 2, ALONE: count // 4}
    return Expected(skipped={HEIC: count // 4}, noted=noted)


@case
def names_of_files_that_are_odd(folder: Path, big: bool) -> Expected:
    loose(folder)
    for name in (b"\xff\xfe", b"a\nb", b"\x1b[31m", "\u202e".encode(), b"x" * 250, b"[red]", b" "):
        written(folder / os.fsdecode(name + b".jpg"), [encoded("JPEG")])
        written(folder / os.fsdecode(name + b".txt"), [b"x"])
    return Expected(pairs=GOOD + 7)


@case
def captions_that_are_folders_and_links(folder: Path, big: bool) -> Expected:
    loose(folder)
    for name in ("a", "b", "c"):
        written(folder / f"{name}.jpg", [encoded("JPEG")])
    (folder / "a.txt").mkdir()
    (folder / "b.txt").symlink_to("/etc/passwd")
    (folder / "c.txt").symlink_to("c.txt")
    return Expected(skipped={"no caption": 3}, noted={UNREAD_TEXT: 2})


@case
def shards_with_others_beside(folder: Path, big: bool) -> Expected:
    path = shard(folder)
    loose(folder / "beside")
    for name in ("1.TAR", "2.tar.gz", "3.tgz", "inner/4.tar"):
        written(folder / name, [path.read_bytes()])
    for name in ("0.parquet", "1.parquet", "photo.heic", "beside/metadata.csv"):
        written(folder / name, [b"x"])  # the first one is about the shard of that name
    (folder / "link").symlink_to(folder / "beside")
    skipped = {IMAGE: GOOD, OTHER_TAR: 4, OTHER_TABLE: 1, HEIC: 1, OTHER_LIST: 1, FOLDER_LINK: 1}
    return Expected(skipped=skipped)


@case
def pictures_of_one_key(folder: Path, big: bool) -> Expected:
    endings = ("jpg", "png", "webp", "gif")
    shard(folder, pair("a", encoded("JPEG")), *(member(f"a.{one}", encoded("PNG")) for one in (*endings[1:], "1.png")))
    return Expected(pairs=GOOD + 1, skipped={SEVERAL_IMAGES: 3, DOTTED: 1})


# --- files and indexes -----------------------------------------------------------------------------------------------


@case
def shard_that_is_a_fifo(folder: Path, big: bool) -> Expected:
    shard(folder)
    os.mkfifo(folder / "1.tar")
    return Expected(noted={NO_TAR: 1})


@case
def shard_that_is_a_folder(folder: Path, big: bool) -> Expected:
    shard(folder)
    (folder / "1.tar").mkdir()
    return Expected(noted={NO_TAR: 1})


@case
def shard_that_is_a_broken_link(folder: Path, big: bool) -> Expected:
    shard(folder)
    (folder / "1.tar").symlink_to(folder / "gone.tar")
    return Expected(error="must all be there")


@case
def shard_whose_name_is_not_utf8(folder: Path, big: bool) -> Expected:
    shard(folder).rename(folder / os.fsdecode(b"\xff.tar"))
    return Expected()


@case
def pictures_that_are_fifos_and_links(folder: Path, big: bool) -> Expected:
    for i in range(GOOD):
        (folder / f"{i}.jpg").write_bytes(encoded("JPEG", seed=i))
        (folder / f"{i}.txt").write_text("x")
    os.mkfifo(folder / "fifo.jpg")
    (folder / "zero.jpg").symlink_to("/dev/zero")
    (folder / "circle.jpg").symlink_to(folder / "circle.jpg")
    (folder / "linked").symlink_to("/")
    (folder / "3.txt").unlink()
    os.mkfifo(folder / "3.txt")
    skipped = {LEADS_OUT: 2, NO_FILE: 1, "no caption": 1}
    return Expected(pairs=GOOD - 1, skipped=skipped, noted={LINKED: 1, UNREAD_TEXT: 1})


@case
def index_of_noise(folder: Path, big: bool) -> Expected:
    path = shard(folder)
    (folder / ".limner").mkdir()
    (folder / ".limner" / f"{path.name}.index").write_bytes(random.Random(0).randbytes(5000))
    return Expected()


def changed_index(
    folder: Path, change: Callable[[dict[str, Any], dict[str, np.ndarray]], Any], hole: int = 0
) -> Expected:
    """An index that has been tampered with: the shard's sha256, size and time in it are right."""
    path = shard(folder)
    os.truncate(path, path.stat().st_size + hole)  # after the tar's end; it takes no room on disk
    read_pairs(folder)
    file = folder / ".limner" / f"{path.name}.index"
    with safe_open(file, framework="np") as opened:
        metadata = opened.metadata()
        arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  it is no dict
    told = json.loads(metadata["told"])
    told = change(told, arrays) or told
    file.write_bytes(save(arrays, metadata=metadata | {"told": json.dumps(told)}))
    return Expected()


@case
def index_that_says_a_list(folder: Path, big: bool) -> Expected:
    return changed_index(folder, lambda told, arrays: [1])


@case
def index_that_says_little(folder: Path, big: bool) -> Expected:
    return changed_index(folder, lambda told, arrays: {"size": told["size"]})


@case
def index_that_says_other_types(folder: Path, big: bool) -> Expected:
    return changed_index(folder, lambda told, arrays: told | {"skipped": 5, "least_key": 3})


@case
def index_that_counts_wrong(folder: Path, big: bool) -> Expected:
    return changed_index(folder, lambda told, arrays: told | {"captioned": 10**6})


@case
def index_without_labels(folder: Path, big: bool) -> Expected:
    return changed_index(folder, lambda told, arrays: arrays.__delitem__("labels"))


@case
def index_with_sizes_of_exbibytes(folder: Path, big: bool) -> Expected:
    return changed_index(folder, lambda told, arrays: arrays["picture_sizes"].fill(2**62))


@case
def index_with_negative_sizes(folder: Path, big: bool) -> Expected:
    """Minus one means all that follows to `read`."""
    return changed_index(folder, lambda told, arrays: arrays["picture_sizes"].fill(-1), 2**31 if big else 0)


@case
def index_with_negative_offsets(folder: Path, big: bool) -> Expected:
    return changed_index(folder, lambda told, arrays: arrays["picture_offsets"].fill(-5))


@case
def index_whose_captions_are_not_utf8(folder: Path, big: bool) -> Expected:
    return changed_index(folder, lambda told, arrays: arrays.update(captions=arrays["captions"] | 0x80))


@case
def index_folder_that_leads_out(folder: Path, big: bool) -> Expected:
    shard(folder)
    (folder / ".limner").symlink_to(folder.parent)
    return Expected()


@case
def index_that_is_a_fifo(folder: Path, big: bool) -> Expected:
    path = shard(folder)
    (folder / ".limner").mkdir()
    os.mkfifo(folder / ".limner" / f"{path.name}.index")
    return Expected()


# --- pictures --------------------------------------------------------------------------------------------------------


def pictured(folder: Path, content: bytes, reason: str = "", extension: str = "png", megabytes: int = 64) -> Expected:
    """A shard with a picture that is left out for `reason`, or comes through."""
    shard(folder, pair("hostile", content, extension=extension))
    return Expected(pairs=GOOD + 1, dropped={reason: 1} if reason else {}, megabytes=megabytes)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def deflated(block: bytes, times: int) -> bytes:
    squeeze = zlib.compressobj(9)
    return b"".join([*(squeeze.compress(block) for _ in range(times)), squeeze.flush()])


def png(width: int, height: int, rows: bytes, *, depth: int = 8, colour: int = 0, more: bytes = b"") -> bytes:
    """A PNG of already deflated rows, with `more` chunks before them. `colour`: 0 grey, 2 RGB, 6 RGBA."""
    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + start + more + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def tiny_png(more: bytes) -> bytes:
    return png(8, 8, deflated(bytes(9), 8), more=more)


@case
def png_of_900_million_pixels(folder: Path, big: bool) -> Expected:
    side = 30_000
    return pictured(folder, png(side, side, deflated(bytes(side + 1), side if big else 20)), TOO_MANY_PIXELS)


@case
def png_of_100_million_pixels(folder: Path, big: bool) -> Expected:
    """The largest that is allowed, four bytes each."""
    side = 10_000 if big else 500
    rows = deflated(b"\0" + b"\1\2\3\4" * side, side)
    return pictured(folder, png(side, side, rows, colour=6), megabytes=1800)


@case
def png_of_100_million_deep_pixels(folder: Path, big: bool) -> Expected:
    side = 10_000 if big else 500
    return pictured(folder, png(side, side, deflated(b"\0" + b"\1\2" * side, side), depth=16), megabytes=1800)


@case
def png_that_inflates_to_gigabytes(folder: Path, big: bool) -> Expected:
    return pictured(folder, png(64, 64, deflated(bytes(2**20), 2048 if big else 16)))


@case
def png_with_a_huge_text(folder: Path, big: bool) -> Expected:
    text = chunk(b"zTXt", b"Comment\0\0" + deflated(bytes(2**20), 1024 if big else 16))
    return pictured(folder, tiny_png(text))


@case
def png_with_many_texts(folder: Path, big: bool) -> Expected:
    text = b"".join(
        chunk(b"iTXt", b"k%d\0\1\0\0\0" % i + deflated(b"x" * (2**20 - 1), 1)) for i in range(500 if big else 70)
    )
    return pictured(folder, tiny_png(text), megabytes=100)


@case
def png_with_a_huge_profile(folder: Path, big: bool) -> Expected:
    profile = chunk(b"iCCP", b"x\0\0" + deflated(bytes(2**20), 1024 if big else 16))
    return pictured(folder, tiny_png(profile))


@case
def png_of_thousands_of_chunks(folder: Path, big: bool) -> Expected:
    return pictured(folder, tiny_png(chunk(b"abCd", b"") * (1_000_000 if big else 20_000)), megabytes=200)


@case
def seventy_mebibytes_of_zeros(folder: Path, big: bool) -> Expected:
    shard(folder, pair("a", bytes(70 * 2**20)), pair("b", bytes(2**26 if big else 2**20)))
    return Expected(pairs=GOOD + 1, skipped={TOO_LARGE: 1}, dropped={NO_IMAGE: 1}, megabytes=200)


@case
def strip(folder: Path, big: bool) -> Expected:
    return pictured(folder, png(1, 60_000, deflated(bytes(2), 60_000)), TOO_LONG)


@case
def pictures_with_holes(folder: Path, big: bool) -> Expected:
    """Of zeros, which their decoders pass over: the rest of the picture is black, grey or anything."""
    side, damaged = 2000 if big else 200, list[bytes]()
    for format in ("JPEG", "PNG", "WEBP", "AVIF", "GIF"):
        content = encoded(format, (side, side))
        half = len(content) // 2
        damaged += [content[:half] + bytes(len(content) - half), content[:half] + bytes(4096) + content[half + 4096 :]]
    shard(folder, *(pair(f"{number}", one) for number, one in enumerate(damaged)))
    return Expected(pairs=GOOD + len(damaged), dropped={DAMAGED: len(damaged)}, megabytes=128)


@case
def png_of_half_its_rows(folder: Path, big: bool) -> Expected:
    side = 5000 if big else 64
    return pictured(folder, png(side, side, deflated(b"\0" + b"\7" * side, side // 2)), DAMAGED, megabytes=128)


@case
def jpeg_that_is_cut(folder: Path, big: bool) -> Expected:
    content = encoded("JPEG", (200, 200))
    return pictured(folder, content[: len(content) * 2 // 3], DAMAGED, "jpg")


@case
def html_named_jpg(folder: Path, big: bool) -> Expected:
    return pictured(folder, b"<!doctype html><html>gone</html>", NO_IMAGE, "jpg")


@case
def jpeg_that_says_65535(folder: Path, big: bool) -> Expected:
    content = bytearray(encoded("JPEG"))
    start = content.index(b"\xff\xc0")
    content[start + 5 : start + 9] = b"\xff" * 4
    return pictured(folder, bytes(content), TOO_MANY_PIXELS, "jpg")


def with_scans(content: bytes, times: int) -> bytes:
    """A progressive JPEG whose last scan comes many times."""
    last, end = content.rindex(b"\xff\xda"), content.rindex(b"\xff\xd9")
    return content[:end] + content[last:end] * times + content[end:]


def scanned(big: bool) -> bytes:
    """A few bytes each scan, for it says little about a picture of one colour, but goes over all of it."""
    side = 5000 if big else 64
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "teal").save(buffer, "JPEG", progressive=True)
    return with_scans(buffer.getvalue(), 3000)


@case
def jpeg_of_thousands_of_scans(folder: Path, big: bool) -> Expected:
    return pictured(folder, scanned(big), DAMAGED, "jpg")


@case
def mpo_of_thousands_of_scans(folder: Path, big: bool) -> Expected:
    """The same with a sign that more pictures follow, by which Pillow calls it another format."""
    first, content = encoded("JPEG", (8, 8)), scanned(big)
    buffer = io.BytesIO()
    Image.open(io.BytesIO(first)).save(buffer, "MPO", save_all=True, append_images=[Image.open(io.BytesIO(first))])
    two = buffer.getvalue()
    at = two.index(b"\xff\xe2")
    sign = two[at : at + 2 + int.from_bytes(two[at + 2 : at + 4], "big")]
    return pictured(folder, content[:2] + sign + content[2:], DAMAGED, "jpg")


@case
def jpeg_whose_exif_goes_in_circles(folder: Path, big: bool) -> Expected:
    """64 kB of EXIF: tags that lead to the folder that they are in."""
    pointers = b"".join(struct.pack("<HHII", tag, 4, 1, 8) for tag in (0x014A, 0x8769, 0x8825, 0xA005))
    turned = struct.pack("<HHII", 0x0112, 3, 1, 6)
    many = b"".join(struct.pack("<HHII", 0xC000 + i, 7, 60_000, 8) for i in range(4000))
    content = struct.pack("<H", 4005) + turned + pointers + many + struct.pack("<I", 8)
    exif = (b"Exif\0\0II*\0\x08\0\0\0" + content)[:65_500]
    jpeg = encoded("JPEG")
    return pictured(folder, jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:], "", "jpg", 400)


def animated(folder: Path, format: str, frames: int, megabytes: int = 64, **options: Any) -> Expected:
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(frames)]
    buffer = io.BytesIO()
    pictures[0].save(buffer, format, save_all=True, append_images=pictures[1:], duration=20, **options)
    return pictured(folder, buffer.getvalue(), "", format.lower(), megabytes)


@case
def animated_gif(folder: Path, big: bool) -> Expected:
    return animated(folder, "GIF", 10_000 if big else 100)


@case
def animated_png(folder: Path, big: bool) -> Expected:
    return animated(folder, "PNG", 10_000 if big else 200)


@case
def animated_webp(folder: Path, big: bool) -> Expected:
    return animated(folder, "WEBP", 10_000 if big else 200, method=0)


@case
def animated_avif(folder: Path, big: bool) -> Expected:
    return animated(folder, "AVIF", 2000 if big else 50, speed=10)


@case
def gif_whose_frame_is_larger(folder: Path, big: bool) -> Expected:
    content = bytearray(encoded("GIF"))
    at = content.index(b",\0\0\0\0")
    content[at + 5 : at + 9] = b"\xff" * 4
    return pictured(folder, bytes(content), TOO_MANY_PIXELS, "gif")


@case
def webp_that_says_4_billion_pixels(folder: Path, big: bool) -> Expected:
    """A canvas of 65,535 x 65,535 for an animation of one small frame."""
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:])
    content = bytearray(buffer.getvalue())
    at = content.index(b"VP8X") + 12
    content[at : at + 6] = b"\xfe\xff\0\xfe\xff\0"
    return pictured(folder, bytes(content), TOO_MANY_PIXELS, "webp")
