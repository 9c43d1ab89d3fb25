"""The index of a shard or table: everything but the pictures, and where these lie, so that pairs have random access.

```
00000.tar ─> build (shards.py, tables.py) ─> Index ─> .limner/00000.tar.index ─> read_indexed ─> Source
```

An index is built once, by reading the texts of a file and hashing the whole of it, and kept beside the file in a folder
`.limner` (in the cache folder, where that cannot be written). It holds as long as the file's size and time stay; when
only the time differs, the sha256 decides. It is itself a safetensors file: arrays, nothing that runs.
"""

import hashlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import compress, pairwise
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from limner.data.pairs import MAX_IMAGE_BYTES, Pair, Part, Prefixed, Source
from limner.data.remote import cache_folder, content_of, expect, local, name_of, size_of
from limner.data.sources.kept import Kept
from limner.errors import DataError, StorageError
from limner.files import is_file_in, sha256_of, write_bytes
from limner.progress import track

FORMAT, FORMATS = "limner index 1", ("limner index 1", "limn index 1")
"""What an index file calls itself, and what is read: the same under the name that the project had before."""
FOLDER = ".limner"
MAX_TEXT_BYTES = 2**20
MAX_INDEX_BYTES = 2**28
_indexes = Kept(2**28)


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

    @property
    def nbytes(self) -> int:
        """The memory that its arrays take."""
        return sum(array.nbytes for array in self.arrays.values())

    @cached_property
    def captioned(self) -> np.ndarray:
        """The samples with a caption: int64, rising."""
        return np.flatnonzero(np.diff(self.arrays["first_captions"]))

    def key(self, sample: int) -> str:
        """A sample's key: the members' name up to the first dot."""
        return text_at(self.arrays["keys"], self.arrays["key_ends"], sample)

    def keys(self, samples: np.ndarray) -> Iterator[bytes]:
        """The keys of some samples, int64, rising, as UTF-8: ten times as fast as `key` is for each of them."""
        if len(samples) == 0:
            return iter(())
        first, last = int(samples[0]), int(samples[-1]) + 1
        ends = self.arrays["key_ends"][first:last]
        begin = self.arrays["key_ends"][first - 1] if first else 0
        content = io.BytesIO(self.arrays["keys"][begin : ends[-1]].tobytes())
        keys = map(content.read, np.diff(ends, prepend=begin).tolist())
        if len(samples) == last - first:
            return keys
        wanted = np.zeros(last - first, dtype=bool)
        wanted[samples - first] = True
        return compress(keys, wanted.tolist())

    def captions(self, sample: int) -> tuple[str, ...]:
        """What is said about a sample."""
        first, last = self.arrays["first_captions"][sample : sample + 2].tolist()
        return tuple(text_at(self.arrays["captions"], self.arrays["caption_ends"], i) for i in range(first, last))

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


def text_at(content: np.ndarray, ends: np.ndarray, number: int) -> str:
    """One of the texts that `content` (uint8) holds end to end."""
    return content[ends[number - 1] if number else 0 : ends[number]].tobytes().decode()


NUMBERS = ("picture_offsets", "picture_sizes", "labels", "held_out")


def arrays_of(table: dict[str, list[Any]]) -> dict[str, np.ndarray]:
    """The arrays of an `Index` from lists: those of `NUMBERS`, keys, captions, chances, and counts of captions."""
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


# --- beside the shard ------------------------------------------------------------------------------------------------


def index_file(path: Path | str, folder: str = FOLDER) -> Path:
    """Where the index of a shard is kept."""
    return path.parent / folder / f"{path.name}.index" if isinstance(path, Path) else _elsewhere(path)


def _elsewhere(path: Path | str) -> Path:
    """Where the index of a shard goes whose own folder cannot be written."""
    told = os.fsencode(path.resolve()) if isinstance(path, Path) else path.encode()
    return cache_folder() / "indexes" / f"{hashlib.sha256(told).hexdigest()[:32]}.index"


def ensure_index(path: Path | str, build: Callable[[Path], Index]) -> dict[str, Any]:
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
    if not path.is_file():
        raise no_shard(path, "something that is no file")
    status = path.stat()
    for file in _files(path):
        found = _described(file)
        if found is not None and found["size"] == status.st_size:
            if found["mtime_ns"] == status.st_mtime_ns:
                return found
            if found["sha256"] == sha256_of(path) and (index := _load(file)) is not None:
                return _save(index, path, status.st_mtime_ns)
    for _ in range(2):
        index, before, status = build(path), status, path.stat()
        if (status.st_size, status.st_mtime_ns) == (before.st_size, before.st_mtime_ns):
            return _save(index, path, status.st_mtime_ns)
    raise no_shard(path, "one that is being written")


