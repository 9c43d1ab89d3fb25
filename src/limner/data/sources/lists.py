"""Lists of pairs: csv, tsv and jsonl files whose rows name a picture and say what is on it.

A row that has not the header's number of cells is counted, never shifted. A csv that does not close its quotes, or goes
on behind one, is an error with its line: what was meant cannot be known, and the next rows are at stake. In a tsv a
quote may be a mark (as pandas and Python's csv write it) or just a sign (as in CC3M's and LAION's): see `_tsv_rows`.
"""

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, NamedTuple

from limner.data.pairs import IMAGE_ENDINGS, Pair, Source, cleaned, encoding_of, sifted
from limner.errors import DataError
from limner.files import is_file_in, places_of, printable

LISTS = (".csv", ".tsv", ".jsonl")
PATH_COLUMNS = ("path", "filepath", "file_path", "image_path", "image", "img", "file", "filename", "file_name")
CAPTION_COLUMNS = ("caption", "text", "sentence", "title", "description", "alt")
LABEL_COLUMNS = ("label", "class", "class_name", "classname", "category", "target", "cls")
NOT_THERE = "picture file missing, or outside of the list's folder"
UNLISTED = "picture that the metadata list does not name"
CELLS = "row of another number of cells than the header"


class Row(NamedTuple):
    """A row of a list."""

    image: str
    """The picture's path from the list's folder."""
    captions: Sequence[Any]
    label: Any
    """A class by its number or its name; None or an empty text: there is none."""


class Columns(NamedTuple):
    """The names of the columns that count; None: there is none."""

    image: str | None
    caption: str | None
    label: str | None


def is_list(path: str) -> bool:
    """Whether `path` is a file whose name ends as a list's does."""
    here = Path(path)
    return here.suffix.lower() in LISTS and here.exists() and not here.is_dir()


def read_list(path: str | Path, *, needs_caption: bool, around: Path | None = None) -> Source:
    """The pairs that a list names; of a folder `around` it the images that it does not name are counted.

    Raises `DataError` for a list that cannot be read to its end.
    """
    path = Path(path)
    skipped, noted = Counter[str](), Counter[str]()
    read = _jsonl_rows if path.suffix.lower() == ".jsonl" else _tsv_rows if path.suffix.lower() == ".tsv" else _csv_rows
    if not path.is_file():
        raise DataError(
            f"The list {path}", must="be a file", got="a pipe or a device", then="Write it to a file first."
        )
    try:
        with path.open("rb") as opened:
            encoding = encoding_of(opened.read(4)).replace("utf-8", "utf-8-sig")
        with path.open(encoding=encoding, errors="surrogateescape", newline="") as file:
            rows = read(path, file, needs_caption, skipped, noted)
            return source_of(path, rows, path.parent, skipped, noted, needs_caption=needs_caption, around=around)
    except DataError:
        raise
    except OSError as error:
        raise DataError(
            f"The list {path}", must="be readable", got=error.strerror or error, then="Change its permissions."
        ) from error
    except (csv.Error, ValueError, RecursionError) as error:
        raise DataError(
            f"The list {path}", must="be readable to its end", got=error, then="Correct that line."
        ) from error


def source_of(
    path: Path,
    rows: Iterable[Row],
    folder: Path,
    skipped: Counter[str],
    noted: Counter[str],
    *,
    needs_caption: bool,
    around: Path | None = None,
) -> Source:
    """The pictures in `folder` that rows name, each once with all of its captions, and the class of each.

    Of a folder `around` it, if one is given, the images that no row names are counted.
    Labels that are all whole numbers are lines of classnames.txt; others are the classes' names, sorted.
    """
    places = places_of(folder)
    folder = places[0]
    captions_of: dict[Path, list[str]] = {}
    labels: dict[Path, str] = {}
    for row in rows:
        image = folder / row.image
        if not is_file_in(places, image):
            skipped[NOT_THERE] += 1
            continue
        image = _known_as(image, folder)
        captions_of.setdefault(image, []).extend(text for text in cleaned(row.captions, noted) if text)
        label = _as_label(row.label, noted)
        if label and labels.setdefault(image, label) != label:
            noted["picture with several labels (the first is used)"] += 1
    are_numbers = all(label.isascii() and label.isdigit() and len(label) < 10 for label in labels.values())
    names = sorted(set(labels.values()))
    numbers = {name: int(name) if are_numbers else place for place, name in enumerate(names)}
    if around is not None:
        skipped[UNLISTED] += sum(_known_as(image, folder) not in captions_of for image in _images_below(around))
    pairs = (
        Pair(
            key=printable(os.path.relpath(image, folder)),
            path=image,
            offset=0,
            size=image.stat().st_size,
            captions=tuple(captions),
            label=numbers[labels[image]] if image in labels else None,
        )
        for image, captions in captions_of.items()
    )
    source = sifted(path, pairs, skipped, noted, needs_caption=needs_caption)
    return source if are_numbers else replace(source, classes=tuple(names))


