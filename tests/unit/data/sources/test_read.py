from pathlib import Path
from typing import Any

import pytest

from limner.data.pairs import Pair, Source, listed
from limner.data.sources import read as module
from limner.data.sources.read import LAYOUTS, Layout, read_images, read_pairs, split_pairs
from limner.errors import DataError


@pytest.mark.parametrize("name", ["empty", "missing", "notes.doc"])
def test_nothing_to_read(tmp_path: Path, name: str):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.doc").write_text("x")
    with pytest.raises(DataError, match="must"):
        read_pairs(tmp_path / name)


# --- layouts ---------------------------------------------------------------------------------------------------------


def is_numbered(path: str) -> bool:
    return path.endswith(".numbers")


def read_numbered(path: str, *, needs_caption: bool) -> Source:
    """A layout of somebody else's: a file with the first and last number of some pictures beside it."""
    file = Path(path)
    first, last = map(int, file.read_text().split())
    pictures = [file.with_name(f"{number:02d}.png") for number in range(first, last)]
    return listed(file, [Pair(p.stem, p, 0, p.stat().st_size, (f"number {p.stem}",)) for p in pictures])


def test_a_layout_is_one_file_and_one_line(folder_of_pairs: Path, monkeypatch: pytest.MonkeyPatch):
    numbers = folder_of_pairs / "some.numbers"
    numbers.write_text("3 7")
    with pytest.raises(DataError, match="must be a folder, a list"):
        read_pairs(numbers)
    monkeypatch.setattr(module, "LAYOUTS", (Layout("numbered", is_numbered, read_numbered), *LAYOUTS))
    source = read_pairs(numbers)
    assert [pair.key for pair in source] == ["03", "04", "05", "06"] and source[1].captions == ("number 04",)
    assert source[1].read() == (folder_of_pairs / "04.png").read_bytes()
    assert [pair.key for pair in read_pairs(f"{numbers}::{folder_of_pairs}")][3:5] == ["0/06", "1/00.png"]
    assert len(read_pairs(folder_of_pairs)) == 40  # the others are as they were
    numbers.write_text("0 0")
    with pytest.raises(DataError, match=r"must hold pictures .* with captions"):
        read_pairs(numbers)


def test_each_path_fits_the_layout_that_it_is(folder_of_pairs: Path, tmp_path: Path):
    (tmp_path / "0.tar").write_bytes(b"")
    for name in ("list.csv", "list.tsv", "list.jsonl", "notes.txt"):
        (tmp_path / name).write_text("")
    (tmp_path / "lists.csv").mkdir()
    (tmp_path / "list.parquet").write_bytes(b"")
    paths = {
        "s3://bucket/folder": "shards",
        f"{tmp_path}/{{0..9}}.tar": "shards",
        f"{tmp_path}/0.tar": "shards",
        str(tmp_path): "shards",
        f"{tmp_path}/list.parquet": "tables",
        f"{tmp_path}/list.csv": "list",
        f"{tmp_path}/list.tsv": "list",
        f"{tmp_path}/list.jsonl": "list",
        f"{tmp_path}/lists.csv": "folder",
        str(folder_of_pairs): "folder",
    }
    fitting = {path: next(layout.name for layout in LAYOUTS if layout.fits(path)) for path in paths}
    assert fitting == paths
    for nothing in (f"{tmp_path}/notes.txt", f"{tmp_path}/1.tar", f"{tmp_path}/none.csv", f"{tmp_path}/none"):
        assert not any(layout.fits(nothing) for layout in LAYOUTS), nothing


# --- what a run trains on --------------------------------------------------------------------------------------------


def test_a_run_trains_on_what_is_not_kept_back(folder_of_pairs: Path):
    data = str(folder_of_pairs)
    trained, kept_back = split_pairs(data, (), holdout=0.2)
    assert sorted([pair.key for pair in trained] + [pair.key for pair in kept_back]) == [
        f"{number:02d}.png" for number in range(40)
    ]
    everything, nothing = split_pairs(data, (), holdout=0.0)
    assert everything.fingerprint == read_pairs(data).fingerprint and len(nothing) == 0
    mixed, _ = split_pairs(f"{data}::{data}", (1.0, 2.0), holdout=0.2)
    assert [share for _, share in mixed.shares] == [1.0, 2.0] and 40 < len(mixed) < 80


def test_pictures_need_no_captions(folder_of_pairs: Path):
    for text in folder_of_pairs.glob("*.txt"):
        text.unlink()
    assert len(read_images(folder_of_pairs)) == 40
    with pytest.raises(DataError, match=r"with captions\. Got none, and 40 skipped: no caption"):
        read_pairs(folder_of_pairs)


@pytest.mark.parametrize("path", ["", " ", None, b"data", ["a", "b"]])
def test_what_is_no_path_is_refused(path: Any):
    with pytest.raises(DataError, match=r"The data path must be a text or a pathlib\.Path"):
        read_pairs(path)


def test_what_may_not_be_read_is_an_error_of_limner(folder_of_pairs: Path, monkeypatch: pytest.MonkeyPatch):
    """As of a metadata.csv, a train/ or a dataset_type.txt of somebody else's, whatever layout looks at it."""

    def closed(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied", "metadata.csv")

    for which in ("fits", "read"):
        layout = Layout("closed", **({"fits": lambda _: True, "read": read_images} | {which: closed}))
        monkeypatch.setattr(module, "LAYOUTS", (layout,))
        with pytest.raises(DataError, match=r"must be readable. Got .*Permission denied.*metadata.csv.*permissions"):
            read_pairs(folder_of_pairs)


@pytest.mark.parametrize("path", ["{0}::", "::{0}", "{0}:: ::{0}"])
def test_a_source_without_a_name_is_no_source(folder_of_pairs: Path, path: str):
    with pytest.raises(DataError, match="must name a source on each side of ::"):
        read_pairs(path.format(folder_of_pairs))
