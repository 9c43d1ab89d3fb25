"""Parquet and arrow files by pyarrow: their columns' types, their row groups, the texts in a column.

Nothing in a file is run: no pickles, no loading scripts, and the types that datasets name are only looked at. An arrow
file is mapped into memory, its offsets checked, so that none leads out of it.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from limner.errors import DataError, LimnerError, MissingExtra

ROWS = 64
"""Rows of a parquet file that are looked at together, for memory's sake."""
MAX_FEATURES_BYTES = 2**23
"""Bytes of what datasets writes about the columns: 100 for each of 80,000 classes."""
BROKEN_FEATURES = "names of classes (datasets' metadata) that cannot be read (labels stay numbers)"


def is_text(kind: Any) -> bool:
    """Whether a column of this type holds text, in a dictionary or not."""
    types = pyarrow().types
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def is_list(kind: Any) -> bool:
    """Whether a column of this type holds lists."""
    types = pyarrow().types
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def is_struct(kind: Any) -> bool:
    """Whether a column of this type holds fields by name."""
    return pyarrow().types.is_struct(kind)


def holds_bytes(kind: Any) -> bool:
    """Whether a column of this type can hold pictures: bytes, or datasets' {bytes, path}."""
    types = pyarrow().types
    if is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and holds_bytes(kind.field("bytes").type)
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def schema_of(path: Path) -> Any:
    """The names and types of a file's columns. Raises `DataError` for a file that cannot be read."""
    with reading(path):
        return opened_arrow(path).schema if path.suffix == ".arrow" else pyarrow().parquet.read_schema(path)


def class_labels_of(schema: Any, noted: Counter[str]) -> dict[str, tuple[str, ...]]:
    """The names of the classes in each column of numbers that is a `ClassLabel` of datasets, by the column's name."""
    said = (schema.metadata or {}).get(b"huggingface", b"")
    if not said:
        return {}
    try:
        features = json.loads(said if len(said) <= MAX_FEATURES_BYTES else b"")["info"]["features"]
        known = {column.name: features.get(column.name) for column in schema if pyarrow().types.is_integer(column.type)}
        found = {
            column: feature["names"]
            for column, feature in known.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
        for names in found.values():
            "".join(names).encode()
        if not all(names and isinstance(names, list) for names in found.values()):
            raise ValueError("no list of names")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        noted[BROKEN_FEATURES] += 1
        return {}
    return {column: tuple(names) for column, names in found.items()}


def groups_of(path: Path, texts: list[str], image: str | None) -> Iterator[tuple[Any, Iterable[Any]]]:
    """(the text columns, the picture column piece by piece) of each row group, or record batch."""
    arrow = pyarrow()
    if path.suffix == ".arrow":
        for batch in opened_arrow(path).batches:
            yield batch.select(texts), [batch.column(image)] if image else []
        return
    with arrow.parquet.ParquetFile(path, pre_buffer=False) as file:
        for group in range(file.num_row_groups):
            pieces = file.iter_batches(ROWS, row_groups=[group], columns=[image]) if image else []
            yield file.read_row_group(group, columns=texts), (piece.column(0) for piece in pieces)


class ArrowFile(NamedTuple):
    """An arrow file in mapped memory."""

    schema: Any
    batches: list[Any]


def opened_arrow(path: Path) -> ArrowFile:
    """The record batches of an arrow file. All their offsets are checked, so that none leads out of the file."""
    status = path.stat()
    return _mapped(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _mapped(path: Path, _size: int, _mtime_ns: int) -> ArrowFile:
    arrow = pyarrow()
    with arrow.ipc.open_stream(arrow.memory_map(str(path))) as stream:
        batches = list(stream)
        for batch in batches:
            batch.validate(full=True)
        return ArrowFile(stream.schema, batches)


def texts_of(column: Any) -> list[list[bytes]]:
    """The texts of each row: one, several or none. As bytes, for not all of them are the UTF-8 they should be."""
    arrow = pyarrow()
    if is_list(column.type):
        rows = column.cast(arrow.large_list(arrow.large_binary())).to_pylist()
        return [[text for text in row or [] if text is not None] for row in rows]
    if arrow.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if arrow.types.is_integer(column.type):
        column = column.cast(arrow.string())
    return [[] if text is None else [text] for text in column.cast(arrow.large_binary()).to_pylist()]


def pyarrow() -> Any:
    """The package, imported when it is first needed. Raises `MissingExtra` without it."""
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("pyarrow", extra="data", needed_for="reading tables") from None
    return pyarrow


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever pyarrow finds wrong with a file, as a `DataError`."""
    try:
        yield
    except LimnerError:
        raise
    except (OSError, ValueError, LookupError, TypeError, NotImplementedError, pyarrow().ArrowException) as error:
        raise broken(path, error) from error


def broken(path: Path, got: object) -> DataError:
    """The error of a table that cannot be read."""
    return DataError(
        f"The table {path}",
        must="be readable to its end",
        got=str(got).split("\n")[0].rstrip("."),
        then="Fetch or write it again.",
    )