def _as_label(label: Any, noted: Counter[str]) -> str:
    """A class by its number or its name; "" where there is none."""
    if label is None or label != label:  # NaN
        return ""
    if isinstance(label, bool) or not isinstance(label, str | int | float):
        noted["label that is neither a number nor a text (not used)"] += 1
        return ""
    text = str(label).strip()
    if re.fullmatch(r"-\d+(\.0*)?", text):
        noted["label below 0 (no class)"] += 1
        return ""
    return re.sub(r"^(\d+)\.0*$", r"\1", text)  # a column with gaps has been through pandas


def _known_as(image: Path, folder: Path) -> Path:
    """Where an image really is in a folder; a link out of it, into a cache, as it is: names there say nothing."""
    resolved = image.resolve()
    return resolved if resolved.is_relative_to(folder) else image


def _images_below(folder: Path) -> Iterator[Path]:
    """The images in a folder and in those inside it."""
    for place, folders, files in os.walk(folder.resolve()):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place, name) for name in files if Path(name).suffix.lower() in IMAGE_ENDINGS)


def columns_of(path: Path, columns: Sequence[str], *, needs_caption: bool) -> Columns:
    """Which columns count. Raises `DataError` if there is none for the picture, or, if asked for, for the caption."""
    found = _columns(columns)
    if found.image is None or (needs_caption and found.caption is None):
        only_labels = found.image is not None and found.label is not None
        raise DataError(
            f"The header of {path}",
            must=f"name a picture column ({', '.join(PATH_COLUMNS)})"
            + (f" and a caption column ({', '.join(CAPTION_COLUMNS)})" if needs_caption else ""),
            got=f"columns found: {', '.join(map(repr, columns)) or 'none'}",
            then=f"Labels are no captions: if {found.label!r} holds sentences, rename it to caption."
            if only_labels
            else "Rename the columns in the first line.",
        )
    return found


# --- the three kinds of files ----------------------------------------------------------------------------------------


def _jsonl_rows(
    path: Path, file: IO[str], needs_caption: bool, skipped: Counter[str], _noted: Counter[str]
) -> Iterator[Row]:
    """The row of each line, a JSON object with columns of its own; a caption may be a list of them."""
    names = dict[str, None]()
    good = 0
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        record = json.loads(line)
        if not isinstance(record, dict):
            raise DataError(
                f"Line {number} of {path}", must="be a JSON object", got=line.strip()[:60], then="Correct that line."
            )
        names |= dict.fromkeys(record)
        columns = _columns(list(record))
        if columns.image is None:
            skipped["line without a picture's path"] += 1
            continue
        good += columns.caption is not None or not needs_caption
        caption = None if columns.caption is None else record[columns.caption]
        several = caption if isinstance(caption, list) else [caption]
        label = None if columns.label is None else record[columns.label]
        yield Row(str(record[columns.image] or ""), [one for one in several if one is not None], label)
    if not good:
        columns_of(path, list(names), needs_caption=needs_caption)  # says what is missing


def _csv_rows(
    path: Path, file: IO[str], needs_caption: bool, skipped: Counter[str], noted: Counter[str]
) -> Iterator[Row]:
    """The rows of a csv; the delimiter and whether there is a header are found out."""
    head = file.readline()
    file.seek(0)

    def fit(sign: str) -> int:
        try:
            return _fits(next(csv.reader([head], delimiter=sign, skipinitialspace=True), []), path.parent)
        except csv.Error:  # cells too long for csv: those of another delimiter
            return 0

    delimiter = max(",;\t|", key=fit)
    rows = csv.reader(file, delimiter=delimiter, skipinitialspace=True, strict=True)
    yield from _rows(path, _closed(path, rows), needs_caption, skipped, noted)


