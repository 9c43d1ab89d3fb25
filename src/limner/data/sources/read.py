"""Pairs on disk or elsewhere, whatever their layout, as one `Source`.

```
WebDataset shards: a folder, a/{00000..00099}.tar, an address of these: s3://..., hf://...  (shards.py)  ─┐
tables: parquet files, Hugging Face datasets' directories                                   (tables.py)   │
lists: csv, tsv, jsonl                                                                      (lists.py)    ├─>  Source
a folder of images + .txt                                                                 (folders.py)  │
several of these: a::b                                                                                   ─┘
```

`LAYOUTS` is the whole of it: the first layout that fits a path reads it. Opening a source reads headers and texts, of
shards and tables their index (index.py), never pictures. A pair that cannot be used (no caption, an empty file, ...) is
left out and counted by reason in `Source.skipped`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from limner.data.pairs import IMAGE_ENDINGS, Source, describe, innermost, mixture
from limner.data.remote import is_address
from limner.data.sources.folders import is_folder, read_folder
from limner.data.sources.lists import LISTS, is_list, read_list
from limner.data.sources.shards import are_shards, read_shards
from limner.data.sources.tables import are_tables, read_tables
from limner.errors import DataError, LimnerError, named
from limner.files import write_json


@dataclass(frozen=True)
class Layout:
    """A way in which pairs lie on disk or elsewhere."""

    name: str
    fits: Callable[[str], bool]
    """Whether what is at a path looks like it; nothing is asked that needs the network."""
    read: Callable[..., Source]
    """`read(path, needs_caption=True)`: the pairs at a path; with False the pictures that have no caption too."""


LAYOUTS = (
    Layout("shards", are_shards, read_shards),
    Layout("tables", are_tables, read_tables),
    Layout("list", is_list, read_list),
    Layout("folder", is_folder, read_folder),
)
"""All layouts, in the order in which they are asked: a folder is one of pictures only if it is nothing else."""


def read_pairs(path: Any, weights: Sequence[float] = ()) -> Source:
    """The captioned pictures at `path`; see the module's docstring for the layouts.

    Of several sources, `a::b`, an epoch sees each pair once, or as often as `weights` say.
    Raises `DataError` if there is no usable pair.
    """
    return _read(path, weights, needs_caption=True)


def read_images(path: Any) -> Source:
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
    """Write what a source is made of: each part's name, digest (of a whole shard its sha256), the digest of what it was
    taken from and its number of pairs, and the fingerprint of all."""
    parts = [
        {"name": part.name, "digest": part.digest(), "of": innermost(part).digest(), "pairs": len(part)}
        for part in source.parts
    ]
    write_json(file, {"format": 1, "fingerprint": source.fingerprint, "pairs": len(source), "parts": parts})


def split_pairs(data: str, weights: Sequence[float], *, holdout: float) -> tuple[Source, Source]:
    """The pairs at `data` that a run trains on, and those that it keeps back: about the share `holdout` (0.0: none).

    Raises `DataError` as `read_pairs` does.
    """
    source = read_pairs(data, weights)
    return source.split(holdout) if holdout else (source, replace(source, parts=(), shares=()))


def _read(path: Any, weights: Sequence[float], *, needs_caption: bool) -> Source:
    if not isinstance(path, str | Path) or not str(path).strip():
        raise DataError(
            "The data path",
            must="be a text or a pathlib.Path",
            got=named(path),
            then="Several go into one text with :: between them.",
        )
    several = str(path).split("::")
    if not all(one.strip() for one in several):
        raise DataError(
            f"The data path {path}",
            must="name a source on each side of ::",
            got="none on one side",
            then="Take that :: away, or give what belongs there.",
        )
    if len(several) > 1 or weights:
        sources = [_read_one(one, needs_caption=needs_caption) for one in several]
        return mixture(str(path), sources, weights)
    return _read_one(several[0], needs_caption=needs_caption)


def _read_one(path: str, *, needs_caption: bool) -> Source:
    if path.startswith("pipe:"):
        raise DataError(
            "The data path",
            must="name files",
            got="a command to run",
            then="Give files, or an address such as s3://bucket/{00000..00099}.tar; no command is run from a path.",
        )
    if path.startswith(("file://", "local://")):
        path = path.partition("://")[2]
    try:
        layout = next((layout for layout in LAYOUTS if layout.fits(path)), None)
        if layout is None:
            raise _unknown(Path(path))
        source = layout.read(path, needs_caption=needs_caption)
    except LimnerError:
        raise
    except OSError as error:
        raise DataError(
            f"The data at {path}", must="be readable", got=error, then="Change the permissions of that file or folder."
        ) from error
    if len(source) == 0:
        raise DataError(
            f"The data at {path}",
            must=f"hold pictures ({', '.join(IMAGE_ENDINGS)})" + (" with captions" if needs_caption else ""),
            got=f"none, and {describe(source.skipped)}" if source.skipped else "none",
            then="Put KEY.txt beside KEY.jpg, or give a list, whose paths are read from its own folder, or shards: "
            ".tar files, not compressed, in one folder.",
        )
    return source


def _unknown(path: Path) -> DataError:
    """The error of a path that fits no layout."""
    if not path.exists():
        return DataError(
            f"The data path {path}",
            must="exist",
            got="no such file or folder",
            then="Check its spelling; limner data demo writes data/demo, with --source digits data/digits.",
        )
    return DataError(
        f"The data path {path}",
        must=f"be a folder, a list ({', '.join(LISTS)}, .parquet) or a .tar shard",
        got=f"a file ending in {path.suffix!r}",
        then="Give the folder that holds the pictures or a list with path and caption columns.",
    )