def no_shard(path: Path | str, got: object) -> DataError:
    """The error of a shard that cannot be read as one."""
    return DataError(
        f"The shard {path}", must="be a whole, plain tar file", got=got, then="Fetch or write the shard again."
    )


def _files(path: Path | str) -> list[Path]:
    """The index files of a shard that are there; one beside it that a link leads to from elsewhere is none."""
    beside = [index_file(path), index_file(path, ".limn")] if isinstance(path, Path) else []
    beside = [file for file in beside if is_file_in(file.parents[1], file)]
    return [*beside, *([_elsewhere(path)] if _elsewhere(path).is_file() else [])]


def _beside(address: str) -> dict[str, Any] | None:
    """What the index beside a shard elsewhere says, which is taken to the cache; None if there is none that fits."""
    folder, _, name = address.rpartition("/")
    places = (f"{folder}/{inside}/{name}.index" for inside in (FOLDER, ".limn"))
    content = next((found for place in places if (found := content_of(place, MAX_INDEX_BYTES)) is not None), None)
    if content is None:
        return None
    with NamedTemporaryFile(suffix=".index") as file:
        file.write(content)
        file.flush()
        index = _load(Path(file.name))
    if index is None or index.size != (size_of(address) or index.size):
        return None
    return _keep(index, _elsewhere(address), mtime_ns=0)


def ensure_all(paths: Sequence[Path | str], build: Callable[[Path], Index]) -> list[dict[str, Any] | DataError]:
    """`ensure` for several shards at once, in their order, with a bar; the error in place of a shard that is none."""

    def one(path: Path | str) -> dict[str, Any] | DataError:
        try:
            return ensure_index(path, build)
        except StorageError:
            raise
        except DataError as error:
            return error
        except OSError as error:  # gone, or not to be read
            return no_shard(path, error.strerror or error)

    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as threads:
        return list(track(threads.map(one, paths), title="Indexing shards", total=len(paths)))


def load_index(path: Path | str, sha256: str, build: Callable[[Path], Index]) -> Index:
    """The index of a shard, which `ensure` has seen; the last ones stay in memory. A damaged one is built anew."""
    return _indexes.get((path, sha256), lambda: _load_of(path, sha256, build))


def _load_of(path: Path | str, sha256: str, build: Callable[[Path], Index]) -> Index:
    is_table = not str(path).endswith(".tar")
    for file in _files(path):
        index = _load(file)
        if index is not None and index.sha256 == sha256 and is_table == ("groups" in index.arrays):
            return index
    if isinstance(path, Path):
        index = build(path)
        if index.sha256 == sha256:
            _save(index, path, path.stat().st_mtime_ns)
            return index
    raise changed(path)


def changed(path: Path | str) -> DataError:
    """The error of a file that is not the one any more that its index was made of."""
    return DataError(
        f"The shard {path} and its index",
        must="be whole, and stay as they are while a command runs",
        got="other ones",
        then=f"Delete {_files(path)[0] if _files(path) else 'the index'} and run the command again.",
    )


def _save(index: Index, path: Path, mtime_ns: int) -> dict[str, Any]:
    folder = index_file(path).parent
    if not folder.is_symlink():  # which may lead anywhere
        with suppress(StorageError):  # a folder that cannot be written
            return _keep(index, index_file(path), mtime_ns)
    return _keep(index, _elsewhere(path), mtime_ns)


TOLD = {"sha256": str, "size": int, "mtime_ns": int, "pictures": int, "captioned": int, "least_key": str}
TOLD |= {"greatest_key": str, "skipped": dict, "noted": dict, "arrays": str}
"""What an index file says about itself, and of which types."""


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
        "arrays": _digest(index.arrays),
    }
    write_bytes(file, save(index.arrays, metadata={"format": FORMAT, "told": json.dumps(told)}))
    return told


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + arrays[name].tobytes())
    return digest.hexdigest()


