"""Lists of pairs: csv, tsv and jsonl files whose rows name a picture and say what is on it."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from limner.data.pairs import Pair, Source, cleaned, sifted
from limner.errors import DataError
from limner.files import is_file_in, printable

LISTS = (".csv", ".tsv", ".jsonl")
PATH_COLUMNS = ("path", "filepath", "file_path", "image_path", "image", "img", "file", "filename", "file_name")
CAPTION_COLUMNS = ("caption", "text", "sentence", "title", "description", "alt", "label")
NOT_THERE = "picture file missing, or outside of the list's folder"


def is_list(path: str) -> bool:
    """Whether `path` is a file whose name ends as a list's does."""
    here = Path(path)
    return here.suffix.lower() in LISTS and here.exists() and not here.is_dir()


def read_list(path: str, *, needs_caption: bool) -> Source:
    """The pairs that a list names. Raises `DataError` for a list that cannot be read to its end."""
    skipped, noted = Counter[str](), Counter[str]()
    pairs = list_pairs(Path(path), skipped, noted)
    return sifted(Path(path), pairs, skipped, noted, needs_caption=needs_caption)


def list_pairs(path: Path, skipped: Counter[str], noted: Counter[str]) -> Iterator[Pair]:
    """The rows of a list, a picture with several rows once, with all of its captions."""
    folder = path.parent.resolve()
    read = _jsonl_rows if path.suffix.lower() == ".jsonl" else _csv_rows
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            yield from images_of(read(path, file, folder), folder, skipped, noted)
    except DataError:
        raise
    except (csv.Error, ValueError, RecursionError) as error:
        raise DataError(
            f"The list {path}", must="be readable to its end", got=error, then="Correct that line."
        ) from error


def images_of(
    rows: Iterable[tuple[str, Iterable[Any]]], folder: Path, skipped: Counter[str], noted: Counter[str]
) -> Iterator[Pair]:
    """The pictures that the rows (picture path from `folder`, captions) of a list name, each once."""
    captions_of: dict[Path, list[str]] = {}
    for name, captions in rows:
        image = folder / name
        if not is_file_in(folder, image):
            skipped[NOT_THERE] += 1
        else:
            texts = [text for text in cleaned(captions, noted) if text]
            captions_of.setdefault(image.resolve(), []).extend(texts)
    for image, captions in captions_of.items():
        yield Pair(
            key=printable(image.relative_to(folder).as_posix()),
            path=image,
            offset=0,
            size=image.stat().st_size,
            captions=tuple(captions),
        )


def _jsonl_rows(path: Path, file: IO[str], _folder: Path) -> Iterator[tuple[str, list[Any]]]:
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
        image, caption = record.get(columns[0]), record.get(columns[1])
        several = caption if isinstance(caption, list) else [caption]
        yield str(image or ""), [one for one in several if one is not None]


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
        image, caption = (0, 1) if is_file_in(folder, folder / first[0]) else (1, 0)
        yield first[image], [first[caption]]
    else:
        image, caption = (first.index(name) for name in _columns(path, first))
    for row in rows:
        if row:
            yield (row[image], [row[caption]]) if len(row) > max(image, caption) else ("", [])


LIST_WITH_HEADER, LIST_WITHOUT_HEADER = 1001, 1000


def _fits(cells: list[str], folder: Path) -> int:
    """How well the cells of the first line look like a list's: a header, a picture and its caption, or many cells."""
    names = {cell.strip().lower() for cell in cells}
    if names & set(PATH_COLUMNS) and names & set(CAPTION_COLUMNS):
        return LIST_WITH_HEADER
    if len(cells) == 2 and any(cell and is_file_in(folder, folder / cell) for cell in cells):
        return LIST_WITHOUT_HEADER
    return len(cells)


def _columns(path: Path, columns: list[str]) -> tuple[str, str]:
    """The names of the picture column and the caption column."""
    known = {column.strip().lower(): column for column in columns}
    image = next((known[name] for name in PATH_COLUMNS if name in known), None)
    caption = next((known[name] for name in CAPTION_COLUMNS if name in known), None)
    if image is None or caption is None:
        known_names = (
            f"a picture column ({', '.join(PATH_COLUMNS)}) and a caption column ({', '.join(CAPTION_COLUMNS)})"
        )
        raise DataError(
            f"The header of {path}",
            must=f"name {known_names}",
            got=f"columns found: {', '.join(map(repr, columns)) or 'none'}",
            then="Rename the two columns in the first line.",
        )
    return image, caption
