"""Tar shards: WebDataset's layout, in a folder, by a pattern, or at an address.

```
00000.tar ─> members ─> samples (KEY.jpg + .txt + .json + .cls or .npy) ─> Index ─> Shard, a part of a source
```

Nothing is ever extracted, and no member's content is taken for more than bytes: links, devices and sparse members are
gone past and counted. Members of a sample may lie anywhere in the shard.
"""

import hashlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from limner.data.pairs import (
    CUT,
    IMAGE_ENDINGS,
    MAX_CAPTION,
    MAX_CAPTIONS,
    SEVERAL_LINES,
    Pair,
    Source,
    cleaned,
    label_number,
    lines_are_captions,
    parted,
    unusable,
)
from limner.data.remote import content_of, is_address, listing, name_of
from limner.data.sources.beside import passed_by
from limner.data.sources.index import (
    MAX_TEXT_BYTES,
    NUMBERS,
    SEVERAL,
    Index,
    Kind,
    arrays_of,
    changed,
    load_index,
    no_shard,
    read_indexed,
)
from limner.data.sources.tar import CutShort, Member, members
from limner.errors import DataError
from limner.files import sha256_of

DOTTED = "no picture (dots in the name: the key ends at the first)"
SEVERAL_IMAGES = "picture of the same key as another (one of each key is read)"
NO_ROW = ".npy that is no row of 0 and 1, one for each class (not used)"
BESIDE_CLS = ".npy beside a .cls (the .cls is used)"
OTHER_LENGTH = ".npy of another number of classes than the first in its shard"
MAX_HEADER = 1024
"""Characters of the header of an .npy: Python's own parser reads them."""


def are_shards(path: str) -> bool:
    """Whether `path` is an address, a pattern with braces, a tar file or a folder of these."""
    here = Path(path)
    if is_address(path) or ("{" in path and not here.exists()):
        return True
    return any(here.glob("*.tar")) if here.is_dir() else here.suffix == ".tar" and here.exists()


def read_shards(path: str, *, needs_caption: bool) -> Source:
    """The pairs of the shards that `path` means. One that is no tar is noted; where no other is left, it is an error.

    Raises `DataError` for shards that are not there.
    """
    here = Path(path)
    if is_address(path):
        addresses = [one for pattern in expanded(path) for one in listing(pattern)]
        return _read(path, [one for one in addresses if one.endswith(".tar")], needs_caption=needs_caption)
    if not here.exists():
        return _read(path, [Path(one) for one in expanded(path)], needs_caption=needs_caption)
    if not here.is_dir():
        return _read(here, [here], needs_caption=needs_caption)
    shards = sorted(here.glob("*.tar"))
    source = _read(here, shards, needs_caption=needs_caption)
    about = {shard.with_suffix(".parquet") for shard in shards}  # img2dataset's, of the same pairs
    return replace(source, skipped=source.skipped + passed_by(here, {*shards, *about}.__contains__))


def expanded(pattern: str) -> list[str]:
    """What braces stand for: a{0..2} is a0, a1, a2, zeros in front kept; {x,y} is x, y."""
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if braces is None:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", braces[1])
    if numbers:
        first, last = numbers.groups()
        choices = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    else:
        choices = braces[1].split(",")
    return [one for choice in choices for one in expanded(pattern[: braces.start()] + choice + pattern[braces.end() :])]


def _read(path: Path | str, shards: Sequence[Path | str], *, needs_caption: bool) -> Source:
    missing = next((shard for shard in shards if isinstance(shard, Path) and not shard.exists()), None)
    if missing is not None or not shards:
        raise DataError(
            f"The shards {path}",
            must="all be there",
            got="none" if missing is None else f"no file {missing}",
            then="Check the path and the numbers between its braces.",
        )
    kind = Kind(build, _parts, fault="shard that is no tar file", own_name=lambda name: name.removesuffix(".tar"))
    source = read_indexed(path, shards, kind, needs_caption=needs_caption)
    if all(_in_lines(shard) for shard in shards):
        of_whole = Counter({note: source.noted[note] for note in (SEVERAL_LINES, CUT)})
        return replace(source, noted=source.noted - of_whole)
    return source


# --- the index of a shard --------------------------------------------------------------------------------------------


