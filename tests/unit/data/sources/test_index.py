"""The index file's life: built, read again, checked, built anew."""

import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from helpers.tars import tar
from limner.data.sources import index, shards
from limner.data.sources.index import index_file
from limner.data.sources.read import read_pairs
from limner.data.sources.tar import Member
from limner.errors import DataError, StorageError


@pytest.fixture
def shard(tmp_path: Path, picture: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shard of two pairs."""
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    forget()
    return write(tmp_path / "data" / "0.tar", picture, "one", "two")


def forget() -> None:
    """As a program that starts anew."""
    for kept in (index._indexes, index._unkept, index._seen):
        kept.clear()


def write(path: Path, picture: Callable[..., bytes], *captions: str) -> Path:
    contents: dict[str, bytes] = {}
    for i, caption in enumerate(captions):
        contents |= {f"{i}.png": picture(seed=i), f"{i}.txt": caption.encode()}
    return tar(path, contents, tarfile.PAX_FORMAT)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The shards whose members were read, for an index."""
    real, paths = shards.members, list[Path]()

    def reading(file: IO[bytes], noted: Counter[str]) -> Iterator[Member]:
        paths.append(Path(file.name))
        return real(file, noted)

    monkeypatch.setattr(shards, "members", reading)
    return paths


def captions(path: Path) -> list[str]:
    forget()
    return list(read_pairs(path).captions())


def test_an_index_is_built_once(shard: Path, built: list[Path]):
    assert captions(shard) == captions(shard) == captions(shard.parent) == ["one", "two"]
    assert built == [shard]
    assert sorted(path.name for path in (shard.parent / ".limner").iterdir()) == ["0.tar.index"]


def test_a_shard_with_another_time_and_the_same_content_keeps_its_index(shard: Path, built: list[Path]):
    before = read_pairs(shard).fingerprint
    os.utime(shard, ns=(1, 1))
    assert captions(shard) == ["one", "two"] and read_pairs(shard).fingerprint == before
    file = index_file(shard)
    kept = file.stat().st_mtime_ns
    read_pairs(shard)
    assert built == [shard] and file.stat().st_mtime_ns == kept  # the new time was noted, so it is not hashed again


@pytest.mark.parametrize("texts", [("one", "six"), ("one", "two", "three")])
def test_a_shard_with_another_content_is_indexed_anew(
    texts: tuple[str, ...], shard: Path, built: list[Path], picture: Callable[..., bytes]
):
    before = read_pairs(shard).fingerprint
    write(shard, picture, *texts)
    os.utime(shard, ns=(1, 1))
    assert captions(shard) == list(texts)
    assert built == [shard, shard] and read_pairs(shard).fingerprint != before


def test_where_the_folder_cannot_be_written_the_index_goes_to_the_cache(
    shard: Path, built: list[Path], monkeypatch: pytest.MonkeyPatch
):
    real = index.write_bytes

    def refusing(path: Path, content: bytes) -> None:
        if shard.parent in path.parents:
            raise StorageError(f"The file {path}", must="be written whole", got="a read-only disk", then="")
        real(path, content)

    monkeypatch.setattr(index, "write_bytes", refusing)
    assert captions(shard) == captions(shard) == ["one", "two"]
    assert built == [shard] and not (shard.parent / ".limner").exists()
    assert len(list((shard.parents[1] / "cache" / "indexes").iterdir())) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content[:100],
        lambda content: b"\xff" * 8 + content[8:],
        lambda content: content.replace(index.FORMAT.encode(), b"limner index 0"),
        lambda content: content.replace(b'\\"sha256\\"', b'\\"sha2\\"56\\'),
        lambda content: b"\x80\x04\x95" + content,
    ],
    ids=["empty", "a byte short", "cut", "a header of exbibytes", "another format", "no JSON", "another file"],
)
def test_a_damaged_index_is_built_anew(damage: Callable[[bytes], bytes], shard: Path, built: list[Path]):
    read_pairs(shard)
    file = index_file(shard)
    content = damage(file.read_bytes())
    file.write_bytes(content)
    assert captions(shard) == ["one", "two"]
    assert built == [shard, shard] and file.read_bytes() != content


def test_an_index_with_a_flipped_byte_is_built_anew(shard: Path):
    read_pairs(shard)
    content = bytearray(index_file(shard).read_bytes())
    at = content.index(b"onetwo")
    content[at] ^= 2
    index_file(shard).write_bytes(content)
    assert captions(shard) == ["one", "two"]


def test_an_index_that_changes_while_it_is_used_is_an_error(shard: Path, picture: Callable[..., bytes]):
    source = read_pairs(shard)
    write(shard, picture, "one", "six")
    read_pairs(shard)
    with pytest.raises(DataError, match="stay as they are"):
        source[0]
    index_file(shard).unlink()
    index._indexes.clear()
    with pytest.raises(DataError, match="stay as they are"):
        source[0]


def test_a_shard_in_use_stays_in_memory(shard: Path):
    source = read_pairs(shard)
    assert source[0].captions == ("one",)
    index_file(shard).unlink()
    assert source[1].captions == ("two",)


def test_a_tar_of_nothing_but_other_things_has_no_pairs(shard: Path):
    tar(shard, {"README": b"x", "a.txt": b"y"})
    with pytest.raises(DataError, match="Got none, and 2 skipped: no picture"):
        read_pairs(shard)


