"""Writing pairs as WebDataset shards in the img2dataset layout, with a manifest.

```
FOLDER/00000.tar          KEY.json, KEY.png|jpg|webp, KEY.txt and, in labelled sets, KEY.cls, or KEY.npy where pictures
                          have several labels: 0 or 1 for each class; sorted by extension
FOLDER/00000.parquet      one row a pair
FOLDER/00000_stats.json   its presence says that the shard is whole
FOLDER/manifest.json      sha256 and count of each shard, the data fingerprint, where the pairs come from
FOLDER/.limner/           the index of each shard (sources/index.py)
```

The same pairs give the same tar bytes: members carry no time, no user, and the order that they came in.
"""

import hashlib
import io
import json
import math
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

from limner.data.decode import Unreadable, opened
from limner.data.pairs import Source, lines_beside
from limner.data.sources.read import read_pairs
from limner.errors import ConfigError, DataError, MissingExtra
from limner.files import read_json, replacing, sha256_of, write_json, write_text
from limner.progress import track

EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "AVIF": "avif", "BMP": "bmp", "GIF": "gif"}
EXTENSIONS |= {"TIFF": "tif", "PPM": "ppm"}
"""File name extensions by Pillow's names of formats."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A pair to be written."""

    image: bytes
    extension: str
    """The picture's: png, jpg, webp, ..."""
    width: int
    height: int
    captions: tuple[str, ...]
    label: int | None = None
    label_row: np.ndarray | None = None
    """Of a multi-label picture, 1 for each of its classes and 0 for the others: uint8[classes]."""
    record: dict[str, Any]
    """Further fields of KEY.json."""


def repack(source: Source, folder: Path, *, per_shard: int = 10_000) -> Counter[str]:
    """Write the pairs of a source as shards in `folder`, in the source's order, the pictures' bytes as they are.

    The names of its classes, where it has some, go into classnames.txt.
    The same pairs give shards of the same sha256. Returns the pairs whose picture has no header that can be read, by
    reason; they are left out. Raises `DataError` if the folder holds anything else than shards that limner wrote.
    """
    dropped = Counter[str]()
    class_names = source.classes or lines_beside(source.path, "classnames.txt")
    classes = max(len(class_names), max((1 + pair.labels[-1] for pair in source if pair.labels), default=0), 1)

    def row_of(labels: tuple[int, ...]) -> np.ndarray:
        row = np.zeros(classes, dtype=np.uint8)
        row[list(labels)] = 1
        return row

    def samples() -> Iterator[Sample]:
        for pair in track(source, title="Writing shards", total=len(source)):
            content = pair.read()
            try:
                image = opened(content, f"The picture {pair.key}")
            except Unreadable as error:
                dropped[error.reason] += 1
                continue
            width, height = image.size
            record: dict[str, Any] = {"source_key": pair.key}
            if pair.chances:
                record["caption_probabilities"] = list(pair.chances)
            if pair.held_out:
                record["held_out"] = True
            yield Sample(
                image=content,
                extension=EXTENSIONS[str(image.format)],
                width=width,
                height=height,
                captions=pair.captions,
                label=pair.label,
                label_row=None if pair.labels is None else row_of(pair.labels),
                record=record,
            )

    origin = {"fingerprint": source.fingerprint}
    write_shards(samples(), folder, origin=origin, per_shard=per_shard, class_names=class_names)
    return dropped


