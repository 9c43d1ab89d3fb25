import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.tars import tar
from limner.data.pairs import SEVERAL_LINES
from limner.data.sources import folders
from limner.data.sources.beside import HEIC
from limner.data.sources.folders import ALONE, CLOSED, HIDDEN, LEADS_OUT, LINKED, OTHER, UNREAD_TEXT
from limner.data.sources.read import read_images, read_pairs


def test_a_folder(folder_of_pairs: Path):
    source = read_pairs(folder_of_pairs)
    assert len(source) == 40 and not source.skipped
    assert source[3].key == "03.png" and source[3].captions == ("picture number 3",)
    assert source[3].read() == (folder_of_pairs / "03.png").read_bytes()


def test_a_folder_within_a_folder(folder_of_pairs: Path):
    source = read_pairs(folder_of_pairs.parent)
    assert source[0].key == "pairs/00.png"


def test_what_cannot_be_used_is_counted(folder_of_pairs: Path):
    (folder_of_pairs / "00.txt").unlink()
    (folder_of_pairs / "01.txt").write_text(" \n")
    (folder_of_pairs / "02.png").write_bytes(b"")
    source = read_pairs(folder_of_pairs)
    assert len(source) == 37
    assert source.skipped == {"no caption": 2, "empty picture file": 1}
    assert len(read_images(folder_of_pairs)) == 39


def test_links_out_of_the_folder_are_not_followed(folder_of_pairs: Path, picture: Callable[..., bytes]):
    outside = folder_of_pairs.parent / "secret.png"
    outside.write_bytes(picture())
    (folder_of_pairs / "link.png").symlink_to(outside)
    source = read_images(folder_of_pairs)
    assert len(source) == 40 and source.skipped == {LEADS_OUT: 1}


def test_caption_links_out_of_the_folder_are_not_followed(folder_of_pairs: Path):
    (folder_of_pairs.parent / "secret.txt").write_text("secret")
    (folder_of_pairs / "00.txt").unlink()
    (folder_of_pairs / "00.txt").symlink_to(folder_of_pairs.parent / "secret.txt")
    (folder_of_pairs / "circle.png").symlink_to(folder_of_pairs / "circle.png")
    source = read_pairs(folder_of_pairs)
    assert len(source) == 39 and "secret" not in set(source.captions())


def keys(path: Path) -> list[str]:
    return [pair.key for pair in read_images(path)]


def test_links_to_folders_are_followed_once_wherever_they_lead(tmp_path: Path, picture: Callable[..., bytes]):
    data, outside = tmp_path / "data", tmp_path / "elsewhere" / "dogs"
    for path in (data / "real" / "0.png", outside / "1.png", outside / "small" / "2.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture())
    (outside / "2.png").symlink_to("1.png")
    (outside / "circle").symlink_to(data)
    for name, leads_to in {"alias": "real", "dogs": outside, "again": outside / "small", "more": data / "dogs"}.items():
        (data / name).symlink_to(leads_to)
    (data / "up").symlink_to(tmp_path)
    source = read_images(data)
    assert keys(data) == ["real/0.png", "again/2.png", "dogs/1.png", "dogs/2.png"]
    assert source[1].path == data / "again" / "2.png" and not source.skipped
    assert source.noted == {LINKED: 5}  # alias, more, up; in dogs circle and small


@pytest.mark.parametrize(
    ("data", "cache"),
    [
        ("models--a/snapshots/1f/train", "models--a/blobs"),
        ("repository/photos", "repository/.git/annex/objects/x/y"),
        ("repository/photos", "repository/.dvc/cache/files/md5/ab"),
    ],
)
def test_links_into_a_cache_around_the_folder_are_followed(
    tmp_path: Path, picture: Callable[..., bytes], data: str, cache: str
):
    folder, kept = tmp_path / data, tmp_path / cache
    folder.mkdir(parents=True)
    kept.mkdir(parents=True)
    for name, content in {"a.png": picture(1), "a.txt": b"a dog", "list.csv": b"path,caption\na.png,a cat\n"}.items():
        blob = kept / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (folder / name).symlink_to(os.path.relpath(blob, folder))
    source = read_pairs(folder)
    assert [(pair.key, pair.captions) for pair in source] == [("a.png", ("a dog",))] and not source.skipped
    assert source[0].read() == picture(1)
    from_list = read_pairs(folder / "list.csv")
    assert [(pair.key, pair.captions) for pair in from_list] == [("a.png", ("a cat",))]


def test_what_the_walk_passes_by_is_counted(folder_of_pairs: Path, picture: Callable[..., bytes]):
    (folder_of_pairs / "alias").symlink_to(folder_of_pairs.parent)
    (folder_of_pairs / ".hidden").mkdir()
    (folder_of_pairs / ".hidden" / "a.png").write_bytes(picture())
    (folder_of_pairs / ".b.png").write_bytes(picture())
    (folder_of_pairs / "photo.HEIC").write_bytes(b"x")
    (folder_of_pairs / "notes.pdf").write_bytes(b"x")
    (folder_of_pairs / "gone.txt").write_text("a caption")
    (folder_of_pairs / "classnames.txt").write_text("dog")
    (folder_of_pairs / "classnames.csv").write_text("0,dog")
    source = read_pairs(folder_of_pairs)
    assert len(source) == 40 and source.skipped == {HEIC: 1}
    assert source.noted == {LINKED: 1, HIDDEN: 2, OTHER: 1, ALONE: 1}


def test_folders_and_captions_that_may_not_be_read_are_counted(folder_of_pairs: Path, monkeypatch: pytest.MonkeyPatch):
    (folder_of_pairs / "inner").mkdir()
    scandir, opened = os.scandir, Path.open

    def closed(path: Path, *args: Any) -> Any:
        if path.name in ("inner", "05.txt"):
            raise PermissionError(13, "Permission denied")
        return scandir(path) if not args else opened(path, *args)

    monkeypatch.setattr(folders.os, "scandir", closed)
    monkeypatch.setattr(Path, "open", closed)
    source = read_pairs(folder_of_pairs)
    assert len(source) == 39 and source.skipped == {"no caption": 1}
    assert source.noted == {CLOSED: 1, UNREAD_TEXT: 1}


@pytest.mark.parametrize("place", ["pairs", "."])
def test_lines_are_captions_where_dataset_type_says_retrieval(folder_of_pairs: Path, place: str):
    (folder_of_pairs / "03.txt").write_text("a dog\n\n  a hound \n")
    source = read_pairs(folder_of_pairs)
    assert source[3].captions == ("a dog\n\n  a hound",) and source.noted == {SEVERAL_LINES: 1}
    (folder_of_pairs.parent / place / "dataset_type.txt").write_text("retrieval\n")
    source = read_pairs(folder_of_pairs)
    assert source[3].captions == ("a dog", "a hound") and not source.noted


def test_lines_of_txt_members_are_captions_in_a_retrieval_set(folder_of_pairs: Path, picture: Callable[..., bytes]):
    folder = folder_of_pairs.parent / "sets" / "test"
    tar(folder / "0.tar", {"a.png": picture(), "a.txt": b"a dog\na hound\n", "b.png": picture(), "b.txt": b"x"})
    whole = read_pairs(folder)
    assert whole[0].captions == ("a dog\na hound",) and whole.noted == {SEVERAL_LINES: 1}
    (folder.parent / "dataset_type.txt").write_text("retrieval")
    lines = read_pairs(folder)
    assert lines[0].captions == ("a dog", "a hound") and lines[1].captions == ("x",) and not lines.noted
    assert lines.fingerprint != whole.fingerprint