def build(path: Path) -> Index:
    """Read a shard's headers and texts, and hash it. Raises `DataError` if nothing in it is a tar."""
    skipped, noted = Counter[str](), Counter[str]()
    samples: dict[str, dict[str, Member]] = {}
    with path.open("rb") as file:
        try:
            for member in members(file, noted):
                name = PurePosixPath(member.name)
                stem, _, extension = name.name.partition(".")
                sample = samples.setdefault((name.parent / stem).as_posix(), {}) if stem else None
                if sample is None:
                    noted["shard member without a name before its dot"] += 1
                elif f".{extension.lower()}" in sample:
                    noted["shard member of the same name as another"] += 1
                else:
                    sample[f".{extension.lower()}"] = member
        except CutShort as error:
            if not samples:
                raise no_shard(path, error) from error
            noted[f"shard cut short ({name_of(path)}: {error})"] += 1
        table: dict[str, list[Any]] = {name: [] for name in (*NUMBERS, "keys", "captions", "chances", "counts")}
        table["label_sets"], lengths = [], list[int]()
        for key, parts in samples.items():
            images = [parts[extension] for extension in IMAGE_ENDINGS if extension in parts]
            dotted = [one for one in parts if one not in IMAGE_ENDINGS and PurePosixPath(one).suffix in IMAGE_ENDINGS]
            skipped[DOTTED] += len(dotted)
            skipped["no picture"] += not images and not dotted
            skipped[SEVERAL_IMAGES] += max(0, len(images) - 1)
            if not images:
                continue
            image = images[0]
            if reason := unusable(image.size):
                skipped[reason] += 1
                continue
            captions, chances, label, row, held_out = _annotations(file, parts, noted)
            lengths += [] if row is None else [len(row)]
            table["keys"].append(key)
            table["picture_offsets"].append(image.offset)
            table["picture_sizes"].append(image.size)
            table["labels"].append(label if row is None else SEVERAL)
            table["label_sets"].append([] if row is None else np.flatnonzero(row).tolist())
            table["held_out"].append(held_out)
            table["counts"].append(len(captions))
            table["captions"] += captions
            table["chances"] += chances
        noted[OTHER_LENGTH] += sum(length != lengths[0] for length in lengths)
    return Index(sha256_of(path), path.stat().st_size, dict(+skipped), dict(+noted), arrays_of(table))


def _annotations(
    file: IO[bytes], parts: dict[str, Member], noted: Counter[str]
) -> tuple[list[str], list[float], int, np.ndarray | None, bool]:
    """Captions, their chances, label (-1: none), row of 0 and 1 in a multi-label set, and split of a sample.

    Several captions in the .json win over the one in the .txt, that over the one in the .json.
    """

    def read(extension: str) -> bytes:
        member = parts.get(extension)
        if member is None:
            return b""
        if member.size > MAX_TEXT_BYTES:
            noted[f"{extension} over {MAX_TEXT_BYTES >> 20} MiB (not read)"] += 1
            return b""
        return os.pread(file.fileno(), member.size, member.offset)

    record: Any = {}
    if ".json" in parts:
        try:
            record = json.loads(read(".json") or b"{}")
        except (ValueError, RecursionError):
            noted["unreadable .json (the pair's .txt is used)"] += 1
    record = record if isinstance(record, dict) else {}
    said, chances = record.get("captions"), record.get("caption_probabilities")
    several = said if isinstance(said, list) else []
    if not (isinstance(chances, list) and len(chances) == len(several) and _are_chances(chances)):
        noted["caption_probabilities that do not fit the captions (all are alike)"] += chances is not None
        chances = [1.0] * len(several)
    likely = [(text, float(chance)) for text, chance in zip(several, chances, strict=True) if chance][:MAX_CAPTIONS]
    noted[f"captions after the first {MAX_CAPTIONS:,} of a pair (not used)"] += len(several) > MAX_CAPTIONS
    kept = list(zip(cleaned([text for text, _ in likely], noted), (chance for _, chance in likely), strict=True))
    if not any(text for text, _ in kept):
        text = cleaned([read(".txt").strip() or record.get("caption") or ""], noted, most=MAX_TEXT_BYTES)[0]
        kept = [(text if "\n" in text else text[:MAX_CAPTION], 1.0)]
        noted[SEVERAL_LINES] += "\n" in text
        noted[CUT] += len(text) > MAX_CAPTION
    kept = [(text, chance) for text, chance in kept if text]
    label = read(".cls").decode("utf-8", "replace")
    noted[BESIDE_CLS] += ".npy" in parts and ".cls" in parts
    row = None
    if ".npy" in parts and ".cls" not in parts:
        row = label_row(read(".npy"))
        noted[NO_ROW] += row is None and parts[".npy"].size <= MAX_TEXT_BYTES  # a larger one is noted already
    return (
        [text for text, _ in kept],
        [chance for _, chance in kept],
        label_number(label, noted),
        row,
        record.get("held_out") is True,
    )


