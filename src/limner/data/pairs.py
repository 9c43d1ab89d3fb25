"""What a source of pairs is, whatever its layout: `Source = parts, each a stretch of pairs that lie together on disk`.

A part is a shard, a row group of a table or a stretch of a list. Parts are what order.py shuffles first, so that
reading stays near to sequential. A source holds no pictures, and of shards not even the captions: a pair is looked up
when it is due.
"""

import codecs
import csv
import hashlib
import json
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from limner.data.order import Order, uniform
from limner.data.remote import content_of, is_address, local
from limner.errors import DataError
from limner.files import LFS_POINTER

IMAGE_ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".bmp", ".gif"),
    *(".tif", ".tiff", ".ppm"),
)
MAX_IMAGE_BYTES = 64 * 2**20
MAX_TEXT_BYTES = 2**20
EMPTY, TOO_LARGE = "empty picture file", f"picture file over {MAX_IMAGE_BYTES >> 20} MiB"
NOT_THERE = "picture file missing, or outside of the list's folder"
MAX_CAPTION, MAX_CAPTIONS = 10_000, 1000
"""Characters of a caption, and captions of a pair; no text encoder reads as much."""
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Encodings that a text may name by its first bytes, longer marks first."""


UNMARKED = {
    re.compile(rb"[^\0]\0\0\0"): "utf-32-le",
    re.compile(rb"\0\0\0[^\0]"): "utf-32-be",
    re.compile(rb"[^\0]\0[^\0]\0"): "utf-16-le",
    re.compile(rb"\0[^\0]\0[^\0]"): "utf-16-be",
}
"""Encodings without a mark, by how a text in Latin letters begins."""


def encoding_of(content: bytes) -> str:
    """The encoding of a text, by its first four bytes: what its mark says, or where its zeros are; else UTF-8."""
    marked = (name for mark, name in MARKS.items() if content.startswith(mark))
    unmarked = (name for begin, name in UNMARKED.items() if begin.match(content))
    return next(marked, None) or next(unmarked, "utf-8")


LISTED = 1024
"""The number of pairs in a part of a list or folder."""


@dataclass(frozen=True)
class Pair:
    """A picture's place on disk and what is said about it."""

    key: str
    path: Path | str
    """The file that holds the picture: its own, or a shard. Text: the address of one that is fetched when it is due."""
    offset: int
    size: int
    captions: tuple[str, ...] = ()
    """One or more sentences; training draws one of them each time."""
    chances: tuple[float, ...] = ()
    """How likely each caption is to be drawn; empty: all alike."""
    label: int | None = None
    """Index of the class, in labelled test sets."""
    labels: tuple[int, ...] | None = None
    """Indices of all classes of a multi-label picture, rising; (): none of them; None: it is not one of a multi-label
    set."""
    held_out: bool = False
    """The class was kept out of training on purpose."""

    def read(self) -> bytes:
        """The picture's encoded bytes."""
        with local(self.path) as file:
            file.seek(self.offset)
            return file.read(self.size)

    def caption(self, draw: float) -> str:
        """One of the captions, by a uniform number in [0, 1)."""
        if not self.chances:
            return self.captions[int(draw * len(self.captions))]
        ends = np.cumsum(self.chances)
        number = int(np.searchsorted(ends, draw * ends[-1], side="right"))
        return self.captions[min(number, len(self.captions) - 1)]  # rounding


@runtime_checkable
class Part(Protocol):
    """A stretch of pairs that lie together on disk."""

    @property
    def name(self) -> str:
        """What people know it by."""
        ...

    def digest(self) -> str:
        """A sha256 that tells its content from another one's."""
        ...

    def __len__(self) -> int: ...

    def pair(self, index: int) -> Pair:
        """The pair at `index`."""
        ...

    def keys(self) -> Iterator[bytes]:
        """The keys of all pairs, in their order, as `bytes_of` has them: in bulk, without making the pairs."""
        ...

    def loose(self) -> Iterator[Path]:
        """The files of images that the digest knows by path and size alone."""
        ...


@dataclass(frozen=True)
class Listed:
    """Pairs that are in memory: of a folder or a list."""

    name: str
    pairs: tuple[Pair, ...]

    def digest(self) -> str:
        """A sha256 of keys, captions, labels and picture sizes, not of the pictures' own bytes."""
        digest = hashlib.sha256()
        for pair in self.pairs:
            told = [pair.key, pair.captions, pair.chances, pair.label, pair.held_out, pair.size]
            told += [] if pair.labels is None else [pair.labels]
            digest.update(json.dumps(told).encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.pairs)

    def pair(self, index: int) -> Pair:
        """The pair at `index`."""
        return self.pairs[index]

    def keys(self) -> Iterator[bytes]:
        """The keys of all pairs."""
        return (bytes_of(pair.key) for pair in self.pairs)

    def loose(self) -> Iterator[Path]:
        """All of them but those at addresses."""
        return (pair.path for pair in self.pairs if isinstance(pair.path, Path))


