"""Lists of pairs: csv, tsv and jsonl files whose rows name a picture and say what is on it.

A row that has not the header's number of cells is counted, never shifted. A csv that does not close its quotes, or goes
on behind one, is an error with its line: what was meant cannot be known, and the next rows are at stake. In a tsv a
quote may be a mark (as pandas and Python's csv write it) or just a sign (as in CC3M's and LAION's): see `_tsv_rows`.
"""

import csv
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, NamedTuple

from limner.data.pairs import LINE_END, NOT_THERE, Pair, Source, cleaned, encoding_of, is_number, label_of, sifted
from limner.data.sources.beside import passed_by
from limner.errors import DataError
from limner.files import is_file_in, places_of, printable

LISTS = (".csv", ".tsv", ".jsonl")
PATH_COLUMNS = ("path", "filepath", "file_path", "image_path", "image", "img", "file", "filename", "file_name")
CAPTION_COLUMNS = ("caption", "text", "sentence", "title", "description", "alt")
LABEL_COLUMNS = ("label", "class", "class_name", "classname", "category", "target", "cls")
CELLS = "row of another number of cells than the header"
SOME_NUMBERS = "label that is a number beside others that are none (all are names)"
SAME_NAME = "column of the same name as another (the {} one is read)"


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
    """The pairs that a list names; of a folder `around` it what it does not name is counted.

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
            return source_of([path], rows, skipped, noted, needs_caption=needs_caption, around=around)
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
    lists: Sequence[Path],
    rows: Iterable[Row],
    skipped: Counter[str],
    noted: Counter[str],
    *,
    needs_caption: bool,
    around: Path | None = None,
) -> Source:
    """The pictures that the rows of `lists`, all in one folder, name: each once with all of its captions and its class.

    Of a folder `around` them, if one is given, what they do not name is counted.
    Labels that are all whole numbers are lines of classnames.txt; others are the classes' names, sorted.
    """
    places = places_of(lists[0].parent)
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
        label = label_of(row.label, noted)
        if label and labels.setdefault(image, label) != label:
            noted["picture with several labels (the first is used)"] += 1
    are_numbers = all(map(is_number, labels.values()))
    noted[SOME_NUMBERS] += 0 if are_numbers else sum(map(is_number, labels.values()))
    names = sorted(set(labels.values()))
    numbers = {name: int(name) if are_numbers else place for place, name in enumerate(names)}
    if around is not None:
        read = {folder / file.name for file in lists}
        skipped.update(passed_by(around.resolve(), lambda file: file in read or _known_as(file, folder) in captions_of))
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
    source = sifted(around or lists[0], pairs, skipped, noted, needs_caption=needs_caption)
    return source if are_numbers else replace(source, classes=tuple(names))


def _known_as(image: Path, folder: Path) -> Path:
    """One path for an image, however a list spells it. A link stays what it is: two names of a file are two pictures,
    and what a cache calls it says nothing."""
    resolved = image.parent.resolve() / image.name
    return resolved if resolved.is_relative_to(folder) else image


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
    path: Path, file: IO[str], needs_caption: bool, skipped: Counter[str], noted: Counter[str]
) -> Iterator[Row]:
    """The row of each line, a JSON object with columns of its own; a caption may be a list of them."""

    def as_record(said: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(said)
        noted[SAME_NAME.format("last")] += len(said) - len(record)
        return record

    names = dict[str, None]()
    good = 0
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line, object_pairs_hook=as_record)
            got = line.strip()[:60]
        except (ValueError, RecursionError) as error:
            record, got = None, f"{getattr(error, 'msg', error)} at its sign {getattr(error, 'pos', 0) + 1:,}"
        if not isinstance(record, dict):
            raise DataError(f"Line {number:,} of {path}", must="be a JSON object", got=got, then="Correct that line.")
        names |= dict.fromkeys(record)
        columns = _columns([name for name, value in record.items() if value not in (None, "", [])])
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
    head = next((line for line in file if line.strip()), "")
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
            is_long = "field limit" in str(error)
            raise DataError(
                f"The row that begins at line {begins} of {path}",
                must=f"have cells of {csv.field_size_limit():,} characters at most"
                if is_long
                else 'close each quote at the end of a cell, and double those inside: "a ""big"" dog"',
                got=error,
                then="Correct that line, or write the list as jsonl.",
            ) from error
        yield row
        begins = rows.line_num + 1


def _tsv_rows(
    path: Path, file: IO[str], needs_caption: bool, skipped: Counter[str], noted: Counter[str]
) -> Iterator[Row]:
    """The rows of a tsv.

    No cell holds a tab or a line's end where a line is a row; a cell is then unquoted if it is quoted well. If more
    rows have the header's number of cells when the file is read as pandas writes it, it is read so; if not, quotes are
    signs like any other.
    """
    by_lines = _misfits(line.count("\t") for line in file if line.strip())
    file.seek(0)
    by_quotes = _misfits(len(row) for row in csv.reader(file, delimiter="\t", strict=True) if row)
    file.seek(0)
    if by_quotes < by_lines:
        rows = iter(csv.reader(file, delimiter="\t", strict=True))
    else:
        rows = (_cells(line, noted) for line in file)
    yield from _rows(path, rows, needs_caption, skipped, noted)


def _misfits(counts: Iterable[int]) -> int | float:
    """How many rows have another number of cells than the first; infinitely many if one cannot be read."""
    counts = iter(counts)
    first = next(counts, 0)
    try:
        return sum(count != first for count in counts)
    except csv.Error:
        return float("inf")


def _cells(line: str, noted: Counter[str]) -> list[str]:
    """The cells of one line of a tsv, each unquoted if it is quoted well."""
    cells = line.rstrip("\r\n").split("\t") if line.strip() else []
    noted["cell that begins with a quote that nothing closes (read as it is)"] += any(
        cell.startswith('"') and cell.count('"') % 2 for cell in cells
    )
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
    first, folder = next(filter(None, rows), []), path.parent
    if _fits(first, folder) == LIST_WITHOUT_HEADER:
        image, label = 0 if is_file_in(places_of(folder), folder / first[0].strip()) else 1, None
        caption = 1 - image
        yield Row(first[image].strip(), [first[caption]], None)
    else:
        columns = columns_of(path, first, needs_caption=needs_caption)
        same = Counter(name.strip().lower() for name in first)
        noted[SAME_NAME.format("first")] += sum(same[name.strip().lower()] - 1 for name in columns if name is not None)
        image, caption, label = (None if name is None else first.index(name) for name in columns)
    assert image is not None
    for row in rows:
        if not row:
            continue
        ends = sum(len(LINE_END.findall(cell.strip())) for cell in row)
        noted["cell of several lines (is a quote missing?)"] += ends > 0
        while len(row) > len(first) and not row[-1].strip():
            row.pop()  # a delimiter at the end of each row
        if len(row) != len(first):
            skipped[CELLS] += 1 + ends  # lines that a quote has taken for one row
            continue
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
