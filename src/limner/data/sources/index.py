"""The index of a shard or table: everything but the pictures, and where these lie, so that pairs have random access.

```
00000.tar ─> build (shards.py, tables.py) ─> Index ─> .limner/00000.tar.index ─> read_indexed ─> Source
```

An index is built once, by reading the texts of a file and hashing the whole of it, and kept beside the file in a folder
`.limner`, in the cache folder where that cannot be written, and where that cannot be written either in memory, with a
word. It is itself a safetensors file: arrays, nothing that runs.

It holds as long as four facts about the file stay: size, modification time, change time and inode. The first two are
kept by `cp -p`, `rsync -t` and whatever sets fixed times; the third no program can set, and the fourth differs where
another file took the name. A file whose size is the same and another fact not was touched, moved or copied, or replaced
by another: its sha256 decides, over the whole of it, and the index is written anew with the new facts. A digest of some
of its blocks would be quicker and might miss a caption. So shards that come with their indexes are read once in each
place that they are copied to, and at each start only where nothing can be written.

A clock of files ticks every few milliseconds, and what is written twice between two ticks looks like one: a file that
changed just now is left until the next tick before it is read.
"""

import hashlib
import io
import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, compress, pairwise
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from limner.data.pairs import MAX_IMAGE_BYTES, MAX_TEXT_BYTES, NOT_THERE, Pair, Part, Prefixed, Source, merged
from limner.data.remote import cache_folder, content_of, expect, local, name_of, size_of
from limner.data.sources.kept import Kept
from limner.errors import DataError, StorageError
from limner.files import is_file_in, sha256_of, write_bytes
from limner.progress import say, track

FORMAT = "limner index 4"
"""What an index file calls itself; one of another format is made anew."""
FOLDER = ".limner"
MAX_INDEX_BYTES = 2**28
TICK_SECONDS, COARSE_TICK_SECONDS = 0.02, 2.0
"""Time in which a file may change twice and look as if it had once; where times are in whole seconds, the second."""
SEVERAL = -2
"""What `labels` holds for a picture of a multi-label set; -1: no class."""
SOME_NAMED = "table beside others whose classes have other names, or none (labels stay numbers)"
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
    float64[captions]. Where a label is `SEVERAL`, label_sets: int64[labels of all samples, end to end], set_ends:
    int64[samples]."""
    classes: tuple[str, ...] = ()
    """What the labels count, where the file says so."""

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

    def label_set(self, sample: int) -> tuple[int, ...]:
        """All classes of a picture of a multi-label set."""
        ends = self.arrays["set_ends"]
        return tuple(self.arrays["label_sets"][ends[sample - 1] if sample else 0 : ends[sample]].tolist())

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
            labels=self.label_set(sample) if label == SEVERAL else None,
            held_out=bool(self.arrays["held_out"][sample]),
        )


def text_at(content: np.ndarray, ends: np.ndarray, number: int) -> str:
    """One of the texts that `content` (uint8) holds end to end."""
    return content[ends[number - 1] if number else 0 : ends[number]].tobytes().decode()


NUMBERS = ("picture_offsets", "picture_sizes", "labels", "held_out")


def arrays_of(table: dict[str, list[Any]]) -> dict[str, np.ndarray]:
    """The arrays of an `Index` from lists: those of `NUMBERS`, keys, captions, chances, and counts of captions; and of
    label_sets, a list for each sample, where a label is `SEVERAL`."""
    keys, captions = ([text.encode() for text in table[name]] for name in ("keys", "captions"))
    sets = table["label_sets"] if SEVERAL in table["labels"] else []
    of_sets = {
        "label_sets": np.array(list(chain.from_iterable(sets)), dtype=np.int64),
        "set_ends": np.cumsum([len(one) for one in sets], dtype=np.int64),
    }
    return (of_sets if sets else {}) | {
        **{name: np.array(table[name], dtype=np.int64) for name in NUMBERS},
        "keys": np.frombuffer(b"".join(keys), dtype=np.uint8),
        "key_ends": np.cumsum([len(key) for key in keys], dtype=np.int64),
        "captions": np.frombuffer(b"".join(captions), dtype=np.uint8),
        "caption_ends": np.cumsum([len(caption) for caption in captions], dtype=np.int64),
        "chances": np.array(table["chances"], dtype=np.float64),
        "first_captions": np.concatenate([[0], np.cumsum(table["counts"], dtype=np.int64)]),
    }


# --- what a file is known by -----------------------------------------------------------------------------------------


class Facts(NamedTuple):
    """What tells a file from another one, and from itself before it was changed."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