def write_shards(
    samples: Iterable[Sample],
    folder: Path,
    *,
    origin: dict[str, Any],
    per_shard: int = 1000,
    class_names: Sequence[str] = (),
) -> None:
    """Write `samples` as shards in `folder`, replacing what was there only once all of them are written.

    `class_names` are what their labels count. `origin` goes into manifest.json: sources, versions, licences. One shard
    is in memory at a time.
    """
    if folder.exists() and any(folder.iterdir()) and not _is_limners(folder):
        raise DataError(
            f"The folder {folder}",
            must="be new, empty, or one of shards that limner wrote",
            got="one with other files",
            then="Choose another folder with --out.",
        )
    building, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("partial", "old"))
    for leftover in (building, old):
        shutil.rmtree(leftover, ignore_errors=True)
    building.mkdir(parents=True)
    shards = []
    remaining = iter(samples)
    for number in count():
        chunk = list(islice(remaining, per_shard))
        if not chunk and number:
            break
        width = 5 + math.ceil(math.log10(per_shard))
        first_key = 10 ** math.ceil(math.log10(per_shard)) * number
        keys = [f"{first_key + index:0{width}d}" for index in range(len(chunk))]
        shards.append(_write_shard(building, number, keys, chunk))
    if class_names:
        write_names(building, class_names)
    written = read_pairs(building)
    write_json(
        building / "manifest.json",
        {
            "format": 1,
            "pairs": len(written),
            "fingerprint": written.fingerprint,
            "shards": shards,
            "origin": origin,
        },
    )
    if folder.exists():
        folder.replace(old)
    building.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def _is_limners(folder: Path) -> bool:
    """Whether `write_shards` wrote a folder; a run's manifest.json is of another kind."""
    try:
        manifest = read_json(folder / "manifest.json")
    except ConfigError:  # none, or a damaged one
        return False
    return isinstance(manifest, dict) and {"shards", "origin"} <= set(manifest)


def write_names(folder: Path, class_names: Sequence[str]) -> None:
    """Write classnames.txt, a line for each class, by its number."""
    write_text(folder / "classnames.txt", "".join(f"{' '.join(name.split())}\n" for name in class_names))


def write_classes(folder: Path, class_names: Sequence[str], templates: Sequence[str]) -> None:
    """Name the classes of the labelled shards below `folder`, as CLIP_benchmark does: {c} stands for the name."""
    write_names(folder, class_names)
    lines = "".join(f"{template.replace('{}', '{c}')}\n" for template in templates)
    write_text(folder / "zeroshot_classification_templates.txt", lines)


def is_whole(folder: Path, *, origin: dict[str, Any]) -> bool:
    """Whether `folder` holds shards of this `origin`, each with the sha256 that the manifest says."""
    try:
        manifest = read_json(folder / "manifest.json")
    except ConfigError:  # no manifest, or a damaged one
        return False
    return manifest["origin"] == origin and all(
        (folder / shard["name"]).is_file() and sha256_of(folder / shard["name"]) == shard["sha256"]
        for shard in manifest["shards"]
    )


def _write_shard(folder: Path, number: int, keys: Sequence[str], samples: Sequence[Sample]) -> dict[str, Any]:
    path = folder / f"{number:05d}.tar"
    rows = []
    with replacing(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, sample in zip(keys, samples, strict=True):
            row = {
                "caption": sample.captions[0],
                "url": "",
                "key": key,
                "status": "success",
                "error_message": "",
                "width": sample.width,
                "height": sample.height,
                "original_width": sample.width,
                "original_height": sample.height,
                "sha256": hashlib.sha256(sample.image).hexdigest(),
            }
            rows.append(row)
            record = {**row, "captions": list(sample.captions), **sample.record}
            members = {
                "json": json.dumps(record, indent=4, ensure_ascii=False).encode(),
                sample.extension: sample.image,
                "txt": sample.captions[0].encode(),
            }
            if sample.label is not None:
                members["cls"] = str(sample.label).encode()
            if sample.label_row is not None:
                members["npy"] = _npy(sample.label_row)
            for extension in sorted(members):
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size, member.mode = len(members[extension]), 0o444
                tar.addfile(member, io.BytesIO(members[extension]))
    _write_parquet(path.with_suffix(".parquet"), rows)
    write_json(
        folder / f"{number:05d}_stats.json",
        {
            "count": len(rows),
            "successes": len(rows),
            "failed_to_download": 0,
            "failed_to_resize": 0,
            "duration": 0.0,
            "start_time": 0.0,
            "end_time": 0.0,
            "status_dict": {"success": len(rows)},
        },
    )
    return {"name": path.name, "sha256": sha256_of(path), "pairs": len(rows)}


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("pyarrow", extra="demo", needed_for="writing shards") from None
    if not rows:
        raise DataError(f"The shard {path.stem}", must="hold a pair", got="none", then="Give at least one pair.")
    with replacing(path) as file:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
