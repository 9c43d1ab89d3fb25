"""The index of a tar shard: everything but the pictures, and where these lie, so that plain tars have random access.

```
00000.tar ─> members ─> samples (KEY.jpg + KEY.txt + KEY.json + KEY.cls) ─> Index ─> .limn/00000.tar.index
```

An index is built once, by reading the headers and texts of a shard and hashing the whole of it, and kept beside the
shard in a folder `.limn` (in the cache folder, where that cannot be written). It holds as long as the shard's size and
time stay; when only the time differs, the sha256 decides. The file is a safetensors file: arrays, nothing that runs.

Nothing is ever extracted, and no member's content is taken for more than bytes: links, devices and sparse members are
gone past and counted. Members of a sample may lie anywhere in the shard.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from tempfile import NamedTemporaryFile
from typing import IO, Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from limn.data.pairs import EMPTY, MAX_PICTURE_BYTES, PICTURES, TOO_LARGE, Pair, cleaned
from limn.data.remote import cache_folder, content_of, expect, local, name_of, size_of
from limn.errors import DataError, StorageError
from limn.files import sha256_of, write_bytes
from limn.progress import track

FORMAT = "limn index 1"
MAX_TEXT_BYTES = 2**20
MAX_INDEX_BYTES = 2**28
BLOCK = 512


# --- members ---------------------------------------------------------------------------------------------------------


class Member(NamedTuple):
    """A plain file in a tar."""

    name: str
    offset: int
    """Of its content, in bytes."""
    size: int


class CutShort(Exception):
    """A tar that ends, or stops to be one, before its end."""


def members(file: IO[bytes], noted: Counter[str]) -> Iterator[Member]:
    """The plain files of a tar (USTAR, GNU or PAX), without its content being read.

    tarfile would do, but it can be led in circles and into reading gigabytes by a header, and takes five times as long.
    Raises `CutShort` where the rest cannot be read.
    """
    descriptor, length = file.fileno(), os.fstat(file.fileno()).st_size
    offset, told = 0, dict[str, bytes]()  # what a header before the member's own said about it
    while offset < length:
        header = os.pread(descriptor, BLOCK, offset)
        if len(header) == BLOCK and not header.strip(b"\0"):
            return
        kind, content, size = header[156:157], offset + BLOCK, _size(header)
        if size is not None and told.get("size", b"").isdigit():
            size = int(told["size"])
        if size is None:
            raise CutShort(f"no tar header at byte {offset:,}")
        offset = content + -(-size // BLOCK) * BLOCK
        if content + size > length:
            raise CutShort(f"{length:,} bytes, and a member that ends at {content + size:,}")
        if kind in (b"x", b"L"):  # the next member has a longer name than fits, or more
            if size > MAX_TEXT_BYTES:
                raise CutShort(f"a name of {size:,} bytes at byte {content:,}")
            said = os.pread(descriptor, size, content)
            told |= _pax(said) if kind == b"x" else {"path": said.rstrip(b"\0")}
            continue
        if kind in (b"0", b"\0", b"7") and not any(name.startswith("GNU.sparse") for name in told):
            name = header[:100].split(b"\0")[0]
            if header[257:263] == b"ustar\0" and header[345]:
                name = header[345:500].split(b"\0")[0] + b"/" + name
            name = told.get("path", name)
            if not (kind == b"\0" and name.endswith(b"/")):  # an old way to write folders
                yield Member(name.decode("utf-8", errors="replace"), content, size)
        elif kind not in (b"5", b"g"):
            noted["shard member that is not a plain file"] += 1
            more = kind == b"S" and header[482]
            while more:  # blocks of a sparse member's map, between header and content
                block = os.pread(descriptor, BLOCK, content)
                content, offset = content + BLOCK, offset + BLOCK
                more = len(block) == BLOCK and block[504]
        told = {}


def _size(header: bytes) -> int | None:
    """The size that a header states; None if it is no header."""
    try:
        stated = int(header[148:156].split(b"\0")[0].strip() or b"0", 8)
        if len(header) < BLOCK or stated != sum(header) - sum(header[148:156]) + 8 * ord(" "):
            return None
        if header[124] & 0x80:  # binary, for what eleven octal digits cannot say
            size = int.from_bytes(header[125:136], "big") if header[124] == 0x80 else -1
        else:
            size = int(header[124:136].split(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        return None
    return size if size >= 0 else None


def _pax(told: bytes) -> dict[str, bytes]:
    """The records of a PAX header, "LENGTH NAME=VALUE\\n" each."""
    records, at = {}, 0
    while at < len(told):
        digits, _, _ = told[at : at + 20].partition(b" ")
        if not digits.isdigit() or int(digits) <= len(digits):
            break
        name, _, value = told[at + len(digits) + 1 : at + int(digits) - 1].partition(b"=")
        records[name.decode("utf-8", errors="replace")] = value
        at += int(digits)
    return records


# --- an index --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Index:
    """What a shard holds. Captions are stored end to end; `caption_ends` says where each one ends."""

    sha256: str
    size: int
    """Bytes of the shard."""
    skipped: dict[str, int]
    noted: dict[str, int]
    arrays: dict[str, np.ndarray]
    """keys, captions: uint8[bytes], UTF-8. key_ends, picture_offsets, picture_sizes, labels, held_out, first_captions
    (the number of captions before, and after the last): int64[samples (+ 1)]. caption_ends: int64[captions]; chances:
    float64[captions]."""

    def __len__(self) -> int:
        return len(self.arrays["labels"])

    @cached_property
    def captioned(self) -> np.ndarray:
        """The samples with a caption: int64, rising."""
        return np.flatnonzero(np.diff(self.arrays["first_captions"]))

    def key(self, sample: int) -> str:
        """A sample's key: the members' name up to the first dot."""
        return _text(self.arrays["keys"], self.arrays["key_ends"], sample)

    def captions(self, sample: int) -> tuple[str, ...]:
        """What is said about a sample."""
        first, last = self.arrays["first_captions"][sample : sample + 2].tolist()
        return tuple(_text(self.arrays["captions"], self.arrays["caption_ends"], i) for i in range(first, last))

    def pair(self, sample: int, path: Path | str) -> Pair:
        """A sample as a pair."""
        first, last = self.arrays["first_captions"][sample : sample + 2].tolist()
        chances = self.arrays["chances"][first:last].tolist()
        label = int(self.arrays["labels"][sample])
        return Pair(
            key=self.key(sample),
            path=path,
            offset=int(self.arrays["picture_offsets"][sample]),
            size=int(self.arrays["picture_sizes"][sample]),
            captions=self.captions(sample),
            chances=tuple(chances) if len(set(chances)) > 1 else (),
            label=label if label >= 0 else None,
            held_out=bool(self.arrays["held_out"][sample]),
        )


def _text(content: np.ndarray, ends: np.ndarray, number: int) -> str:
    return content[ends[number - 1] if number else 0 : ends[number]].tobytes().decode()


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
                raise DataError(
                    f"The shard {path}",
                    must="be a whole, plain tar file",
                    got=error,
                    then="Fetch or write the shard again.",
                ) from error
            noted[f"shard cut short ({path.name}: {error})"] += 1
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
    return Index(sha256_of(path), path.stat().st_size, dict(skipped), dict(noted), _arrays(table))


NUMBERS = ("picture_offsets", "picture_sizes", "labels", "held_out")


def _arrays(table: dict[str, list[Any]]) -> dict[str, np.ndarray]:
    keys, captions = ([text.encode() for text in table[name]] for name in ("keys", "captions"))
    return {
        **{name: np.array(table[name], dtype=np.int64) for name in NUMBERS},
        "keys": np.frombuffer(b"".join(keys), dtype=np.uint8),
        "key_ends": np.cumsum([len(key) for key in keys], dtype=np.int64),
        "captions": np.frombuffer(b"".join(captions), dtype=np.uint8),
        "caption_ends": np.cumsum([len(caption) for caption in captions], dtype=np.int64),
        "chances": np.array(table["chances"], dtype=np.float64),
        "first_captions": np.concatenate([[0], np.cumsum(table["counts"], dtype=np.int64)]),
    }


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
    several = record.get("captions")
    chances = record.get("caption_probabilities")
    captions = [str(caption) for caption in several] if isinstance(several, list) else []
    if not (isinstance(chances, list) and len(chances) == len(captions) and _are_chances(chances)):
        if chances is not None:
            noted["caption_probabilities that do not fit the captions (all are alike)"] += 1
        chances = [1.0] * len(captions)
    kept = [(text, chance) for text, chance in zip(cleaned(captions, noted), chances, strict=True) if text and chance]
    if not kept:
        only = read(".txt").strip() or str(record.get("caption") or "")
        kept = [(text, 1.0) for text in cleaned([only], noted) if text]
    label = read(".cls").strip()
    return (
        [text for text, _ in kept],
        [float(chance) for _, chance in kept],
        int(label) if label.isdigit() and len(label) < 10 else -1,
        record.get("held_out") is True,
    )


def _are_chances(values: list[Any]) -> bool:
    return all(isinstance(v, int | float) and 0 <= v < float("inf") for v in values) and sum(values) > 0


# --- beside the shard ------------------------------------------------------------------------------------------------


def index_file(path: Path | str) -> Path:
    """Where the index of a shard is kept."""
    return path.parent / ".limn" / f"{path.name}.index" if isinstance(path, Path) else _elsewhere(path)


def _elsewhere(path: Path | str) -> Path:
    """Where the index of a shard goes whose own folder cannot be written."""
    told = str(path.resolve() if isinstance(path, Path) else path)
    return cache_folder() / "indexes" / f"{hashlib.sha256(told.encode()).hexdigest()[:32]}.index"


def ensure(path: Path | str, build: Callable[[Path], Index] = build) -> dict[str, Any]:
    """Make sure that a shard's index is there and fits; returns what its file says about it, without the arrays.

    Of an address, the index that lies beside the shard is fetched, the shard itself only if there is none; either way
    the shard must have the index's sha256 whenever it is fetched from then on.
    """
    if isinstance(path, str):
        found = _described(_elsewhere(path)) or _beside(path)
        if found is None:  # an address names one content
            with local(path) as file:
                found = _keep(build(Path(file.name)), _elsewhere(path), mtime_ns=0)
        expect(path, found["sha256"])
        return found
    status = path.stat()
    for file in (index_file(path), _elsewhere(path)):
        found = _described(file)
        if found is not None and found["size"] == status.st_size:
            if found["mtime_ns"] == status.st_mtime_ns:
                return found
            if found["sha256"] == sha256_of(path):
                return _save(_load(file), path, status.st_mtime_ns)
    return _save(build(path), path, status.st_mtime_ns)


def _beside(address: str) -> dict[str, Any] | None:
    """What the index beside a shard elsewhere says, which is taken to the cache; None if there is none that fits."""
    folder, _, name = address.rpartition("/")
    content = content_of(f"{folder}/.limn/{name}.index", MAX_INDEX_BYTES)
    if content is None:
        return None
    try:
        with NamedTemporaryFile(suffix=".index") as file:
            file.write(content)
            file.flush()
            index = _load(Path(file.name)) if _described(Path(file.name)) else None
        if index is None or index.size != (size_of(address) or index.size) or not _is_sound(index):
            return None
        return _keep(index, _elsewhere(address), mtime_ns=0)
    except (SafetensorError, ValueError, KeyError, IndexError, TypeError):  # whatever another's file may hold
        return None


def _is_sound(index: Index) -> bool:
    """Whether an index that somebody else made holds together. May raise `KeyError` and the like if it does not."""
    arrays, samples = index.arrays, len(index)
    offsets, sizes = arrays["picture_offsets"], arrays["picture_sizes"]
    ends = [(arrays["key_ends"], len(arrays["keys"])), (arrays["caption_ends"], len(arrays["captions"]))]
    firsts = (arrays["first_captions"], len(arrays["caption_ends"]))
    for sample in range(samples):
        index.captions(sample)  # of bytes that are UTF-8; _keep reads the keys
    return (
        re.fullmatch("[0-9a-f]{64}", index.sha256) is not None
        and all(arrays[name].shape == (samples,) and arrays[name].dtype == np.int64 for name in (*NUMBERS, "key_ends"))
        and arrays["first_captions"].shape == (samples + 1,)
        and arrays["chances"].shape == arrays["caption_ends"].shape
        and all(
            len(of) == 0 or (of[0] >= 0 and (np.diff(of) >= 0).all() and of[-1] == end) for of, end in (*ends, firsts)
        )
        and bool(((offsets >= 0) & (sizes > 0) & (sizes <= MAX_PICTURE_BYTES) & (offsets <= index.size - sizes)).all())
        and bool(((arrays["chances"] > 0) & np.isfinite(arrays["chances"])).all())
        and all(isinstance(n, int) for told in (index.skipped, index.noted) for n in told.values())
    )


def ensure_all(paths: Sequence[Path | str], build: Callable[[Path], Index] = build) -> list[dict[str, Any] | DataError]:
    """`ensure` for several shards at once, in their order, with a bar; the error in place of a shard that is none."""

    def one(path: Path | str) -> dict[str, Any] | DataError:
        try:
            return ensure(path, build)
        except DataError as error:
            return error

    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as threads:
        return list(track(threads.map(one, paths), title="Indexing shards", total=len(paths)))


@lru_cache(maxsize=64)
def load(path: Path | str, sha256: str) -> Index:
    """The index of a shard, which `ensure` has seen; the last 64 stay in memory."""
    files = (_elsewhere(path),) if isinstance(path, str) else (index_file(path), _elsewhere(path))
    for file in files:
        if (_described(file) or {}).get("sha256") == sha256:
            return _load(file)
    raise DataError(
        f"The index of {path}",
        must="stay as it was while a command runs",
        got="another one, or none",
        then="Run the command again.",
    )


def _save(index: Index, path: Path, mtime_ns: int) -> dict[str, Any]:
    try:
        return _keep(index, index_file(path), mtime_ns)
    except StorageError:  # a folder that cannot be written
        return _keep(index, _elsewhere(path), mtime_ns)


def _keep(index: Index, file: Path, mtime_ns: int) -> dict[str, Any]:
    keys = [index.key(sample) for sample in range(len(index))]
    told = {
        "sha256": index.sha256,
        "size": index.size,
        "mtime_ns": mtime_ns,
        "pictures": len(index),
        "captioned": len(index.captioned),
        "least_key": min(keys, default=""),
        "greatest_key": max(keys, default=""),
        "skipped": index.skipped,
        "noted": index.noted,
    }
    write_bytes(file, save(index.arrays, metadata={"format": FORMAT, "told": json.dumps(told)}))
    return told


def _described(file: Path) -> dict[str, Any] | None:
    """What an index file says about itself; None if it is missing, damaged or of another format."""
    try:
        with safe_open(file, framework="np") as opened:
            metadata = opened.metadata() or {}
            return json.loads(metadata["told"]) if metadata.get("format") == FORMAT else None
    except (OSError, SafetensorError, ValueError, KeyError):
        return None


def _load(file: Path) -> Index:
    with safe_open(file, framework="np") as opened:
        told = json.loads(opened.metadata()["told"])
        arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  it is no dict
    return Index(told["sha256"], told["size"], told["skipped"], told["noted"], arrays)


# --- as parts of a source --------------------------------------------------------------------------------------------


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
        found = load(self.path, self.sha256)
        sample = int(found.captioned[index]) if self.needs_caption else index
        return found.pair(sample, self.path)