ELSEWHERE = Facts(0, 0, 0, 0)
"""Of a shard at an address, which names one content."""
_seen: dict[tuple[Path, str], Facts] = {}
"""By path and sha256: the facts of files that had this content when somebody looked."""
_looking = threading.Lock()


def facts_of(path: Path) -> Facts:
    """What a file is known by."""
    status = path.stat()
    return Facts(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def _settled(path: Path) -> Facts:
    """The same, once it is so long since the file changed that another change will not look like that one."""
    facts = facts_of(path)
    tick = TICK_SECONDS if facts.ctime_ns % 10**9 else COARSE_TICK_SECONDS
    since = time.time() - facts.ctime_ns / 1e9
    if 0 <= since < tick:
        time.sleep(tick - since)
        facts = facts_of(path)
    return facts


def _check(path: Path, sha256: str) -> None:
    """Raise `DataError` if the file at `path` has changed since it had this content; one that is gone is no matter."""
    try:
        facts = facts_of(path)
        if _seen.get((path, sha256)) == facts:
            return
        with _looking:  # one at a time: files are hashed here
            facts = _settled(path)
            is_known = any(told["sha256"] == sha256 and _facts_in(told) == facts for told, _ in _known(path))
            if not is_known and _seen.get((path, sha256)) != facts and sha256_of(path) != sha256:
                raise changed(path)
            _seen[path, sha256] = facts
    except OSError:  # reading says so
        return


# --- beside the shard ------------------------------------------------------------------------------------------------

_unkept: dict[Path | str, tuple[dict[str, Any], Index]] = {}
"""Indexes that no file could be written for, and what would have been said there."""


def index_file(path: Path | str) -> Path:
    """Where the index of a shard is kept."""
    return path.parent / FOLDER / f"{path.name}.index" if isinstance(path, Path) else _elsewhere(path)


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
        found = next((told for told, _ in _known(path)), None) or _beside(path)
        if found is None:
            with local(path) as file:
                found = _save(build(Path(file.name)), path, ELSEWHERE)
        expect(path, found["sha256"])
        return found
    if not path.is_file():
        raise no_shard(path, "something that is no file")
    for _ in range(2):
        facts = _settled(path)
        told = next((told for told, _ in _known(path) if _facts_in(told) == facts), None)
        are_missing = told is not None and NOT_THERE in told["skipped"]  # images beside a table, which may be there now
        if told is None or are_missing:
            _indexes.clear()
            index = (None if are_missing else _of_same_content(path, facts.size)) or build(path)
            if facts_of(path) != facts:
                continue
            told = _save(index, path, facts)
        _seen[path, told["sha256"]] = facts
        return told
    raise no_shard(path, "one that is being written")


def _of_same_content(path: Path, size: int) -> Index | None:
    """The index, of those that are there, of a file with the sha256 that the one at `path` has now."""
    known = [(told, load) for told, load in _known(path) if told["size"] == size]
    sha256 = sha256_of(path) if known else ""
    fitting = (load() for told, load in known if told["sha256"] == sha256)
    return next((index for index in fitting if index is not None), None)


def no_shard(path: Path | str, got: object) -> DataError:
    """The error of a shard that cannot be read as one."""
    return DataError(
        f"The shard {path}", must="be a whole, plain tar file", got=got, then="Fetch or write the shard again."
    )


def _files(path: Path | str) -> list[Path]:
    """The index files of a shard that are there; one that a link leads to from elsewhere is none."""
    files = [index_file(path)] if isinstance(path, Path) else []
    with suppress(StorageError):  # no cache folder
        files.append(_elsewhere(path))
    return [file for file in files if is_file_in([file.parents[1].resolve()], file)]


def _known(path: Path | str) -> Iterator[tuple[dict[str, Any], Callable[[], Index | None]]]:
    """What is said of each index of a shard that is there, and how its arrays are loaded."""
    if (unkept := _unkept.get(path)) is not None:
        told, index = unkept
        yield told, lambda: index
    for file in _files(path):
        if (told := _described(file)) is not None:
            yield told, partial(_load, file)


def _beside(address: str) -> dict[str, Any] | None:
    """What the index beside a shard elsewhere says, which is taken to the cache; None if there is none that fits."""
    folder, _, name = address.rpartition("/")
    content = content_of(f"{folder}/{FOLDER}/{name}.index", MAX_INDEX_BYTES)
    if content is None:
        return None
    with NamedTemporaryFile(suffix=".index") as file:
        file.write(content)
        file.flush()
        index = _load(Path(file.name))
    if index is None or index.size != (size_of(address) or index.size):
        return None
    return _save(index, address, ELSEWHERE)


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

    before = set(_unkept)
    with ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as threads:
        found = list(track(threads.map(one, paths), title="Indexing shards", total=len(paths)))
    if unkept := [path for path in paths if path in _unkept and path not in before]:
        say(_told_of_unkept(unkept))
    return found


def _told_of_unkept(paths: Sequence[Path | str]) -> str:
    """The word on indexes that are in memory only."""
    try:
        cache = str(cache_folder())
    except StorageError:
        cache = "a cache folder, for there is no home folder,"
    folder = paths[0].parent if isinstance(paths[0], Path) else None
    return (
        f"{'The index of 1 file is' if len(paths) == 1 else f'Indexes of {len(paths):,} files are'} kept in memory "
        "only, and each start reads the whole again: "
        + (f"{cache} cannot be written" if folder is None else f"neither {folder} nor {cache} can be written")
        + " (set LIMNER_CACHE to a folder that can)."
    )


def load_index(path: Path | str, sha256: str, build: Callable[[Path], Index]) -> Index:
    """The index of a shard, which `ensure_index` has seen; the last ones stay in memory. A damaged one is built anew.

    Raises `DataError` for a shard that has changed since.
    """
    if isinstance(path, Path):
        _check(path, sha256)
    return _indexes.get((path, sha256), lambda: _load_of(path, sha256, build))


def _load_of(path: Path | str, sha256: str, build: Callable[[Path], Index]) -> Index:
    is_table = not str(path).endswith(".tar")
    for told, load in _known(path):
        index = load() if told["sha256"] == sha256 else None
        if index is not None and is_table == ("groups" in index.arrays):
            return index
    if isinstance(path, Path):
        facts = _settled(path)
        index = build(path)
        if index.sha256 == sha256 and facts_of(path) == facts:
            _save(index, path, facts)
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


def _save(index: Index, path: Path | str, facts: Facts) -> dict[str, Any]:
    """Keep an index in the first place that can be written, or in memory."""
    told = _told(index, facts)
    content = save(index.arrays, metadata={"format": FORMAT, "told": json.dumps(told)})
    beside = isinstance(path, Path) and not index_file(path).parent.is_symlink()  # which may lead anywhere
    for place in (index_file, _elsewhere) if beside else (_elsewhere,):
        with suppress(StorageError):  # a folder that cannot be written, a full disk
            write_bytes(place(path), content)
            _unkept.pop(path, None)
            return told
    _unkept[path] = told, index
    return told


TOLD = {"sha256": str, "size": int, "mtime_ns": int, "ctime_ns": int, "inode": int, "pictures": int, "captioned": int}
TOLD |= {"least_key": str, "greatest_key": str, "skipped": dict, "noted": dict, "arrays": str, "classes": list}
"""What an index file says about itself, and of which types."""


def _told(index: Index, facts: Facts) -> dict[str, Any]:
    keys = [index.key(sample) for sample in range(len(index))]
    return facts._asdict() | {
        "sha256": index.sha256,
        "size": index.size,
        "pictures": len(index),
        "captioned": len(index.captioned),
        "least_key": min(keys, default=""),
        "greatest_key": max(keys, default=""),
        "skipped": index.skipped,
        "noted": index.noted,
        "arrays": _digest(index.arrays),
        "classes": list(index.classes),
    }


def _facts_in(told: dict[str, Any]) -> Facts:
    return Facts(*(told[name] for name in Facts._fields))


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
        told: Any = json.loads(metadata["told"]) if metadata.get("format") == FORMAT else {}
        counters = [*told["skipped"].values(), *told["noted"].values()] if told else []
    except (OSError, SafetensorError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None
    fine = isinstance(told, dict) and all(type(told.get(name)) is kind for name, kind in TOLD.items())
    fine = fine and 0 <= told["captioned"] <= told["pictures"] and all(type(name) is str for name in told["classes"])
    return told if fine and all(type(count) is int and count >= 0 for count in counters) else None


def _load(file: Path) -> Index | None:
    """The index in a file; None if it is damaged, or does not hold together: somebody else may have made it."""
    told = _described(file)
    if told is None:
        return None
    try:
        with safe_open(file, framework="np") as opened:
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  it is no dict
        index = Index(told["sha256"], told["size"], told["skipped"], told["noted"], arrays, tuple(told["classes"]))
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
        and not (index.classes and bool((arrays["labels"] >= len(index.classes)).any()))
        and _are_sets(arrays)
        and (_is_sound_table(arrays) if "groups" in arrays else bool((offsets <= index.size - sizes).all()))
    )


def _are_sets(arrays: dict[str, np.ndarray]) -> bool:
    """Whether the classes of each picture of a multi-label set, if there are some, are there and rise."""
    if not (arrays["labels"] == SEVERAL).any():
        return True
    sets, ends = arrays["label_sets"], arrays["set_ends"]
    if any(array.dtype != np.int64 or array.ndim != 1 for array in (sets, ends)) or not _rises(ends, len(sets)):
        return False
    rises = np.diff(sets, prepend=-1) > 0
    rises[ends[ends < len(sets)]] = True  # where the next picture's begin
    return len(ends) == len(arrays["labels"]) and bool((rises & (sets >= 0) & (sets < MAX_TEXT_BYTES)).all())


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
    classes = list[tuple[str, ...]]()
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
            classes.append(tuple(told["classes"]))
    if faults and len(faults) == len(files):
        raise faults[0]
    if any(classes) and not all(classes):
        noted[SOME_NAMED] += len(classes)
        classes = []
    together, places = merged(classes)
    if len(set(classes)) > 1:
        named = [
            (name, [Prefixed(part, "", labels) for part in parts])
            for (name, parts), labels in zip(named, places, strict=True)
        ]
    if _may_overlap(ranges):
        if len({name for name, _ in named}) < len(named):
            named = [(str(number), parts) for number, (_, parts) in enumerate(named)]
        named = [(name, [Prefixed(part, f"{name}/") for part in parts]) for name, parts in named]
    return Source(path, tuple(part for _, parts in named for part in parts), +skipped, +noted, classes=together)


def _may_overlap(ranges: Iterable[tuple[str, str]]) -> bool:
    """Whether two ranges (least, greatest) have something in common."""
    return any(later[0] <= earlier[1] for earlier, later in pairwise(sorted(ranges)))