@dataclass(frozen=True)
class Chosen:
    """Some pairs of a part."""

    part: Part
    indices: np.ndarray
    """Where they are in it, rising: uint32, of a part with more pairs than that can count int64."""

    @property
    def name(self) -> str:
        """The part's name."""
        return self.part.name

    def digest(self) -> str:
        """A sha256 of the part's digest and the indices, as int64."""
        return hashlib.sha256(self.part.digest().encode() + self.indices.astype(np.int64).tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.indices)

    def pair(self, index: int) -> Pair:
        """The pair at `index`."""
        return self.part.pair(int(self.indices[index]))

    def keys(self) -> Iterator[bytes]:
        """The keys of the chosen pairs."""
        keys = list(self.part.keys())
        return (keys[index] for index in self.indices.tolist())

    def loose(self) -> Iterator[Path]:
        """Those of the chosen pairs."""
        loose = set(self.part.loose())
        paths = (self.pair(index).path for index in range(len(self) if loose else 0))
        return (path for path in paths if isinstance(path, Path) and path in loose)


def innermost(part: Part) -> Part:
    """The stretch on disk that a part is, or is taken from."""
    return innermost(part.part) if isinstance(part, Chosen | Prefixed) else part


def chosen(part: Part, wanted: np.ndarray) -> Chosen:
    """The pairs of a part where `wanted`, bool[pairs], is true; four bytes of memory each."""
    number = np.uint32 if len(part) < 2**32 else np.int64
    return Chosen(part, np.flatnonzero(wanted).astype(number))


@dataclass(frozen=True)
class Prefixed:
    """A part of one of several sources: its keys begin with more than their own, where others have the same ones."""

    part: Part
    prefix: str
    labels: tuple[int, ...] = ()
    """The labels of the mixture by the part's own, where sources name their classes by texts."""

    @property
    def name(self) -> str:
        """The part's name."""
        return self.part.name

    def digest(self) -> str:
        """The part's digest."""
        return self.part.digest()

    def __len__(self) -> int:
        return len(self.part)

    def pair(self, index: int) -> Pair:
        """The pair at `index`."""
        pair = self.part.pair(index)
        label = self.labels[pair.label] if self.labels and pair.label is not None else pair.label
        return replace(pair, key=self.prefix + pair.key, label=label)

    def keys(self) -> Iterator[bytes]:
        """The keys of all pairs, what they begin with included."""
        return map(bytes_of(self.prefix).__add__, self.part.keys())

    def loose(self) -> Iterator[Path]:
        """The part's."""
        return self.part.loose()