def test_an_index_of_another_format_is_made_anew(shard: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(index, "FORMAT", "limner index 2")
    source = read_pairs(shard)
    assert b"limner index 2" in index_file(shard).read_bytes()
    monkeypatch.undo()
    monkeypatch.setenv("LIMNER_CACHE", str(shard.parents[1] / "cache"))
    assert captions(shard) == ["one", "two"] and read_pairs(shard).fingerprint == source.fingerprint
    assert index.FORMAT.encode() in index_file(shard).read_bytes()


# --- another file of the same size and time --------------------------------------------------------------------------


def in_place(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())


def renamed(path: Path, other: Path) -> None:
    other.replace(path)


def linked(path: Path, other: Path) -> None:
    path.unlink()
    path.hardlink_to(other)


def by_symlink(path: Path, other: Path) -> None:
    path.unlink()
    path.symlink_to(other)


def with_its_index_left(path: Path, other: Path) -> None:
    copied = path.parent / "copied"
    copied.mkdir()
    shutil.copytree(path.parent / ".limner", copied / ".limner")
    shutil.copy2(other, copied / path.name)
    for file in path.parent.glob("0.tar"):
        shutil.rmtree(path.parent / ".limner")
        file.unlink()
    shutil.copytree(copied / ".limner", path.parent / ".limner")
    shutil.copy2(copied / path.name, path)
    shutil.rmtree(copied)


REPLACED = [in_place, renamed, linked, by_symlink, with_its_index_left]


@pytest.mark.parametrize("replace", REPLACED)
def test_another_shard_of_the_same_size_and_time_is_noticed(
    replace: Callable[[Path, Path], None], shard: Path, tmp_path: Path, picture: Callable[..., bytes]
):
    other = write(tmp_path / "other.tar", picture, "six", "ten")
    for path in (shard, other):
        os.utime(path, ns=(10**18, 10**18))
    assert captions(shard) == ["one", "two"] and shard.stat().st_size == other.stat().st_size
    before = read_pairs(shard)
    replace(shard, other)
    os.utime(shard, ns=(10**18, 10**18))
    with pytest.raises(DataError, match="stay as they are"):  # what is open already does not mix the two
        before[0]
    assert captions(shard) == ["six", "ten"] and read_pairs(shard).fingerprint != before.fingerprint


def test_a_shard_that_is_written_right_after_it_was_indexed_is_noticed(shard: Path, picture: Callable[..., bytes]):
    for word in ("abc", "def", "ghi", "jkl", "mno"):  # as fast as it goes: clocks of files tick every few ms
        write(shard, picture, word, word)
        os.utime(shard, ns=(1, 1))
        assert captions(shard) == [word, word]


def test_a_copy_with_its_index_is_hashed_once(shard: Path, built: list[Path], monkeypatch: pytest.MonkeyPatch):
    read_pairs(shard)
    hashed, real = list[Path](), index.sha256_of
    monkeypatch.setattr(index, "sha256_of", lambda path: hashed.append(path) or real(path))
    copied = shard.parents[1] / "copied"
    shutil.copytree(shard.parent, copied)
    for _ in range(2):
        assert captions(copied / "0.tar") == ["one", "two"]
    assert built == [shard] and hashed == [copied / "0.tar"]


def test_a_shard_that_is_touched_while_it_is_used_is_read_on(shard: Path):
    source = read_pairs(shard)
    os.utime(shard, ns=(5, 5))
    assert source[0].captions == ("one",) and source[0].read()


# --- places that cannot be written -----------------------------------------------------------------------------------


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full, or read only."""

    def refusing(path: Path, content: bytes) -> None:
        raise StorageError(f"The file {path}", must="be written whole", got="no space left on device", then="")

    monkeypatch.setattr(index, "write_bytes", refusing)


def test_where_nothing_can_be_written_indexes_are_in_memory(
    shard: Path, built: list[Path], refused: None, picture: Callable[..., bytes], capsys: pytest.CaptureFixture[str]
):
    write(shard.parent / "1.tar", picture, "three")
    source = read_pairs(shard.parent)
    for one in (source, read_pairs(shard.parent)):
        assert list(one.captions()) == ["one", "two", "three"] and one[2].read() == picture(seed=0)
    index._indexes.clear()
    assert list(source.captions()) == ["one", "two", "three"]
    told = capsys.readouterr().err
    assert told.count("Indexes of 2 files are kept in memory only") == 1 and "LIMNER_CACHE" in told
    assert str(shard.parent) in told and str(shard.parents[1] / "cache") in told
    assert sorted(built) == [shard, shard.parent / "1.tar"]


@pytest.mark.parametrize("home", ["a file", "a folder in a file", "not there"])
def test_a_home_that_is_none_does_not_keep_data_from_being_read(
    home: str, shard: Path, built: list[Path], monkeypatch: pytest.MonkeyPatch
):
    file = shard.parents[1] / "file"
    file.touch()
    places = {"a file": file, "a folder in a file": file / "home", "not there": Path("/proc/none")}
    monkeypatch.delenv("LIMNER_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(places[home]))
    (shard.parent / ".limner").touch()  # no folder of indexes can be made
    assert captions(shard) == ["one", "two"] and shard in index._unkept


def test_where_no_home_is_known_data_is_read(shard: Path, monkeypatch: pytest.MonkeyPatch):
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("LIMNER_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", staticmethod(nobody))
    (shard.parent / ".limner").touch()
    assert captions(shard) == ["one", "two"] and shard in index._unkept


def test_shards_that_are_named_twice_are_two(shard: Path):
    assert [pair.key for pair in read_pairs(f"{shard.parent}/{{0,0}}.tar")] == ["0/0", "0/1", "1/0", "1/1"]
