"""The index file's life: built, read again, checked, built anew."""

import os
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
    index._indexes.clear()
    return write(tmp_path / "data" / "0.tar", picture, "one", "two")


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
    index._indexes.clear()
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
        lambda content: content.replace(b"limner index 1", b"limner index 0"),
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


def test_an_index_of_the_projects_old_name_is_used(shard: Path, built: list[Path], monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as before:
        before.setattr(index, "FORMAT", "limn index 1")
        source = read_pairs(shard)
    (shard.parent / ".limner").rename(shard.parent / ".limn")
    index._indexes.clear()
    assert b"limn index 1" in (shard.parent / ".limn" / "0.tar.index").read_bytes()
    assert captions(shard) == ["one", "two"] and read_pairs(shard).fingerprint == source.fingerprint
    assert built == [shard] and not (shard.parent / ".limner").exists()


def test_shards_that_are_named_twice_are_two(shard: Path):
    assert [pair.key for pair in read_pairs(f"{shard.parent}/{{0,0}}.tar")] == ["0/0", "0/1", "1/0", "1/1"]
