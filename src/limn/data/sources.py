"""Pairs on disk, whatever their layout, as one `Source`.

```
folder of pictures + .txt  ─┐
list (csv, tsv, jsonl)      ├─>  read_pairs(path)  ─>  Source: keys, captions, where each picture's bytes lie
WebDataset shards (.tar)   ─┘
```

A source holds captions and byte positions, never pictures: opening one reads tar headers and texts only. A pair that
cannot be used (no caption, an empty file, ...) is left out and counted by reason in `Source.skipped`.
"""

import csv
import hashlib
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, Any

from limn.config import RunConfig
from limn.data.order import uniform
from limn.errors import DataError

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
MAX_PICTURE_BYTES = 64 * 2**20
MAX_TEXT_BYTES = 2**20
PATH_COLUMNS = ("path", "filepath", "file_path", "image_path", "image", "img", "file", "filename", "file_name")
CAPTION_COLUMNS = ("caption", "text", "sentence", "title", "description", "alt", "label")


@dataclass(frozen=True)
class Pair:
    """A picture's place on disk and what is said about it."""

    key: str
    path: Path
    """The file that holds the picture: its own, or a shard."""
    offset: int
    size: int
    captions: tuple[str, ...] = ()
    """One or more sentences; training draws one of them each time."""
    label: int | None = None
    """Index of the class, in labelled test sets."""
    held_out: bool = False
    """The class was kept out of training on purpose."""

    def read(self) -> bytes:
        """The picture's encoded bytes."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True)
class Source:
    """A sequence of pairs and what was left out on the way."""

    path: Path
    pairs: tuple[Pair, ...]
    skipped: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Pair:
        return self.pairs[index]

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.pairs)

    def captions(self) -> Iterator[str]:
        """Every caption of every pair."""
        for pair in self.pairs:
            yield from pair.captions

    @cached_property
    def fingerprint(self) -> str:
        """A sha256 over keys, captions, labels and picture sizes, in order.

        The pictures' own bytes are not read: another picture of exactly the same size is not noticed.
        """
        digest = hashlib.sha256()
        for pair in self.pairs:
            digest.update(json.dumps([pair.key, pair.captions, pair.label, pair.held_out, pair.size]).encode())
        return digest.hexdigest()

    def where(self, wanted: Callable[[Pair], bool]) -> "Source":
        """The pairs that are `wanted`."""
        return replace(self, pairs=tuple(pair for pair in self.pairs if wanted(pair)))

    def split(self, share: float) -> tuple["Source", "Source"]:
        """The source less about `share` of its pairs, and these. Which ones depends on the keys alone."""

        def is_kept_back(pair: Pair) -> bool:
            number = int.from_bytes(hashlib.sha256(pair.key.encode()).digest()[:7], "big")
            return float(uniform(0, "holdout", 0, number)) < share

        return self.where(lambda pair: not is_kept_back(pair)), self.where(is_kept_back)


def read_pairs(path: str | Path) -> Source:
    """The captioned pictures at `path`; see the module's docstring for the layouts.

    Raises `DataError` if there is no usable pair.
    """
    return _read(Path(path), needs_caption=True)


def read_pictures(path: str | Path) -> Source:
    """The pictures at `path`, captioned or not: a folder, a list or shards.

    Raises `DataError` if there is no picture.
    """
    return _read(Path(path), needs_caption=False)


def _read(path: Path, *, needs_caption: bool) -> Source:
    if not path.exists():
        raise DataError(
            f"The data path {path}",
            must="exist",
            got="no such file or folder",
            then="Check its spelling; limn data demo writes data/demo, and limn data demo --source digits data/digits.",
        )
    skipped: Counter[str] = Counter()
    shards = sorted(path.glob("*.tar")) if path.is_dir() else [path] if path.suffix == ".tar" else []
    if shards:
        found = _read_shards(shards, skipped)
        loose = sum(file.suffix.lower() in PICTURES for file in path.iterdir()) if path.is_dir() else 0
        skipped["picture file beside shards"] += loose
    elif path.is_dir():
        found = _read_folder(path, skipped)
    elif path.suffix.lower() in (".csv", ".tsv", ".jsonl"):
        found = _read_list(path, skipped)
    else:
        raise DataError(
            f"The data path {path}",
            must="be a folder, a .csv, .tsv or .jsonl list, or a .tar shard",
            got=f"a file ending in {path.suffix!r}",
            then="Give the folder that holds the pictures or a list with path and caption columns.",
        )
    pairs = []
    for pair in found:
        if needs_caption and not pair.captions:
            skipped["no caption"] += 1
        elif pair.size == 0:
            skipped["empty picture file"] += 1
        elif pair.size > MAX_PICTURE_BYTES:
            skipped[f"picture file over {MAX_PICTURE_BYTES >> 20} MiB"] += 1
        else:
            pairs.append(pair)
    skipped = +skipped  # without the reasons that never came up
    if not pairs:
        advice = (
            "Paths are read from the list's own folder; put the list beside the pictures."
            if path.is_file() and not shards
            else "Put KEY.txt beside KEY.jpg, or give a list or shards."
        )
        raise DataError(
            f"The data at {path}",
            must=f"hold pictures ({', '.join(PICTURES)})" + (" with captions" if needs_caption else ""),
            got=f"none, and {describe(skipped)}" if skipped else "none",
            then=advice,
        )
    return Source(path=path, pairs=tuple(pairs), skipped=skipped)


def training_pairs(config: RunConfig) -> Source:
    """The pairs that a run trains on: all of them when it has a test set, else less those kept back."""
    assert config.data is not None
    source = read_pairs(config.data)
    return source if config.test is not None else source.split(config.holdout)[0]


def held_back_pairs(config: RunConfig) -> Source | None:
    """The pairs that a run without a test set kept back from training, if any."""
    assert config.data is not None
    kept_back = read_pairs(config.data).split(config.holdout)[1]
    return kept_back if len(kept_back) else None


def describe(skipped: Counter[str]) -> str:
    """What was left out, in words: "2 skipped: no caption; 1 skipped: empty picture file"."""
    return "; ".join(f"{count} skipped: {reason}" for reason, count in skipped.most_common()) or "nothing skipped"


# --- a folder --------------------------------------------------------------------------------------------------------


def _read_folder(folder: Path, skipped: Counter[str]) -> Iterator[Pair]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in PICTURES or path.name.startswith("."):
            continue
        if not _is_file_in(folder, path):
            skipped["broken link, or one that leads out of the folder"] += 1
            continue
        texts = (path.with_suffix(suffix) for suffix in (".txt", ".TXT"))
        text = next((text for text in texts if _is_file_in(folder, text)), None)
        yield Pair(
            key=path.relative_to(folder).as_posix(),
            path=path,
            offset=0,
            size=path.stat().st_size,
            captions=_captions(_read_text(text, skipped)) if text else (),
        )


def _is_file_in(folder: Path, path: Path) -> bool:
    """Whether `path`, links followed, is a file inside `folder`."""
    try:
        return path.is_file() and path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # too long a name, a NUL in it, links in a circle
        return False


def _read_text(path: Path, skipped: Counter[str]) -> bytes:
    with path.open("rb") as file:
        content = file.read(MAX_TEXT_BYTES + 1)
    if len(content) <= MAX_TEXT_BYTES:
        return content
    skipped[f"caption file over {MAX_TEXT_BYTES >> 20} MiB (the pair has no caption)"] += 1
    return b""


# --- a list ----------------------------------------------------------------------------------------------------------


def _read_list(path: Path, skipped: Counter[str]) -> Iterator[Pair]:
    """The rows of a list, a picture with several rows once, with all of its captions."""
    folder = path.parent.resolve()
    captions_of: dict[Path, list[str]] = {}
    read = _jsonl_rows if path.suffix.lower() == ".jsonl" else _csv_rows
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            for name, captions in read(path, file, folder):
                picture = folder / name
                if not _is_file_in(folder, picture):
                    skipped["picture file missing, or outside of the list's folder"] += 1
                else:
                    captions_of.setdefault(picture.resolve(), []).extend(_captions(*(c.encode() for c in captions)))
    except (csv.Error, json.JSONDecodeError) as error:
        raise DataError(
            f"The list {path}", must="be readable to its end", got=error, then="Correct that line."
        ) from error
    for picture, captions in captions_of.items():
        yield Pair(
            key=picture.relative_to(folder).as_posix(),
            path=picture,
            offset=0,
            size=picture.stat().st_size,
            captions=tuple(captions),
        )


def _jsonl_rows(path: Path, file: IO[str], _folder: Path) -> Iterator[tuple[str, list[str]]]:
    """(picture path, captions) of each line, which holds a JSON object; a caption may be a list of them."""
    columns: tuple[str, str] | None = None
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        record = json.loads(line)
        if not isinstance(record, dict):
            raise DataError(
                f"Line {number} of {path}", must="be a JSON object", got=line.strip()[:60], then="Correct that line."
            )
        columns = columns or _columns(path, list(record))
        picture, caption = record.get(columns[0]), record.get(columns[1])
        several = caption if isinstance(caption, list) else [caption]
        yield str(picture or ""), [str(one) for one in several if one is not None]


def _csv_rows(path: Path, file: IO[str], folder: Path) -> Iterator[tuple[str, list[str]]]:
    """(picture path, captions) of each row; the delimiter and whether there is a header are found out."""
    head = file.readline()
    file.seek(0)
    if path.suffix.lower() == ".tsv":  # tabs part the cells and nothing else has a meaning
        dialect: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    else:
        dialect = {
            "delimiter": max(",;\t|", key=lambda sign: _fits(next(csv.reader([head], delimiter=sign), []), folder))
        }
    rows = csv.reader(file, **dialect)
    first = next(rows, [])
    if _fits(first, folder) == LIST_WITHOUT_HEADER:
        picture, caption = (0, 1) if _is_file_in(folder, folder / first[0]) else (1, 0)
        yield first[picture], [first[caption]]
    else:
        picture, caption = (first.index(name) for name in _columns(path, first))
    for row in rows:
        if row:
            yield (row[picture], [row[caption]]) if len(row) > max(picture, caption) else ("", [])


LIST_WITH_HEADER, LIST_WITHOUT_HEADER = 1001, 1000


def _fits(cells: list[str], folder: Path) -> int:
    """How well the cells of the first line look like a list's: a header, a picture and its caption, or many cells."""
    names = {cell.strip().lower() for cell in cells}
    if names & set(PATH_COLUMNS) and names & set(CAPTION_COLUMNS):
        return LIST_WITH_HEADER
    if len(cells) == 2 and any(cell and _is_file_in(folder, folder / cell) for cell in cells):
        return LIST_WITHOUT_HEADER
    return len(cells)


