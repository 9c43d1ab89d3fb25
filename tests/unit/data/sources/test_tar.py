"""The tar reader beside Python's own."""

import os
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from helpers.tars import tar
from limner.data.sources.tar import CutShort, members

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
SIGNS = st.characters(exclude_categories=("Cs",), exclude_characters="/\0")
PARTS = st.text(SIGNS, min_size=1, max_size=12) | st.builds(str.__mul__, st.sampled_from("aé☕🙂"), st.integers(1, 120))
NAMES = st.lists(PARTS, min_size=1, max_size=5).map("/".join)
CONTENTS = st.integers(0, 1600).map(lambda size: bytes(i % 251 for i in range(size)))


def by_tarfile(path: Path) -> list[tuple[str, int, int]]:
    with tarfile.open(path) as reader:
        return [(info.name, info.offset_data, info.size) for info in reader if info.isfile() and not info.issparse()]


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
    try:
        tar(path, contents, format)
    except ValueError:  # USTAR: a name that cannot be cut in two
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
    tar(path, {f"{'d' * 90}/{'n' * 60}{i}.jpg": bytes(700) for i in range(4)}, format)
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
    tar(path, {f"{'n' * 150}{i}.jpg": bytes(300) for i in range(3)}, tarfile.PAX_FORMAT)
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
    with tarfile.open(tmp_path / "0.tar", "w") as writer:
        for kind in kinds:
            info = tarfile.TarInfo("x")
            info.type, info.linkname = kind, "/etc/passwd"
            writer.addfile(info)
    noted = Counter[str]()
    assert by_limner(tmp_path / "0.tar", noted) == []
    assert noted == {"shard member that is not a plain file": len(kinds) - 1}
