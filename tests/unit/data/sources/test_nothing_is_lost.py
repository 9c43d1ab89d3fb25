"""Of made-up tables and folders: what is read and what is counted is, together, what is there."""

import csv
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from limner.data.pairs import IMAGE_ENDINGS, NOT_THERE
from limner.data.sources.beside import HEIC
from limner.data.sources.folders import ALONE, HIDDEN, LEADS_OUT, LINKED, OTHER, read_folder
from limner.data.sources.lists import CELLS, read_list

CAPTIONS = some.text(some.characters(exclude_categories=["Cs", "Cc"]), min_size=1).map(str.strip).filter(bool)
"""Of any visible signs: quotes, commas and semicolons among them."""
IMAGES = some.sampled_from(["a.png", "b.png", "c d.png", "gone.png"])
ROWS = some.lists(some.tuples(IMAGES, CAPTIONS), min_size=1, max_size=12)


def as_csv(quoting: int, delimiter: str) -> Callable[[Path, list[tuple[str, ...]]], None]:
    def write(path: Path, rows: list[tuple[str, ...]]) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, quoting=quoting, delimiter=delimiter).writerows([("path", "caption"), *rows])

    return write


def as_jsonl(path: Path, rows: list[tuple[str, ...]]) -> None:
    lines = [json.dumps(dict(zip(("path", "caption"), row, strict=False))) for row in rows]
    path.write_text("\n".join(lines))


WAYS = {
    "minimal.csv": as_csv(csv.QUOTE_MINIMAL, ","),
    "all.csv": as_csv(csv.QUOTE_ALL, ","),
    "semicolons.csv": as_csv(csv.QUOTE_MINIMAL, ";"),
    "minimal.tsv": as_csv(csv.QUOTE_MINIMAL, "\t"),
    "all.tsv": as_csv(csv.QUOTE_ALL, "\t"),
    "lines.jsonl": as_jsonl,
}


def told(name: str, rows: list[tuple[str, ...]], content: bytes) -> tuple[Counter[tuple[str, str]], Counter[str]]:
    """The (image, caption) pairs of a list written in the way `name`, and what was counted."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for image in ("a.png", "b.png", "c d.png"):
            (folder / image).write_bytes(content)
        WAYS[name](folder / name, rows)
        source = read_list(folder / name, needs_caption=True)
        return Counter((pair.key, caption) for pair in source for caption in pair.captions), source.skipped


@pytest.mark.parametrize("name", WAYS)
@given(rows=ROWS)
def test_every_row_of_a_list_is_read_as_it_was_written(name: str, rows: list[tuple[str, str]], picture: Any):
    found, skipped = told(name, rows, picture())
    assert found == Counter(row for row in rows if row[0] != "gone.png")
    assert skipped == +Counter({NOT_THERE: sum(row[0] == "gone.png" for row in rows)})


@pytest.mark.parametrize("name", ["minimal.csv", "all.csv", "semicolons.csv", "all.tsv"])
@given(rows=ROWS, cells=some.lists(some.sampled_from([1, 2, 2, 3]), min_size=12, max_size=12))
def test_rows_of_other_numbers_of_cells_are_counted(
    name: str, rows: list[tuple[str, str]], cells: list[int], picture: Any
):
    written = [(*row, "more")[:count] for row, count in zip(rows, cells, strict=False)]
    found, skipped = told(name, written, picture())
    whole = [row for row in written if len(row) == 2]
    assert found == Counter(row for row in whole if row[0] != "gone.png")
    assert skipped[CELLS] == len(written) - len(whole) and skipped.total() + found.total() == len(written)


NAMES = some.sampled_from(
    [
        "a.png",
        "a.txt",
        "A.PNG",
        "b.JPG",
        "b.TXT",
        "c.txt",
        ".hidden.png",
        ".git",
        "photo.heic",
        "notes.md",
        "in",
        "link",
    ]
)
TREES = some.recursive(
    some.just(None), lambda inner: some.dictionaries(NAMES, inner, max_size=6), max_leaves=25
).filter(lambda tree: tree is not None)


@given(tree=TREES, link=some.sampled_from([".", "in", "a.png", "/dev/null", "nowhere"]))
def test_every_file_of_a_folder_is_read_or_counted(tree: dict[str, Any], link: str, picture: Any):
    with tempfile.TemporaryDirectory() as place:
        there = written(Path(place), tree, link, picture())
        source = read_folder(place, needs_caption=False)
    said = source.skipped + source.noted
    read = Counter({"image": len(source), "text": sum(bool(pair.captions) for pair in source)})
    assert read["image"] + said[LEADS_OUT] == there["image"]
    assert (said[HIDDEN], said[HEIC]) == (there["hidden"], there["heic"])
    assert said[OTHER] + said[LINKED] == there["other"]
    assert read["text"] + said[ALONE] == there["text"]
    assert not said.keys() - {LEADS_OUT, HIDDEN, HEIC, OTHER, LINKED, ALONE}


def written(folder: Path, tree: dict[str, Any], link: str, content: bytes) -> Counter[str]:
    """Write a tree of folders (names to trees) and files (names to None); what is there to be found, by kind.

    A file named link is a link; an image or text of another ending's name is as in any folder.
    """
    there = Counter[str]()
    for name, inner in tree.items():
        path = folder / name
        if name.startswith("."):
            path.mkdir() if inner is not None else path.write_bytes(content)
            there["hidden"] += 1
        elif inner is not None:
            path.mkdir()
            there += written(path, inner, link, content)
        elif name == "link":
            path.symlink_to(link)
            there["other"] += 1
        else:
            ending = path.suffix.lower()
            path.write_bytes(b"a caption" if ending == ".txt" else content)
            kind = "image" if ending in IMAGE_ENDINGS else {".txt": "text", ".heic": "heic"}.get(ending, "other")
            there[kind] += 1
    return there
