"""Tables of pairs: parquet files, and what Hugging Face datasets write.

```
list.parquet: paths and captions            ─>  in memory, as of any list
folder with metadata.csv|jsonl|parquet      ─>  the same
x.parquet with the images inside          ─┐
folder of these: [data/][train-]*.parquet    ├─>  one Index a file (index.py)  ─>  TableParts of 8,192 pairs or more
save_to_disk's folder: data-*.arrow         ─┘
```

Where the label column is a ClassLabel of datasets, whose names stand in the file, these are the source's classes.

The first time, each file is read whole once: its captions, how large its pictures are, and its sha256. From then on
the index answers for all but the pictures, which are read when they are due. In an arrow file that is a look into
mapped memory. A parquet file has to unpack the picture's whole row group, and the last ones unpacked are kept (512 MiB
in all), so that pairs in random order want small row groups, or shards. Nothing in a table is run (arrow.py).
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from limner.data.pairs import (
    MAX_IMAGE_BYTES,
    NOT_THERE,
    TOO_LARGE,
    Pair,
    Source,
    cleaned,
    encoding_of,
    label_number,
    unusable,
)
from limner.data.sources.arrow import (
    broken,
    class_labels_of,
    groups_of,
    holds_bytes,
    is_list,
    is_struct,
    is_text,
    opened_arrow,
    pyarrow,
    reading,
    schema_of,
    texts_of,
)
from limner.data.sources.beside import METADATA, passed_by
from limner.data.sources.index import (
    MAX_TEXT_BYTES,
    NUMBERS,
    SOME_NAMED,
    Index,
    Kind,
    arrays_of,
    load_index,
    read_indexed,
    text_at,
)
from limner.data.sources.kept import Kept
from limner.data.sources.lists import CAPTION_COLUMNS, LABEL_COLUMNS, PATH_COLUMNS, Row, read_list, source_of
from limner.errors import DataError
from limner.files import is_file_in, places_of, sha256_of

IMAGE_COLUMNS = (*PATH_COLUMNS, "picture", "jpg", "jpeg", "png", "webp")
TEXT_COLUMNS = (*CAPTION_COLUMNS, "txt", "captions")
KEY_COLUMNS = ("key", "__key__", "id", "uid")
SEVERAL_CLASS_LABELS = "table with several ClassLabel columns, none of them named label (no labels are read)"
OUTSIDE = "label that is no number of a name of its ClassLabel (not used)"
PART = 8192
"""Pairs in a part, which is row groups that lie together, or more: a window of parts is in a few files then."""
KEPT_BYTES = 512 * 2**20
"""Unpacked row groups in memory."""


def are_tables(path: str) -> bool:
    """Whether `path` is a parquet file, or a folder that is a table: datasets' save_to_disk wrote it, it has a metadata
    list, or parquet files with the pictures inside. Other parquet files (img2dataset's, say) may lie beside loose
    pictures and do not make it one."""
    here = Path(path)
    if here.suffix.lower() == ".parquet" and here.exists():
        return not here.is_dir() or bool(_parquets(here))
    if not here.is_dir():
        return False
    if _saved_splits(here) or _metadata(here):
        return True
    parquets = _parquets(here)
    return bool(parquets) and (columns := _columns(schema_of(parquets[0]))) is not None and columns.has_images


def read_tables(path: str, *, needs_caption: bool) -> Source:
    """The pairs of a parquet file or a table folder; see the module's docstring for the layouts.

    A table that cannot be read is noted; where no other is left, it is an error. Raises `DataError` for a table without
    the columns that are needed, and `MissingExtra` without pyarrow.
    """
    here = Path(path)
    metadata = _metadata(here) if here.is_dir() else None
    if metadata is not None and metadata.suffix != ".parquet":
        return read_list(metadata, needs_caption=needs_caption, around=here)
    files = [metadata] if metadata is not None else _files(here)
    if _columns_of(files[0], Counter(), needs_caption=needs_caption).has_images:
        kind = Kind(build, _parts, fault="table that cannot be read", own_name=lambda name: Path(name).stem)
        source = read_indexed(here, files, kind, needs_caption=needs_caption)
        if not here.is_dir():
            return source
        read = {*files, *(image for part in source.parts for image in part.loose())}
        return replace(source, skipped=source.skipped + passed_by(here, read.__contains__))
    skipped, noted = Counter[str](), Counter[str]()
    rows = (row for file in files for row in _rows_of_paths(file, noted, needs_caption=needs_caption))
    around = here if here.is_dir() else None
    source = source_of(files, rows, skipped, noted, needs_caption=needs_caption, around=around)
    classes = {_columns_of(file, Counter(), needs_caption=needs_caption).classes for file in files}
    if len(classes) > 1:
        return replace(source, noted=source.noted + Counter({SOME_NAMED: len(files)}))
    return replace(source, classes=source.classes or classes.pop())


# --- which files -----------------------------------------------------------------------------------------------------


def _files(path: Path) -> list[Path]:
    """The files of a table: itself, or those in a folder that belong to the training split."""
    if not path.is_dir():
        return [path]
    if splits := _saved_splits(path):
        return _arrow_files(path if splits == [""] else path / _split(path, splits))
    return _train_files(path, _parquets(path))


def _metadata(folder: Path) -> Path | None:
    """The list of an imagefolder, of its training pictures if it has several."""
    for place in (folder, folder / "train"):
        for file in (place / name for name in METADATA):
            if file.is_file() and _names_files(file):
                return file
    return None


def _names_files(file: Path) -> bool:
    """Whether there is the column that a metadata list must have, so that another file of that name is none."""
    if file.suffix == ".parquet":
        return "file_name" in schema_of(file).names
    with file.open("rb") as opened:
        content = opened.read(2**16)
    first = content.decode(encoding_of(content), "replace").removeprefix("\ufeff").lstrip().partition("\n")[0]
    names = re.findall(r'"([^"]*)"\s*:', first) if file.suffix == ".jsonl" else re.split(r"[,;\t|]", first)
    return any(name.strip().strip('"') == "file_name" for name in names)


def _saved_splits(folder: Path) -> list[str]:
    """The splits in a folder that save_to_disk wrote; [""] if it is a single one, [] if it is something else."""
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        return [""]
    if not (folder / "dataset_dict.json").is_file():
        return []
    return sorted(state.parent.name for state in folder.glob("*/state.json"))


def _split(path: Path, splits: Sequence[str]) -> str:
    """The training split, or the only one."""
    if "train" in splits or len(splits) == 1:
        return "train" if "train" in splits else splits[0]
    raise DataError(
        f"The dataset {path}",
        must="have a split named train, or one split",
        got=f"splits found: {', '.join(splits)}",
        then="Give the folder or file of the one to be read.",
    )


def _arrow_files(folder: Path) -> list[Path]:
    """The files of a dataset that save_to_disk wrote, in order."""
    try:
        names = [str(file["filename"]) for file in json.loads((folder / "state.json").read_bytes())["_data_files"]]
    except (ValueError, LookupError, TypeError) as error:
        raise broken(folder / "state.json", error) from error
    wrong = [name for name in names if name != Path(name).name or not (folder / name).is_file()]
    if wrong or not names:
        raise broken(folder / "state.json", f"no file {wrong[0]!r} in its folder" if wrong else "no files named")
    return [folder / name for name in names]


def _parquets(folder: Path) -> list[Path]:
    """A folder's parquet files, or those in its data folder."""
    for place in (folder, folder / "data"):
        if files := sorted(place.glob("*.parquet")):
            return files
    return []


def _train_files(path: Path, files: list[Path]) -> list[Path]:
    """The training files, where names say which split each file belongs to: train-00000-of-00002.parquet."""
    splits = {file: re.split(r"[-_.]", file.name)[0] for file in files}
    if "train" in splits.values() or all(re.search(r"-\d+-of-\d+\.parquet$", file.name) for file in files):
        wanted = _split(path, sorted(set(splits.values())))
        return [file for file in files if splits[file] == wanted]
    return files


# --- what is in a file -----------------------------------------------------------------------------------------------


class Columns(NamedTuple):
    """Which column is what."""

    image: str
    has_images: bool
    """The column holds pictures, not only paths."""
    caption: str | None
    key: str | None
    label: str | None
    classes: tuple[str, ...] = ()
    """What its numbers count, if it is a ClassLabel of datasets."""

    def texts(self) -> list[str]:
        """All but the picture."""
        return [name for name in dict.fromkeys((self.caption, self.key, self.label)) if name is not None]


def _columns(schema: Any, noted: Counter[str] | None = None) -> Columns | None:
    """Which column is what; None if none is a picture. The only ClassLabel is the label, whatever its name."""
    noted = Counter() if noted is None else noted
    known = {field.name.strip().lower(): field for field in reversed(list(schema))}

    def first(names: Iterable[str], is_right: Callable[[Any], bool]) -> str | None:
        return next((known[name].name for name in names if name in known and is_right(known[name].type)), None)

    inside = first(IMAGE_COLUMNS, holds_bytes) or first(known, lambda kind: is_struct(kind) and holds_bytes(kind))
    image = inside or first(PATH_COLUMNS, is_text)
    if image is None:
        return None
    texts = [name for name in TEXT_COLUMNS if name != image.strip().lower()]
    class_labels = class_labels_of(schema, noted)
    label = first(LABEL_COLUMNS, lambda _: True) or (next(iter(class_labels)) if len(class_labels) == 1 else None)
    noted[SEVERAL_CLASS_LABELS] += label is None and len(class_labels) > 1
    return Columns(
        image=image,
        has_images=inside is not None,
        caption=first(texts, lambda kind: is_text(kind) or (is_list(kind) and is_text(kind.value_type))),
        key=first(KEY_COLUMNS, lambda kind: is_text(kind) or pyarrow().types.is_integer(kind)),
        label=label,
        classes=class_labels.get(label or "", ()),
    )


def _label(value: Any, columns: Columns, noted: Counter[str]) -> int:
    """A class by its number; -1 where there is none, or none that has a name where classes have names."""
    label = label_number(value, noted)
    if columns.classes and label >= len(columns.classes):
        noted[OUTSIDE] += 1
        return -1
    return label


def _captions(column: Any, noted: Counter[str]) -> Iterator[list[str]]:
    for texts in texts_of(column):
        short = [text for text in texts if len(text) <= MAX_TEXT_BYTES]
        if len(short) < len(texts):
            noted[f"caption over {MAX_TEXT_BYTES >> 20} MiB (not read)"] += len(texts) - len(short)
        yield [text for text in cleaned(short, noted) if text]


def _columns_of(file: Path, noted: Counter[str], *, needs_caption: bool) -> Columns:
    """Which column is what. Raises `DataError` for a table without the columns that are needed."""
    columns = _columns(schema := schema_of(file), noted)
    if columns is None or (needs_caption and columns.caption is None):
        raise DataError(
            f"The columns of {file}",
            must=f"be a picture column ({', '.join(IMAGE_COLUMNS)})"
            + (f" and a caption column of text ({', '.join(TEXT_COLUMNS)})" if needs_caption else ""),
            got=f"columns found: {', '.join(map(repr, schema.names)) or 'none'}",
            then="Rename them.",
        )
    return columns


def _rows_of_paths(path: Path, noted: Counter[str], *, needs_caption: bool) -> Iterator[Row]:
    """The rows of a list. Raises `DataError` for a table with the pictures inside, which is none."""
    columns = _columns_of(path, noted, needs_caption=needs_caption)
    if columns.has_images:
        raise broken(path, "pictures inside, where the tables beside it hold paths")
    with reading(path):
        for group, _ in groups_of(path, list(dict.fromkeys([columns.image, *columns.texts()])), None):
            names = (b"".join(row).decode("utf-8", "replace") for row in texts_of(group.column(columns.image)))
            nothing = ([] for _ in range(len(group)))
            captions = _captions(group.column(columns.caption), noted) if columns.caption else nothing
            labels = group.column(columns.label).to_pylist() if columns.label else [None] * len(group)
            if columns.classes:
                numbers = (_label(label, columns, noted) for label in labels)
                labels = [None if number < 0 else number for number in numbers]
            yield from map(Row, names, captions, labels)


# --- pictures inside -------------------------------------------------------------------------------------------------


def build(path: Path) -> Index:
    """The index of a table with the pictures inside.

    A picture's offset is its row in the row group or record batch. Arrays more than a shard's: groups int64[samples],
    and the paths, from the table's folder, of pictures that lie beside it (empty for the others): paths uint8[bytes]
    and path_ends int64[samples]. Raises `DataError` for a file that cannot be read to its end.
    """
    skipped, noted = Counter[str](), Counter[str]()
    table: dict[str, list[Any]] = {name: [] for name in (*NUMBERS, "keys", "captions", "chances", "counts")}
    groups, paths, rows, before = list[int](), list[bytes](), list[int](), 0
    with reading(path):
        columns = _columns(schema_of(path), noted)
        if columns is None or not columns.has_images:
            raise broken(path, "no picture column")
        for group, (texts, pieces) in enumerate(groups_of(path, columns.texts(), columns.image)):
            images = [image for piece in pieces for image in _places(piece, path.parent)]
            count = len(images)
            captions = list(_captions(texts.column(columns.caption), noted)) if columns.caption else [[]] * count
            keys = texts_of(texts.column(columns.key)) if columns.key else [[]] * count
            labels = texts.column(columns.label).to_pylist() if columns.label else [None] * count
            for row, (image, said, key, label) in enumerate(zip(images, captions, keys, labels, strict=True)):
                if isinstance(image, str):
                    skipped[image] += 1
                    continue
                size, beside = image
                table["keys"].append(b"".join(key).decode("utf-8", "replace"))
                table["picture_offsets"].append(row)
                table["picture_sizes"].append(size)
                table["labels"].append(_label(label, columns, noted))
                table["held_out"].append(False)
                table["counts"].append(len(said))
                table["captions"] += said
                table["chances"] += [1.0] * len(said)
                groups.append(group)
                paths.append(beside)
                rows.append(before + row)
            before += count
    if not all(table["keys"]) or len(set(table["keys"])) < len(table["keys"]):
        table["keys"] = [f"{path.stem}/{row:06d}" for row in rows]
    arrays = arrays_of(table) | {
        "groups": np.array(groups, dtype=np.int64),
        "paths": np.frombuffer(b"".join(paths), dtype=np.uint8),
        "path_ends": np.cumsum([len(beside) for beside in paths], dtype=np.int64),
    }
    return Index(sha256_of(path), path.stat().st_size, dict(skipped), dict(+noted), arrays, columns.classes)


def _places(column: Any, folder: Path) -> Iterator[tuple[int, bytes] | str]:
    """The picture's size, and its path if it lies beside the table, of each row; or why it cannot be used."""
    places = places_of(folder)
    paths: list[bytes | None] = [None] * len(column)
    if is_struct(column.type) and column.type.get_field_index("path") >= 0:
        texts = texts_of(column.flatten()[column.type.get_field_index("path")])
        paths = [text[0] if text else None for text in texts]
    if is_struct(column.type):
        column = column.flatten()[column.type.get_field_index("bytes")]
    sizes = pyarrow().compute.binary_length(column.cast(pyarrow().large_binary())).to_pylist()
    for size, beside in zip(sizes, paths, strict=True):
        if size is None and beside:
            beside = beside.decode("utf-8", "replace").encode()
            file = folder / beside.decode()
            if not is_file_in(places, file):
                yield NOT_THERE
                continue
            size = file.stat().st_size
        else:
            beside = b""
        yield "no picture" if size is None else unusable(size) or (size, beside)


@dataclass(frozen=True)
class TablePair(Pair):
    """A picture in a table: `offset` is its row in the row group."""

    table: Path = Path()
    sha256: str = ""
    group: int = 0

    def read(self) -> bytes:
        """The picture's encoded bytes."""
        if self.path != self.table:
            if not is_file_in(places_of(self.table.parent), Path(self.path)):
                raise FileNotFoundError(f"no file {self.path} in the table's folder")
            with Path(self.path).open("rb") as file:
                content = file.read(MAX_IMAGE_BYTES + 1)  # it may have grown since the index was made
            if len(content) > MAX_IMAGE_BYTES:
                raise OSError(TOO_LARGE)
            return content
        try:
            content = _images(self.table, self.sha256, self.group)[self.offset].as_py()
            content = content["bytes"] if isinstance(content, dict) else content
        except (DataError, ValueError, LookupError) as error:  # it is not the file that it was, or cannot be read
            raise OSError(f"row {self.offset} of row group {self.group}: {error}") from error
        if not isinstance(content, bytes):
            raise OSError(f"row {self.offset} of row group {self.group}: no picture")
        return content


@dataclass(frozen=True)
class TablePart:
    """A stretch of a table, whole row groups, as a part of a source."""

    path: Path
    sha256: str
    """The file's."""
    first: int
    """The number of the first pair, of those in the file that can be used."""
    count: int
    needs_caption: bool

    @property
    def name(self) -> str:
        """The file's name and which of its pairs."""
        return f"{self.path.name}, pairs {self.first:,} to {self.first + self.count:,}"

    def digest(self) -> str:
        """A sha256 of the file's, which its index knows, and of which pairs of it these are. Pictures that lie beside
        the table count by their path alone."""
        return hashlib.sha256(f"{self.sha256} {self.first} {self.count}".encode()).hexdigest()

    def __len__(self) -> int:
        return self.count

    def pair(self, index: int) -> Pair:
        """The pair at `index`."""
        found = load_index(self.path, self.sha256, build)
        sample = int(found.captioned[self.first + index]) if self.needs_caption else self.first + index
        beside = text_at(found.arrays["paths"], found.arrays["path_ends"], sample)
        pair = found.pair(sample, self.path)
        path, offset = (self.path.parent / beside, 0) if beside else (self.path, pair.offset)
        told = {name: value for name, value in vars(pair).items() if name not in ("path", "offset")}
        return TablePair(
            **told,
            path=path,
            offset=offset,
            table=self.path,
            sha256=self.sha256,
            group=int(found.arrays["groups"][sample]),
        )

    def keys(self) -> Iterator[bytes]:
        """The keys of all pairs, from the index."""
        found = load_index(self.path, self.sha256, build)
        samples = found.captioned if self.needs_caption else np.arange(len(found))
        return found.keys(samples[self.first : self.first + self.count])

    def loose(self) -> Iterator[Path]:
        """The images that lie beside the table."""
        if len(load_index(self.path, self.sha256, build).arrays["paths"]) == 0:
            return iter(())
        paths = (Path(self.pair(index).path) for index in range(self.count))
        return (path for path in paths if path != self.path)


def _parts(path: Path, told: dict[str, Any], needs_caption: bool) -> list[TablePart]:
    """The stretches of a table, of whole row groups with `PART` pairs or more in all, but for the last one."""
    index = load_index(path, told["sha256"], build)
    groups = index.arrays["groups"][index.captioned] if needs_caption else index.arrays["groups"]
    parts, first = list[TablePart](), 0
    for end in [*(np.flatnonzero(np.diff(groups)) + 1).tolist(), len(groups)]:
        if end - first >= PART or end == len(groups):
            parts.append(TablePart(path, told["sha256"], first, end - first, needs_caption))
            first = end
    return parts


_row_groups = Kept(KEPT_BYTES)


@lru_cache(maxsize=1024)
def _image_column(path: Path, _sha256: str) -> str:
    columns = _columns(schema_of(path))
    if columns is None:
        raise broken(path, "no picture column")
    return columns.image


def _images(path: Path, sha256: str, group: int) -> Any:
    """The picture column of a row group or record batch: an arrow array."""
    name = _image_column(path, sha256)
    if path.suffix == ".arrow":
        with reading(path):
            return opened_arrow(path).batches[group].column(name)

    def unpack() -> Any:
        with reading(path), pyarrow().parquet.ParquetFile(path) as file:
            return file.read_row_group(group, columns=[name]).column(0)

    return _row_groups.get((path, sha256, group), unpack)