def label_row(content: bytes) -> np.ndarray | None:
    """What an .npy says of a picture of a multi-label set, 0 or 1 for each class: [classes], of any type of numbers;
    None if it is anything else.

    Only the header is left to numpy; the rest is numbers whose bytes are counted first, and never a pickle.
    """
    file = io.BytesIO(content)
    try:
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(file)]
        shape, _, dtype = read_header(file, max_header_size=MAX_HEADER)
    except Exception:  # of any kind: numpy reads it with Python's parser, and with its own for types
        return None
    length = shape[-1] if len(shape) == 1 or (len(shape) == 2 and shape[0] == 1) else 0
    if dtype.kind not in "biuf" or length < 1 or length * dtype.itemsize != len(content) - file.tell():
        return None
    row = np.frombuffer(content, np.uint8 if dtype.kind == "b" else dtype, offset=file.tell())
    return row if bool(((row == 0) | (row == 1)).all()) else None


def _are_chances(values: list[Any]) -> bool:
    fine = all(type(value) in (int, float) and 0 <= value <= 1e300 for value in values)
    return fine and 1e-300 < sum(map(float, values)) <= 1e300


# --- a shard as a part of a source -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shard:
    """A tar shard as a part of a source."""

    path: Path | str
    sha256: str
    count: int
    needs_caption: bool
    in_lines: bool = False
    """A single caption of several lines, which the index keeps whole, is a caption for each line."""

    @property
    def name(self) -> str:
        """The shard's file name."""
        return name_of(self.path)

    def digest(self) -> str:
        """The shard's sha256; of one whose captions stand in lines another one, made of it."""
        return hashlib.sha256(f"{self.sha256} in lines".encode()).hexdigest() if self.in_lines else self.sha256

    def __len__(self) -> int:
        return self.count

    def pair(self, index: int) -> Pair:
        """The pair at `index`."""
        found = self._index()
        sample = int(found.captioned[index]) if self.needs_caption else index
        pair = found.pair(sample, self.path)
        if len(pair.captions) != 1:
            return pair
        return replace(pair, captions=tuple(parted(pair.captions, Counter(), in_lines=self.in_lines)))

    def keys(self) -> Iterator[bytes]:
        """The keys of all pairs, from the index."""
        found = self._index()
        return found.keys(found.captioned if self.needs_caption else np.arange(self.count))

    def loose(self) -> Iterator[Path]:
        """None: the digest is of the whole shard."""
        return iter(())

    def _index(self) -> Index:
        found = load_index(self.path, self.sha256, build)
        if self.count != (len(found.captioned) if self.needs_caption else len(found)):
            raise changed(self.path)
        return found


def _parts(path: Path | str, told: dict[str, Any], needs_caption: bool) -> list[Shard]:
    count = told["captioned" if needs_caption else "pictures"]
    return [Shard(path, told["sha256"], count, needs_caption, _in_lines(path))]


def _in_lines(path: Path | str) -> bool:
    """Whether dataset_type.txt beside a shard, or in the folder around, says that lines are captions."""
    if isinstance(path, Path):
        return lines_are_captions(path.parent)
    folder = path.rpartition("/")[0]
    return _is_retrieval(folder) or _is_retrieval(folder.rpartition("/")[0])


@lru_cache(maxsize=64)  # a look over the network, the same for all shards of a folder
def _is_retrieval(folder: str) -> bool:
    said = content_of(f"{folder}/dataset_type.txt", MAX_TEXT_BYTES) if "://" in folder else None
    return (said or b"").strip().lower() == b"retrieval"