@dataclass(frozen=True)
class Source:
    """A sequence of pairs and what was left out on the way."""

    path: Path | str
    parts: tuple[Part, ...]
    skipped: Counter[str] = field(default_factory=Counter)
    """Pairs that cannot be used, by reason."""
    noted: Counter[str] = field(default_factory=Counter)
    """What else is not as it should be, by reason; no pair is lost by it."""
    shares: tuple[tuple[int, float], ...] = ()
    """For a mixture: the number of parts that belong to each of its sources, and how often an epoch sees these."""
    classes: tuple[str, ...] = ()
    """What the labels count, in their order, where the data itself names its classes: the texts in a list, sorted; the
    names of a table's ClassLabel as they come, where two may be the same; empty: labels are numbers of lines of
    classnames.txt."""

    @cached_property
    def starts(self) -> np.ndarray:
        """The index of each part's first pair, and the number of all pairs: int64[parts + 1]."""
        return np.concatenate([[0], np.cumsum([len(part) for part in self.parts], dtype=np.int64)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect_right(self.starts, index) - 1
        return self.parts[part].pair(index - int(self.starts[part]))

    def __iter__(self) -> Iterator[Pair]:
        for part in self.parts:
            for index in range(len(part)):
                yield part.pair(index)

    def captions(self) -> Iterator[str]:
        """Every caption of every pair."""
        for pair in self:
            yield from pair.captions

    @cached_property
    def fingerprint(self) -> str:
        """A sha256 over the parts' digests, in order: of shards the whole files, of folders and lists everything but
        the pictures' own bytes, where another picture of exactly the same size is not noticed."""
        digest = hashlib.sha256()
        for part in self.parts:
            digest.update(f"{part.digest()} {len(part)}\n".encode())
        if self.shares:
            digest.update(json.dumps(self.shares).encode())
        if self.classes:
            digest.update(json.dumps(self.classes).encode())
        return digest.hexdigest()

    @property
    def skipped_share(self) -> float:
        """The share of the pairs there that cannot be used."""
        skipped = self.skipped.total()
        return skipped / max(1, skipped + len(self))

    def where(self, wanted: Callable[[Pair], bool]) -> "Source":
        """The pairs that are `wanted`, part by part; four bytes of memory each."""
        parts = (
            chosen(part, np.fromiter((wanted(part.pair(i)) for i in range(len(part))), dtype=bool))
            for part in self.parts
        )
        return replace(self, parts=tuple(parts))

    def split(self, share: float) -> tuple["Source", "Source"]:
        """The source less about `share` of its pairs, and these. Which ones depends on the keys alone.

        Four bytes of memory and about a microsecond for each pair, most of it for the sha256 of its key.
        """
        kept, kept_back = list[Part](), list[Part]()
        for part in self.parts:
            is_kept_back = uniform(0, "holdout", 0, _numbers_of(part.keys())) < share
            kept.append(chosen(part, ~is_kept_back))
            kept_back.append(chosen(part, is_kept_back))
        return replace(self, parts=tuple(kept)), replace(self, parts=tuple(kept_back))


def bytes_of(key: str) -> bytes:
    """A key as UTF-8; bytes of a file's name that are none stay as they are."""
    return key.encode("utf-8", "surrogateescape")


def _numbers_of(keys: Iterable[bytes]) -> np.ndarray:
    """The first seven bytes of each key's sha256, most significant first, as numbers: uint64[keys]."""
    sha256 = hashlib.sha256
    digests = b"".join([sha256(key).digest() for key in keys])
    return np.frombuffer(digests, dtype=">u8")[::4].astype(np.uint64) >> np.uint64(8)


def listed(
    path: Path | str, pairs: Iterable[Pair], skipped: Counter[str] | None = None, noted: Counter[str] | None = None
) -> Source:
    """A source of pairs in memory."""
    pairs = tuple(pairs)
    parts = (
        Listed(f"pairs {start:,} to {min(start + LISTED, len(pairs)):,}", pairs[start : start + LISTED])
        for start in range(0, len(pairs), LISTED)
    )
    return Source(path, tuple(parts), skipped or Counter(), noted or Counter())


def is_hidden(name: str) -> bool:
    """Whether a file or folder is passed by for its name: a hidden one, or what archives and servers leave."""
    return name.startswith(".") or name in ("__MACOSX", "@eaDir")


def unusable(size: int) -> str | None:
    """Why a picture file of `size` bytes cannot be used; None if it can."""
    return EMPTY if size == 0 else TOO_LARGE if size > MAX_IMAGE_BYTES else None


def sifted(
    path: Path | str, pairs: Iterable[Pair], skipped: Counter[str], noted: Counter[str], *, needs_caption: bool
) -> Source:
    """A source, in memory, of those `pairs` that can be used; the others are counted in `skipped` by reason.

    The counters may be those that `pairs` itself counts in while it is gone through.
    """
    usable = list[Pair]()
    for pair in pairs:
        reason = "no caption" if needs_caption and not pair.captions else unusable(pair.size)
        if reason:
            skipped[reason] += 1
        else:
            usable.append(pair)
    return listed(path, usable, +skipped, +noted)


def mixture(path: str, sources: Sequence[Source], weights: Sequence[float]) -> Source:
    """Several sources as one. A weight says how often an epoch sees each pair of its source: 2 twice, 0.5 every other
    epoch. Raises `DataError` for weights that do not fit, and for labels that are texts in one and numbers in another.
    """
    weights = weights or [1.0] * len(sources)
    if len(weights) != len(sources) or not all(0 < weight < float("inf") for weight in weights):
        raise DataError(
            f"The weights of {path}",
            must=f"be {len(sources)} positive numbers, one for each source",
            got=" ".join(map(str, weights)),
            then="Give --data-weights as many numbers as --data has parts between :: signs.",
        )
    classes, places = merged([source.classes for source in sources])
    numbered = (source for source in sources if classes and not source.classes)
    if any(pair.label is not None or pair.labels is not None for source in numbered for pair in source):
        raise DataError(
            f"The labels of {path}",
            must="be texts in all of the sources, or numbers in all",
            got="some of each",
            then="Measure on one after the other.",
        )
    return Source(
        path,
        tuple(
            Prefixed(part, f"{number}/", places[number])
            for number, source in enumerate(sources)
            for part in source.parts
        ),
        sum((source.skipped for source in sources), Counter()),
        sum((source.noted for source in sources), Counter()),
        tuple((len(source.parts), float(weight)) for source, weight in zip(sources, weights, strict=True)),
        classes,
    )


def merged(classes: Sequence[tuple[str, ...]]) -> tuple[tuple[str, ...], list[tuple[int, ...]]]:
    """The classes of several sources as one list, and the places in it of those of each source.

    As they are where all sources that name theirs agree; else one for each name, sorted. Where a source has two classes
    of one name, nothing says which of them another source means: all of that name stay apart.
    """
    different = {one for one in classes if one}
    if len(different) < 2:
        return next(iter(different), ()), [tuple(range(len(one))) for one in classes]
    doubled = {name for one in different for name, count in Counter(one).items() if count > 1}
    known = [
        [(name, number, place) if name in doubled else (name, -1, -1) for place, name in enumerate(one)]
        for number, one in enumerate(classes)
    ]
    places = {key: place for place, key in enumerate(sorted({key for one in known for key in one}))}
    return tuple(name for name, _, _ in places), [tuple(places[key] for key in one) for one in known]


def cleaned(captions: Iterable[object], noted: Counter[str], most: int = MAX_CAPTION) -> list[str]:
    """Captions as text without spaces around them, "" for what is none.

    Bytes are those of a file, and may be UTF-16 or UTF-32 (`encoding_of`). What is not UTF-8 is replaced, what is
    longer than `most` characters cut; both are counted, and values that are no text.
    """
    texts = []
    for caption in captions:
        encoding = encoding_of(caption) if isinstance(caption, bytes) else "utf-8"
        if isinstance(caption, str):
            try:
                caption = caption.encode("utf-8", "surrogateescape")  # bytes that a reader could not decode
            except UnicodeEncodeError:
                caption = caption.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
        if not isinstance(caption, bytes):
            noted["caption that is no text"] += 1
            caption = b""
        if caption.startswith(LFS_POINTER):
            noted["caption that Git LFS has in another place (git lfs pull fetches it)"] += 1
            caption = b""
        text = caption.decode(encoding, errors="replace")
        if "\ufffd" in text and (encoding != "utf-8" or text.encode() != caption):
            noted["caption that is not UTF-8 (a sign stands for each bad byte)"] += 1
        noted["caption with NUL signs (each is a blank)"] += "\0" in text.rstrip("\0")
        noted[CUT] += len(text) > most
        texts.append(text.removeprefix("\ufeff")[:most].replace("\0", " ").strip())
    return texts


def label_of(value: Any, noted: Counter[str]) -> str:
    """A class as a text: its number in digits, or its name; "" where there is none. What is neither is noted."""
    if value is None or value != value or (isinstance(value, str) and value.strip().lower() == "nan"):
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        noted["label that is neither a number nor a text (not used)"] += 1
        return ""
    text = str(value).strip()
    if re.fullmatch(r"-\d+(\.0*)?", text):
        noted["label below 0 (no class)"] += 1
        return ""
    return re.sub(r"^(\d+)\.0*$", r"\1", text)  # a column with gaps has been through pandas


def label_number(value: Any, noted: Counter[str]) -> int:
    """A class by its number, where classes have no names; -1 where there is none. What is none is noted."""
    text = label_of(value, noted)
    if is_number(text):
        return int(text)
    noted["label that is no whole number (not used)"] += text != ""
    return -1


def is_number(label: str) -> bool:
    """Whether a label is the number of a class, and not its name."""
    return label.isascii() and label.isdigit() and len(label) < 10


LINE_END = re.compile(r"\r\n|\r|\n")
CUT = f"caption over {MAX_CAPTION:,} characters (cut)"
SEVERAL_LINES = "caption file of several lines (one caption; with retrieval in dataset_type.txt beside: one a line)"


def lines_are_captions(folder: Path) -> bool:
    """Whether each line of a caption file is a caption: dataset_type.txt in `folder`, or the one around it, says
    retrieval, as CLIP_benchmark's sets do."""
    files = [folder / "dataset_type.txt", folder.parent / "dataset_type.txt"]
    said = next((lines_of(file) for file in files if file.is_file()), [])
    return [line.strip().lower() for line in said] == ["retrieval"]


def lines_of(file: Path) -> list[str]:
    """The lines of a text file up to the last that is not empty, in UTF-8 or what its first bytes say.

    Raises `DataError` for another encoding.
    """
    return _lines_in(file.read_bytes(), str(file))


def _lines_in(content: bytes, name: str) -> list[str]:
    try:
        text = content.decode(encoding_of(content)).removeprefix("\ufeff").rstrip()
    except UnicodeDecodeError as error:
        raise DataError(f"The file {name}", must="be text in UTF-8", got=error, then="Save it as UTF-8.") from error
    return LINE_END.split(text) if text else []


def lines_beside(path: Path | str, name: str) -> list[str]:
    """The lines of the text file `name` that lies beside the data at `path`, or in the folder around it; none if there
    is no such file. Raises `DataError` if several sources, a::b, have other ones.
    """
    found = [
        _lines_beside_address(one, name) if is_address(one) else _lines_beside(Path(one), name)
        for one in str(path).split("::")
    ]
    if any(lines != found[0] for lines in found):
        raise DataError(
            f"The {name} of {path}",
            must="be the same beside each source",
            got="another one beside each, or none beside some",
            then="Put the same file beside each, or give them one after the other.",
        )
    return found[0]


def csv_beside(path: Path | str, name: str) -> list[tuple[str, ...]]:
    """The rows of the csv file `name` beside the data at `path`, found as `lines_beside` does: (id, name, further
    names ...), cells stripped, without a header (folder,name or id,name); none if there is no such file.

    Raises `DataError` for a row without an id and a name, and for an id that another row has.
    """
    rows: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(lines_beside(path, name), start=1):
        try:
            cells = [cell.strip() for cell in next(csv.reader([line], skipinitialspace=True, strict=True), [])]
        except csv.Error:
            cells = [line]
        while cells and not cells[-1]:
            cells.pop()  # a spreadsheet ends all rows at the same column
        is_header = not rows and [cell.lower() for cell in cells[:2]] in (["folder", "name"], ["id", "name"])
        if is_header or not cells:
            continue
        if len(cells) < 2 or not all(cells) or cells[0] in rows:
            raise DataError(
                f"Line {number} of the {name} of {path}",
                must="be id,name or id,name,another name, each id once",
                got=line.strip()[:60],
                then='Correct that line; a name with a comma stands in quotes: 3,"Washington, D.C.".',
            )
        rows[cells[0]] = tuple(cells)
    return list(rows.values())


def _lines_beside_address(address: str, name: str) -> list[str]:
    folder = address.rstrip("/")
    folder = folder.rpartition("/")[0] if folder.endswith((".tar", "}")) else folder
    contents = (
        content_of(f"{one}/{name}", MAX_TEXT_BYTES) for one in (folder, folder.rpartition("/")[0]) if "://" in one
    )
    content = next((one for one in contents if one is not None), b"")
    return _lines_in(content, f"{folder}/{name}")


def _lines_beside(path: Path, name: str) -> list[str]:
    folder = path if path.is_dir() else path.parent
    around = folder.parent, folder.resolve().parent  # of a link to a folder, around what it leads to
    places = (place / name for place in (folder, *around))
    file = next((place for place in places if place.is_file()), None)
    return lines_of(file) if file else []


def parted(captions: Sequence[str], noted: Counter[str], *, in_lines: bool) -> list[str]:
    """The captions in caption files, as they are, or `in_lines` one for each line that is not empty; long ones cut."""
    if in_lines:
        captions = [line.strip() for caption in captions for line in LINE_END.split(caption) if line.strip()]
    noted[SEVERAL_LINES] += 0 if in_lines else sum("\n" in caption for caption in captions)
    noted[CUT] += sum(len(caption) > MAX_CAPTION for caption in captions)
    return [caption[:MAX_CAPTION] for caption in captions]


def notes(source: "Source") -> str:
    """What is noted of a source, in words: "Noted 2 times: hidden file or folder (passed by)", a line each."""
    return "\n".join(f"Noted {count:,} times: {reason}." for reason, count in source.noted.most_common())


def describe(skipped: Counter[str]) -> str:
    """What was left out, in words: "2 skipped: no caption; 1 skipped: empty picture file"."""
    return "; ".join(f"{count} skipped: {reason}" for reason, count in skipped.most_common()) or "nothing skipped"


def order_of(source: Source, seed: int) -> Order:
    """The order in which a run of this seed sees the pairs of a source."""
    counts = [len(part) for part in source.parts]
    shares = source.shares or ((len(counts), 1.0),)
    ends = np.cumsum([parts for parts, _ in shares])
    stocks = [counts[end - parts : end] for end, (parts, _) in zip(ends, shares, strict=True)]
    return Order(stocks, [weight for _, weight in shares], seed=seed)
