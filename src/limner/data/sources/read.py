"""Pairs on disk or elsewhere, whatever their layout, as one `Source`.

```
folder of pictures + .txt                       ─┐
list (csv, tsv, jsonl, parquet)                  │
Hugging Face datasets directory                  ├─>  read_pairs(path)  ─>  Source
WebDataset shards: a folder, a/{00000..00099}.tar│
several of these: a::b                           │
an address of shards: s3://..., hf://...        ─┘
```

Opening a source reads headers and texts, of shards their index (data/index.py), never pictures. A pair that cannot be
used (no caption, an empty file, ...) is left out and counted by reason in `Source.skipped`.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from limner.config import RunConfig
from limner.data.pairs import (
    EMPTY,
    MAX_PICTURE_BYTES,
    PICTURES,
    TOO_LARGE,
    Pair,
    Source,
    describe,
    listed,
    mixture,
)
from limner.data.remote import is_address, listing
from limner.data.sources.folders import _read_folder
from limner.data.sources.lists import read_list
from limner.data.sources.shards import _read_shards, expanded
from limner.data.sources.tables import is_table_folder, read_tables
from limner.errors import DataError
from limner.files import write_json

LISTS = (".csv", ".tsv", ".jsonl")


def read_pairs(path: str | Path, weights: Sequence[float] = ()) -> Source:
    """The captioned pictures at `path`; see the module's docstring for the layouts.

    Of several sources, `a::b`, an epoch sees each pair once, or as often as `weights` say.
    Raises `DataError` if there is no usable pair.
    """
    return _read(path, weights, needs_caption=True)


def read_pictures(path: str | Path) -> Source:
    """The pictures at `path`, captioned or not.

    Raises `DataError` if there is no picture.
    """
    return _read(path, (), needs_caption=False)


def absolute(path: str) -> str:
    """`path` so that it means the same from any folder."""
    several = path.split("::")
    return "::".join(
        one if is_address(one) or one.startswith("pipe:") else str(Path(one).absolute()) for one in several
    )


def write_manifest(file: Path, source: Source) -> None:
    """Write what a source is made of: each part's name, digest (of a whole shard its sha256) and number of pairs, and
    the fingerprint of all."""
    parts = [{"name": part.name, "digest": part.digest(), "pairs": len(part)} for part in source.parts]
    write_json(file, {"format": 1, "fingerprint": source.fingerprint, "pairs": len(source), "parts": parts})


def training_pairs(config: RunConfig) -> Source:
    """The pairs that a run trains on: all of them when it has a test set, else less those kept back."""
    assert config.data is not None
    source = read_pairs(config.data, config.data_weights)
    return source if config.test is not None or config.holdout == 0 else source.split(config.holdout)[0]


def held_back_pairs(config: RunConfig) -> Source | None:
    """The pairs that a run without a test set kept back from training, if any."""
    assert config.data is not None
    kept_back = read_pairs(config.data, config.data_weights).split(config.holdout)[1]
    return kept_back if len(kept_back) else None


def _read(path: str | Path, weights: Sequence[float], *, needs_caption: bool) -> Source:
    several = str(path).split("::")
    if len(several) > 1 or weights:
        sources = [_read_one(one, needs_caption=needs_caption) for one in several]
        return mixture(str(path), sources, weights)
    return _read_one(path, needs_caption=needs_caption)


def _read_one(path: str | Path, *, needs_caption: bool) -> Source:
    if str(path).startswith("pipe:"):
        raise DataError(
            "The data path",
            must="name files",
            got="a command to run",
            then="Give files, or an address such as s3://bucket/{00000..00099}.tar; no command is run from a path.",
        )
    if str(path).startswith(("file://", "local://")):
        path = str(path).partition("://")[2]
    if is_address(str(path)):
        addresses = [one for pattern in expanded(str(path)) for one in listing(pattern)]
        source = _read_shards(
            str(path), [one for one in addresses if one.endswith(".tar")], needs_caption=needs_caption
        )
    elif "{" in str(path) and not Path(path).exists():
        source = _read_shards(str(path), [Path(one) for one in expanded(str(path))], needs_caption=needs_caption)
    else:
        source = _read_path(Path(path), needs_caption=needs_caption)
    if len(source) == 0:
        raise DataError(
            f"The data at {path}",
            must=f"hold pictures ({', '.join(PICTURES)})" + (" with captions" if needs_caption else ""),
            got=f"none, and {describe(source.skipped)}" if source.skipped else "none",
            then="Put KEY.txt beside KEY.jpg, or give a list, whose paths are read from its own folder, or shards: "
            ".tar files, not compressed, in one folder.",
        )
    return source


def _read_path(path: Path, *, needs_caption: bool) -> Source:
    if not path.exists():
        raise DataError(
            f"The data path {path}",
            must="exist",
            got="no such file or folder",
            then="Check its spelling; limner data demo writes data/demo, with --source digits data/digits.",
        )
    shards = sorted(path.glob("*.tar")) if path.is_dir() else [path] if path.suffix == ".tar" else []
    skipped, noted = Counter[str](), Counter[str]()
    if shards:
        source = _read_shards(path, shards, needs_caption=needs_caption)
        loose = sum(file.suffix.lower() in PICTURES for file in path.iterdir()) if path.is_dir() else 0
        return replace(source, skipped=source.skipped + Counter({"picture file beside shards": loose}))
    if path.suffix.lower() == ".parquet" or (path.is_dir() and is_table_folder(path)):
        return read_tables(path, needs_caption=needs_caption)
    if path.is_dir():
        found = _read_folder(path, skipped, noted)
    elif path.suffix.lower() in LISTS:
        found = read_list(path, skipped, noted)
    else:
        raise DataError(
            f"The data path {path}",
            must=f"be a folder, a list ({', '.join(LISTS)}, .parquet) or a .tar shard",
            got=f"a file ending in {path.suffix!r}",
            then="Give the folder that holds the pictures or a list with path and caption columns.",
        )
    return listed(path, list(_usable(found, skipped, needs_caption=needs_caption)), +skipped, +noted)


def _usable(pairs: Iterator[Pair], skipped: Counter[str], *, needs_caption: bool) -> Iterator[Pair]:
    for pair in pairs:
        if needs_caption and not pair.captions:
            skipped["no caption"] += 1
        elif not 0 < pair.size <= MAX_PICTURE_BYTES:
            skipped[EMPTY if pair.size == 0 else TOO_LARGE] += 1
        else:
            yield pair


# --- a folder --------------------------------------------------------------------------------------------------------


# --- shards ----------------------------------------------------------------------------------------------------------