def _columns(path: Path, columns: list[str]) -> tuple[str, str]:
    """The names of the picture column and the caption column."""
    known = {column.strip().lower(): column for column in columns}
    picture = next((known[name] for name in PATH_COLUMNS if name in known), None)
    caption = next((known[name] for name in CAPTION_COLUMNS if name in known), None)
    if picture is None or caption is None:
        known_names = (
            f"a picture column ({', '.join(PATH_COLUMNS)}) and a caption column ({', '.join(CAPTION_COLUMNS)})"
        )
        raise DataError(
            f"The header of {path}",
            must=f"name {known_names}",
            got=f"columns found: {', '.join(map(repr, columns)) or 'none'}",
            then="Rename the two columns in the first line.",
        )
    return picture, caption


# --- shards ----------------------------------------------------------------------------------------------------------


def _read_shards(shards: list[Path], skipped: Counter[str]) -> Iterator[Pair]:
    """The samples of several tar files; a key that an earlier shard had too gets the shard's name in front."""
    seen: set[str] = set()
    for shard in shards:
        for pair in _read_shard(shard, skipped):
            unique = pair if pair.key not in seen else replace(pair, key=f"{shard.stem}/{pair.key}")
            seen.add(unique.key)
            yield unique


def _read_shard(path: Path, skipped: Counter[str]) -> Iterator[Pair]:
    """The samples of a tar file: members whose names agree up to the first dot after the last slash."""
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                stem, _, extension = name.name.partition(".")
                key, extension = (name.parent / stem).as_posix(), f".{extension.lower()}"
                if not member.isreg() or member.sparse is not None:
                    skipped["shard member that is not a plain file"] += not member.isdir()
                elif stem and extension in samples.setdefault(key, {}):
                    skipped["shard member of the same name as another"] += 1
                elif stem:
                    samples[key][extension] = member
            for key, members in samples.items():
                picture = next((members[extension] for extension in PICTURES if extension in members), None)
                if picture is None:
                    skipped["no picture"] += 1
                    continue
                yield Pair(
                    key=key,
                    path=path,
                    offset=picture.offset_data,
                    size=picture.size,
                    **_annotations(tar, members, skipped),
                )
    except (tarfile.TarError, EOFError) as error:
        raise DataError(
            f"The shard {path}", must="be a whole, plain tar file", got=error, then="Fetch or write the shard again."
        ) from error


def _annotations(tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo], skipped: Counter[str]) -> dict[str, Any]:
    """Captions, label and split of a sample. Several captions in the .json win over the one in the .txt."""

    def text(extension: str) -> bytes:
        member = members.get(extension)
        file = tar.extractfile(member) if member is not None and member.size <= MAX_TEXT_BYTES else None
        return file.read() if file is not None else b""

    record: Any = {}
    if ".json" in members:
        try:
            record = json.loads(text(".json") or b"{}")
        except ValueError:
            skipped["unreadable .json (the pair's .txt is used)"] += 1
    record = record if isinstance(record, dict) else {}
    several = record.get("captions")
    captions = _captions(*(str(caption).encode() for caption in several)) if isinstance(several, list) else ()
    label = text(".cls").strip()
    return {
        "captions": captions or _captions(text(".txt")),
        "label": int(label) if label.isdigit() else None,
        "held_out": record.get("held_out") is True,
    }


def _captions(*texts: bytes) -> tuple[str, ...]:
    decoded: Iterable[str] = (text.decode("utf-8", errors="replace").strip() for text in texts)
    return tuple(text for text in decoded if text)
