"""The tar reader beside Python's own, and the index file's life: built, read again, checked, built anew."""

import io
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from limner.data.sources import index
from limner.data.sources.index import index_file
from limner.data.sources.read import read_pairs
from limner.data.sources.tar import CutShort, Member, members
from limner.errors import DataError, StorageError

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
SIGNS = st.characters(exclude_categories=("Cs",), exclude_characters="/\0")
PARTS = st.text(SIGNS, min_size=1, max_size=12) | st.builds(str.__mul__, st.sampled_from("aé☕🙂"), st.integers(1, 120))
NAMES = st.lists(PARTS, min_size=1, max_size=5).map("/".join)
CONTENTS = st.integers(0, 1600).map(lambda size: bytes(i % 251 for i in range(size)))


def tar_of(contents: dict[str, bytes], format: int, path: Path) -> bool:
    """Write a tar; False if the format cannot hold these names."""
    buffer = io.BytesIO()
    try:
        with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
            for name, content in contents.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    except ValueError:  # USTAR: a name that cannot be cut in two
        return False
    path.write_bytes(buffer.getvalue())
    return True


def by_tarfile(path: Path) -> list[tuple[str, int, int]]:
    with tarfile.open(path) as tar:
        return [(info.name, info.offset_data, info.size) for info in tar if info.isfile() and not info.issparse()]


def by_limner(path: Path, noted: Counter[str] | None = None) -> list[tuple[str, int, int]]:
    with path.open("rb") as file:
        return [tuple(member) for member in members(file, Counter() if noted is None else noted)]


@settings(max_examples=40)
@example(
    contents={"x" * 99: b"1", "x" * 100: b"2", "x" * 101: b"3", "d/" * 70 + "x": b"4"}, format=tarfile.USTAR_FORMAT
)
@example(contents={"n" * 256: b"1", "d/" * 300 + "é" * 300: b"2"}, format=tarfile.GNU_FORMAT)
@example(contents={"n" * 256: b"1", "d/" * 300 + "é" * 300: b"2"}, format=tarfile.PAX_FORMAT)
@given(contents=st.dictionaries(NAMES, CONTENTS, min_size=1, max_size=5), format=st.sampled_from(FORMATS))
def test_members_are_those_of_tarfile(
    contents: dict[str, bytes], format: int, tmp_path_factory: pytest.TempPathFactory
):
    path = tmp_path_factory.getbasetemp() / "members.tar"
    if not tar_of(contents, format, path):
        return
    found = by_limner(path)
    assert found == by_tarfile(path)
    whole = path.read_bytes()
    assert [whole[offset : offset + size] for _, offset, size in found] == list(contents.values())


@settings(max_examples=20)
@given(cut=st.integers(1, 9000), format=st.sampled_from(FORMATS))
def test_members_of_a_cut_tar_are_the_first_ones_of_the_whole(
    cut: int, format: int, tmp_path_factory: pytest.TempPathFactory
):
    path = tmp_path_factory.getbasetemp() / "cut.tar"
    tar_of({f"{'d' * 90}/{'n' * 60}{i}.jpg": bytes(700) for i in range(4)}, format, path)
    whole = by_limner(path)
    os.truncate(path, min(cut, path.stat().st_size))
    found: list[tuple[str, int, int]] = []
    try:
        with path.open("rb") as file:
            found.extend(tuple(member) for member in members(file, Counter()))
    except CutShort:
        pass
    ends = [offset + size for _, offset, size in whole]
    assert found == whole[: sum(end <= path.stat().st_size for end in ends)]


@settings(max_examples=60)
@given(at=st.integers(0, 4095), value=st.integers(0, 255))
def test_whatever_a_byte_is_changed_to_nothing_but_cut_short_is_raised(
    at: int, value: int, tmp_path_factory: pytest.TempPathFactory
):
    """With the checksum made right again, so that what stands in the headers is believed."""
    path = tmp_path_factory.getbasetemp() / "changed.tar"
    tar_of({f"{'n' * 150}{i}.jpg": bytes(300) for i in range(3)}, tarfile.PAX_FORMAT, path)
    content = bytearray(path.read_bytes())
    content[at] = value
    for start in range(0, len(content), 512):
        if content[start + 257 : start + 262] == b"ustar":
            content[start + 148 : start + 156] = b" " * 8
            content[start + 148 : start + 156] = b"%06o\0 " % sum(content[start : start + 512])
    path.write_bytes(content)
    try:
        found = by_limner(path)
    except CutShort:
        return
    assert all(0 <= offset <= offset + size <= len(content) for _, offset, size in found)


def test_links_and_folders_are_no_members(tmp_path: Path):
    kinds = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for kind in kinds:
            info = tarfile.TarInfo("x")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    noted = Counter[str]()
    assert by_limner(tmp_path / "0.tar", noted) == []
    assert noted == {"shard member that is not a plain file": len(kinds) - 1}


# --- the index file --------------------------------------------------------------------------------------------------


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
    tar_of(contents, tarfile.PAX_FORMAT, path)
    return path


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The shards whose members were read, for an index."""
    real, paths = index.members, list[Path]()

    def reading(file: IO[bytes], noted: Counter[str]) -> Iterator[Member]:
        paths.append(Path(file.name))
        return real(file, noted)

    monkeypatch.setattr(index, "members", reading)
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
    tar_of({"README": b"x", "a.txt": b"y"}, tarfile.USTAR_FORMAT, shard)
    with pytest.raises(DataError, match="Got none, and 2 skipped: no picture"):
        read_pairs(shard)