def _described(file: Path) -> dict[str, Any] | None:
    """What an index file says about itself; None if it is damaged or of another format."""
    try:
        with safe_open(file, framework="np") as opened:
            metadata = opened.metadata() or {}
        told = json.loads(metadata["told"]) if metadata.get("format") in FORMATS else {}
        counters = [*told["skipped"].values(), *told["noted"].values()] if told else []
    except (OSError, SafetensorError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None
    fine = isinstance(told, dict) and all(type(told.get(name)) is kind for name, kind in TOLD.items())
    fine = fine and 0 <= told["captioned"] <= told["pictures"]
    return told if fine and all(type(count) is int and count >= 0 for count in counters) else None


def _load(file: Path) -> Index | None:
    """The index in a file; None if it is damaged, or does not hold together: somebody else may have made it."""
    told = _described(file)
    if told is None:
        return None
    try:
        with safe_open(file, framework="np") as opened:
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  it is no dict
        index = Index(told["sha256"], told["size"], told["skipped"], told["noted"], arrays)
        fine = _digest(arrays) == told["arrays"] and _is_sound(index)
        fine = fine and (len(index), len(index.captioned)) == (told["pictures"], told["captioned"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
    return index if fine else None


def _is_sound(index: Index) -> bool:
    """Whether all that an index points at is there. Raises `KeyError` or `ValueError` if it does not hold together."""
    arrays, samples = index.arrays, len(index.arrays["labels"])
    offsets, sizes, chances = arrays["picture_offsets"], arrays["picture_sizes"], arrays["chances"]
    numbers = [arrays[name] for name in (*NUMBERS, "key_ends")]
    counts = [*numbers, arrays["first_captions"][1:], arrays["caption_ends"], arrays["first_captions"]]
    return (
        re.fullmatch("[0-9a-f]{64}", index.sha256) is not None
        and all(array.dtype == np.int64 and array.ndim == 1 for array in counts)
        and all(len(array) == samples for array in numbers)
        and len(arrays["first_captions"]) == samples + 1
        and chances.dtype == np.float64
        and chances.shape == arrays["caption_ends"].shape
        and bool(((chances > 0) & (chances <= 1e300)).all())
        and _are_texts(arrays["keys"], arrays["key_ends"])
        and _are_texts(arrays["captions"], arrays["caption_ends"])
        and _rises(arrays["first_captions"], len(chances))
        and bool(((offsets >= 0) & (sizes > 0) & (sizes <= MAX_IMAGE_BYTES)).all())
        and (_is_sound_table(arrays) if "groups" in arrays else bool((offsets <= index.size - sizes).all()))
    )


def _is_sound_table(arrays: dict[str, np.ndarray]) -> bool:
    """The same for what tables.py adds. Its offsets are rows; reading one that is not there is an error there."""
    groups, ends = arrays["groups"], arrays["path_ends"]
    fine = all(array.dtype == np.int64 and array.shape == arrays["labels"].shape for array in (groups, ends))
    return fine and bool((groups >= 0).all()) and _are_texts(arrays["paths"], ends)


def _are_texts(content: np.ndarray, ends: np.ndarray) -> bool:
    """Whether `content` is UTF-8, cut between characters. Raises `ValueError` if it is not UTF-8."""
    if content.dtype != np.uint8 or content.ndim != 1 or not _rises(ends, len(content)):
        return False
    content.tobytes().decode()
    return bool(((content[ends[ends < len(content)]] & 0xC0) != 0x80).all())


def _rises(ends: np.ndarray, last: int) -> bool:
    if len(ends) == 0:
        return last == 0
    return bool(ends[0] >= 0 and (np.diff(ends) >= 0).all() and ends[-1] == last)


# --- as a source -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """How files of one kind become parts of a source, by their indexes."""

    build: Callable[[Path], Index]
    """Makes the index of a file."""
    parts: Callable[[Any, dict[str, Any], bool], Sequence[Part]]
    """The parts of a file, from what its index file says and whether only captioned pictures count."""
    fault: str
    """What is noted, with the file's name, of a file that cannot be read."""
    own_name: Callable[[str], str]
    """What keys begin with, from the name of their file, where two files may have the same ones."""


def read_indexed(path: Path | str, files: Sequence[Path | str], kind: Kind, *, needs_caption: bool) -> Source:
    """The pairs of files that have indexes, which are built where they are missing.

    A file that cannot be read is noted. Raises `DataError` if none can be.
    """
    skipped, noted = Counter[str](), Counter[str]()
    named, ranges = list[tuple[str, Sequence[Part]]](), list[tuple[str, str]]()
    faults = list[DataError]()
    for file, told in zip(files, ensure_all(files, kind.build), strict=True):
        if isinstance(told, DataError):
            faults.append(told)
            noted[f"{kind.fault} ({name_of(file)})"] += 1
            continue
        skipped.update(told["skipped"])
        noted.update(told["noted"])
        skipped["no caption"] += told["pictures"] - told["captioned"] if needs_caption else 0
        if told["captioned" if needs_caption else "pictures"]:
            named.append((kind.own_name(name_of(file)), kind.parts(file, told, needs_caption)))
            ranges.append((told["least_key"], told["greatest_key"]))
    if faults and len(faults) == len(files):
        raise faults[0]
    if _may_overlap(ranges):
        if len({name for name, _ in named}) < len(named):
            named = [(str(number), parts) for number, (_, parts) in enumerate(named)]
        named = [(name, [Prefixed(part, f"{name}/") for part in parts]) for name, parts in named]
    return Source(path, tuple(part for _, parts in named for part in parts), +skipped, +noted)


def _may_overlap(ranges: Iterable[tuple[str, str]]) -> bool:
    """Whether two ranges (least, greatest) have something in common."""
    return any(later[0] <= earlier[1] for earlier, later in pairwise(sorted(ranges)))
