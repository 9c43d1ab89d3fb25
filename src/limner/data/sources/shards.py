"""Tar shards: what is in one (its index), and many of them as a source."""

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import IO, Any

from limner.data.pairs import (
    EMPTY,
    MAX_CAPTIONS,
    MAX_PICTURE_BYTES,
    PICTURES,
    TOO_LARGE,
    Pair,
    Part,
    Prefixed,
    Source,
    cleaned,
)
from limner.data.remote import name_of
from limner.data.sources.index import MAX_TEXT_BYTES, NUMBERS, Index, _changed, _no_shard, arrays_of, ensure_all, load
from limner.data.sources.tar import CutShort, Member, members
from limner.errors import DataError
from limner.files import sha256_of


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


def _read_shards(path: Path | str, shards: Sequence[Path | str], *, needs_caption: bool) -> Source:
    """Shards by their indexes. One that is no tar is counted; where no other is left, it is an error."""
    missing = next((shard for shard in shards if isinstance(shard, Path) and not shard.exists()), None)
    if missing is not None or not shards:
        raise DataError(
            f"The shards {path}",
            must="all be there",
            got="none" if missing is None else f"no file {missing}",
            then="Check the path and the numbers between its braces.",
        )
    skipped, noted = Counter[str](), Counter[str]()
    parts: list[Part] = []
    ranges: list[tuple[str, str]] = []
    faults: list[DataError] = []
    for shard, told in zip(shards, ensure_all(shards, build), strict=True):
        if isinstance(told, DataError):
            faults.append(told)
            noted[f"shard that is no tar file ({name_of(shard)})"] += 1
            continue
        skipped.update(told["skipped"])
        noted.update(told["noted"])
        skipped["no caption"] += told["pictures"] - told["captioned"] if needs_caption else 0
        count = told["captioned" if needs_caption else "pictures"]
        if count:
            parts.append(Shard(shard, told["sha256"], count, needs_caption))
            ranges.append((told["least_key"], told["greatest_key"]))
    if faults and len(faults) == len(shards):
        raise faults[0]
    ranges.sort()
    if any(later[0] <= earlier[1] for earlier, later in pairwise(ranges)):
        # keys that come in several shards, or may: made different by the shard's name, or its number
        names = [part.name.removesuffix(".tar") for part in parts]
        names = names if len(set(names)) == len(names) else [str(number) for number in range(len(parts))]
        parts = [Prefixed(part, f"{name}/") for part, name in zip(parts, names, strict=True)]
    return Source(path, tuple(parts), +skipped, +noted)


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
                raise _no_shard(path, error) from error
            noted[f"shard cut short ({name_of(path)}: {error})"] += 1
        table: dict[str, list[Any]] = {name: [] for name in (*NUMBERS, "keys", "captions", "chances", "counts")}
        for key, parts in samples.items():
            picture = next((parts[extension] for extension in PICTURES if extension in parts), None)
            if picture is None:
                dotted = any(PurePosixPath(extension).suffix in PICTURES for extension in parts)
                skipped["no picture (dots in the name: the key ends at the first)" if dotted else "no picture"] += 1
                continue
            if not 0 < picture.size <= MAX_PICTURE_BYTES:
                skipped[EMPTY if picture.size == 0 else TOO_LARGE] += 1
                continue
            captions, chances, label, held_out = _annotations(file, parts, noted)
            table["keys"].append(key)
            table["picture_offsets"].append(picture.offset)
            table["picture_sizes"].append(picture.size)
            table["labels"].append(label)
            table["held_out"].append(held_out)
            table["counts"].append(len(captions))
            table["captions"] += captions
            table["chances"] += chances
    return Index(sha256_of(path), path.stat().st_size, dict(+skipped), dict(+noted), arrays_of(table))


def _annotations(
    file: IO[bytes], parts: dict[str, Member], noted: Counter[str]
) -> tuple[list[str], list[float], int, bool]:
    """Captions, their chances, label (-1: none) and split of a sample.

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
        kept = [(text, 1.0) for text in cleaned([read(".txt").strip() or record.get("caption") or ""], noted)]
    kept = [(text, chance) for text, chance in kept if text]
    label = read(".cls").strip()
    return (
        [text for text, _ in kept],
        [chance for _, chance in kept],
        int(label) if label.isdigit() and len(label) < 10 else -1,
        record.get("held_out") is True,
    )


def _are_chances(values: list[Any]) -> bool:
    fine = all(type(value) in (int, float) and 0 <= value <= 1e300 for value in values)
    return fine and 1e-300 < sum(map(float, values)) <= 1e300


@dataclass(frozen=True)
class Shard:
    """A tar shard as a part of a source."""

    path: Path | str
    sha256: str
    count: int
    needs_caption: bool

    @property
    def name(self) -> str:
        """The shard's file name."""
        return name_of(self.path)

    def digest(self) -> str:
        """The shard's sha256."""
        return self.sha256

    def __len__(self) -> int:
        return self.count

    def pair(self, index: int) -> Pair:
        """The pair at `index`."""
        found = load(self.path, self.sha256, build)
        if self.count != (len(found.captioned) if self.needs_caption else len(found)):
            raise _changed(self.path)
        sample = int(found.captioned[index]) if self.needs_caption else index
        return found.pair(sample, self.path)