def _closed(path: Path, rows: Any) -> Iterator[list[str]]:
    """The rows of a strict csv reader. Raises `DataError` with the line where a row begins that it cannot read."""
    begins = 1
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"The row that begins at line {begins} of {path}",
                must='close each quote at the end of a cell, and double those inside: "a ""big"" dog"',
                got=error,
                then="Correct that line, or write the list as jsonl.",
            ) from error
        yield row
        begins = rows.line_num + 1


def _tsv_rows(
    path: Path, file: IO[str], needs_caption: bool, skipped: Counter[str], noted: Counter[str]
) -> Iterator[Row]:
    """The rows of a tsv.

    Where every line has as many cells as the first, no cell holds a tab or a line's end: a line is a row, and a cell is
    unquoted if it is quoted well. Otherwise the file is read as pandas writes it if that gives every row as many cells;
    if it does not, quotes are signs like any other, and the lines that have other numbers of cells are counted.
    """
    counts = {line.count("\t") for line in file if line.strip()}
    file.seek(0)
    quoted = csv.reader(file, delimiter="\t", strict=True)
    if len(counts) > 1 and _are_alike(quoted):
        file.seek(0)
        rows = iter(csv.reader(file, delimiter="\t", strict=True))
    else:
        file.seek(0)
        rows = map(_cells, file)
    yield from _rows(path, rows, needs_caption, skipped, noted)


def _are_alike(rows: Iterable[list[str]]) -> bool:
    try:
        return len({len(row) for row in rows if row}) == 1
    except csv.Error:
        return False


def _cells(line: str) -> list[str]:
    """The cells of one line of a tsv, each unquoted if it is quoted well."""
    cells = line.rstrip("\r\n").split("\t") if line.strip() else []
    return [
        cell[1:-1].replace('""', '"')
        if len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', "")
        else cell
        for cell in cells
    ]


def _rows(
    path: Path, rows: Iterator[list[str]], needs_caption: bool, skipped: Counter[str], noted: Counter[str]
) -> Iterator[Row]:
    """Rows of cells as rows of a list: the first one is the header, unless it names a picture that is there."""
    first, folder = next(rows, []), path.parent
    if _fits(first, folder) == LIST_WITHOUT_HEADER:
        image, label = 0 if is_file_in(places_of(folder), folder / first[0].strip()) else 1, None
        caption = 1 - image
        yield Row(first[image].strip(), [first[caption]], None)
    else:
        columns = columns_of(path, first, needs_caption=needs_caption)
        image, caption, label = (None if name is None else first.index(name) for name in columns)
    assert image is not None
    for row in rows:
        if not row:
            continue
        if len(row) != len(first):
            skipped[CELLS] += 1
            continue
        noted["cell of several lines (is a quote missing?)"] += any("\n" in cell.strip() for cell in row)
        captions = [] if caption is None else [row[caption]]
        yield Row(row[image].strip(), captions, None if label is None else row[label])


LIST_WITH_HEADER, LIST_WITHOUT_HEADER = 1001, 1000


def _fits(cells: list[str], folder: Path) -> int:
    """How well the cells of the first line look like a list's: a header, a picture and its caption, or many cells."""
    columns = _columns(cells)
    if columns.image is not None and (columns.caption is not None or columns.label is not None):
        return LIST_WITH_HEADER
    if len(cells) == 2 and any(cell.strip() and is_file_in(places_of(folder), folder / cell.strip()) for cell in cells):
        return LIST_WITHOUT_HEADER
    return len(cells)


def _columns(columns: Sequence[str]) -> Columns:
    known = {column.strip().lower(): column for column in reversed(columns)}
    kinds = (PATH_COLUMNS, CAPTION_COLUMNS, LABEL_COLUMNS)
    return Columns(*(next((known[name] for name in names if name in known), None) for names in kinds))
