import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.tars import tar
from limner.data.pairs import CUT, MAX_CAPTION, SEVERAL_LINES
from limner.data.sources import index
from limner.data.sources.beside import IMAGE, OTHER_TAR
from limner.data.sources.read import read_images, read_pairs
from limner.data.sources.shards import BESIDE_CLS, DOTTED, NO_ROW, OTHER_LENGTH, SEVERAL_IMAGES, label_row
from limner.errors import DataError


def test_shards(tmp_path: Path, picture: Callable[..., bytes]):
    tar(
        tmp_path / "00000.tar",
        {
            "a.png": picture(seed=1),
            "a.txt": b" a caption ",
            "a.cls": b"3\n",
            "b.jpg": picture(seed=2, format="JPEG"),
            "b.txt": b"first",
            "b.json": json.dumps({"captions": ["one", "two"], "held_out": True}).encode(),
            "c.txt": b"no picture",
            "d.png": picture(seed=3),
            "e.png": picture(seed=4),
            "e.json": b"{broken",
            "e.txt": b"still here",
        },
    )
    source = read_pairs(tmp_path)
    assert [pair.key for pair in source] == ["a", "b", "e"]
    assert source[0].captions == ("a caption",) and source[0].label == 3 and not source[0].held_out
    assert source[1].captions == ("one", "two") and source[1].held_out and source[1].label is None
    assert source[0].read() == picture(seed=1)
    assert source.skipped == {"no picture": 1, "no caption": 1}
    assert source.noted == {"unreadable .json (the pair's .txt is used)": 1}


def test_links_in_a_shard_are_not_followed(tmp_path: Path, picture: Callable[..., bytes]):
    tar(tmp_path / "0.tar", {"a.png": picture(), "a.txt": b"x"})
    with tarfile.open(tmp_path / "0.tar", "a") as writer:
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        writer.addfile(link)
    source = read_pairs(tmp_path)
    assert len(source) == 1 and source.noted == {"shard member that is not a plain file": 1}


def test_of_a_cut_shard_the_pairs_before_the_cut_are_used(tmp_path: Path, picture: Callable[..., bytes]):
    path = tar(
        tmp_path / "0.tar", {"a.png": picture(200, 200), "a.txt": b"x", "b.png": picture(200, 200), "b.txt": b"x"}
    )
    path.write_bytes(path.read_bytes()[:130_000])
    source = read_pairs(tmp_path)
    assert [pair.key for pair in source] == ["a"]
    assert [reason[:25] for reason in source.noted] == ["shard cut short (0.tar: 1"]
    path.write_bytes(b"<html>" * 1000)
    with pytest.raises(DataError, match="whole, plain tar"):
        read_pairs(tmp_path)


def test_folders_inside_a_shard_and_shards_that_count_anew(tmp_path: Path, picture: Callable[..., bytes]):
    for name in ("0.tar", "1.tar"):
        tar(
            tmp_path / name,
            {
                "cats/001.png": picture(seed=1),
                "cats/001.txt": b"a cat",
                "dogs/001.png": picture(seed=2),
                "dogs/001.txt": b"a dog",
            },
        )
    (tmp_path / "loose.png").write_bytes(picture())
    source = read_pairs(tmp_path)
    assert [(pair.key, pair.captions[0]) for pair in source] == [
        ("0/cats/001", "a cat"),
        ("0/dogs/001", "a dog"),
        ("1/cats/001", "a cat"),
        ("1/dogs/001", "a dog"),
    ]
    assert source.skipped == {IMAGE: 1}


def test_a_second_picture_of_the_same_key_is_counted(tmp_path: Path, picture: Callable[..., bytes]):
    tar(tmp_path / "0.tar", {"a.png": picture(), "a.jpg": picture(seed=1), "a.webp": picture(), "a.txt": b"a dog"})
    source = read_pairs(tmp_path)
    assert len(source) == 1 and source[0].read() == picture(seed=1) and source.skipped == {SEVERAL_IMAGES: 2}


def test_pictures_with_dots_in_their_names_are_counted_one_by_one(tmp_path: Path, picture: Callable[..., bytes]):
    dotted = {f"video.{number}.png": picture() for number in range(3)}
    tar(tmp_path / "0.tar", {"a.png": picture(), "a.txt": b"a dog", "a.05.png": picture(), **dotted, "video.txt": b"x"})
    source = read_pairs(tmp_path)
    assert len(source) == 1 and source.skipped == {DOTTED: 4}


def test_tars_beside_shards_that_are_not_read_are_counted(tmp_path: Path, picture: Callable[..., bytes]):
    content = tar(tmp_path / "0.tar", {"a.png": picture(), "a.txt": b"a dog"}).read_bytes()
    (tmp_path / "inner").mkdir()
    for name in ("1.TAR", "2.tar.gz", "3.tgz", "inner/4.tar", "inner/5.tar.zst"):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "0.tar.md5").write_text("the sum of a shard is no shard")
    assert read_pairs(tmp_path).skipped == {OTHER_TAR: 5}


def test_a_long_caption_file_is_cut_as_one_caption_and_whole_as_lines(tmp_path: Path, picture: Callable[..., bytes]):
    lines = [f"caption number {number} {'x' * 90}" for number in range(1500)]
    members = {"a.png": picture(), "a.txt": "\n".join(lines).encode()}
    for folder in ("whole", "lines"):
        tar(tmp_path / folder / "0.tar", members)
    (tmp_path / "loose").mkdir()
    for name, content in members.items():
        (tmp_path / "loose" / name).write_bytes(content)
    whole = read_pairs(tmp_path / "whole")
    assert len(whole[0].captions[0]) == MAX_CAPTION and whole.noted == {SEVERAL_LINES: 1, CUT: 1}
    for folder in ("lines", "loose"):
        (tmp_path / folder / "dataset_type.txt").write_text("retrieval\n", encoding="utf-8-sig")
        source = read_pairs(tmp_path / folder)
        assert list(source[0].captions) == lines and not source.noted


def test_only_ends_of_lines_end_a_caption(tmp_path: Path, picture: Callable[..., bytes]):
    text = "one\u2028still one\x85and\x0bso on\r\ntwo\rthree"
    tar(tmp_path / "0.tar", {"a.png": picture(), "a.txt": text.encode()})
    (tmp_path / "dataset_type.txt").write_text("retrieval")
    assert read_pairs(tmp_path)[0].captions == ("one\u2028still one\x85and\x0bso on", "two", "three")


# --- several labels --------------------------------------------------------------------------------------------------


def npy(values: Any, dtype: Any = np.uint8) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(values, dtype=dtype), allow_pickle=True)
    return file.getvalue()


def with_header(header: str, content: bytes = b"\0" * 4, version: bytes = b"\1\0") -> bytes:
    return b"\x93NUMPY" + version + len(header).to_bytes(2, "little") + header.encode() + content


def header(shape: str, dtype: str = "|u1") -> str:
    return f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n"


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, ">f8", bool])
def test_several_labels_of_a_picture(tmp_path: Path, picture: Callable[..., bytes], dtype: Any):
    rows = {"a": [0, 1, 1, 0], "b": [0, 0, 0, 0], "c": [[1, 0, 0, 1]]}
    members = {f"{key}.png": picture() for key in "abcde"}
    members |= {f"{key}.npy": npy(row, dtype) for key, row in rows.items()}
    tar(tmp_path / "0.tar", members | {"d.cls": b"3", "d.npy": npy([0, 1, 0, 0])})
    for _ in range(2):  # with an index to build, then with the one in its file
        index._indexes.clear()
        source = read_images(tmp_path)
        assert [(pair.label, pair.labels) for pair in source] == [
            (None, (1, 2)),
            (None, ()),
            (None, (0, 3)),
            (3, None),
            (None, None),
        ]
        assert source.noted == {BESIDE_CLS: 1} and source.classes == ()
    assert [pair.key for pair in read_images(tmp_path).where(lambda pair: bool(pair.labels))] == ["a", "c"]


class Unpickled:
    def __reduce__(self) -> Any:
        return pytest.fail, ("a pickle was loaded",)


HOSTILE = {
    "empty": b"",
    "text": b"1 0 0 1",
    "truncated": npy([0, 1] * 8, np.int64)[:-1],
    "longer than it says": npy([0, 1]) + b"\0",
    "cut in its header": npy([0, 1])[:30],
    "objects": npy([Unpickled(), 1], object),
    "a pickle": pickle.dumps(Unpickled()),
    "objects of the right size": with_header(header("(4,)", "|O"), b"\0" * 32),
    "objects by header": with_header(header("(4,)", "|O"), pickle.dumps(Unpickled())),
    "10^12 entries": with_header(header("(1000000000000,)", "<f8")),
    "2^63 entries": with_header(header(f"({2**63},)")),
    "-4 entries": with_header(header("(-4,)")),
    "negative twice": with_header(header("(-1, -4)")),
    "a scalar": npy(1),
    "no class": npy([]),
    "2-D": npy([[0, 1], [1, 0]]),
    "2-D, and a row of it": with_header(header("(4, 4)")),
    "3-D": npy([[[0, 1]]]),
    "a 2": npy([0, 2]),
    "a 2 that says it is bool": with_header(header("(4,)", "|b1"), b"\0\2\1\0"),
    "below 0": npy([0, -1], np.int8),
    "NaN": npy([0, np.nan], np.float64),
    "texts": npy(["0", "1"], str),
    "times": npy([0, 1], "M8[s]"),
    "complex": npy([0, 1], complex),
    "fields": npy([(0, 1)], [("a", "u1"), ("b", "u1")]),
    "bytes without end": with_header(header("(1,)", f"|S{2**31 - 1}")),
    "another version": with_header(header("(4,)"), version=b"\x09\0"),
    "a deep header": with_header("(" * 900 + ")" * 900),
    "a long header": with_header(header("(4,)").rstrip() + " " * 5000 + "\n"),
    "minus without end": with_header("-" * 1000 + "1"),
    "not Python": with_header("{'descr': '|u1', 'shape': (4,"),
    "code": with_header("__import__('os').abort()"),
    "other keys": with_header("{1: 2, 'x': 3}"),
    "a type of digits": with_header(header("(4,)", "1")),
}


@pytest.mark.filterwarnings("ignore")  # numpy's about types that it will not know any more
def test_an_npy_that_is_no_row_of_0_and_1_is_noted(tmp_path: Path, picture: Callable[..., bytes]):
    for number, content in enumerate(HOSTILE.values()):
        assert label_row(content) is None, list(HOSTILE)[number]
    members = {f"{number}.npy": content for number, content in enumerate(HOSTILE.values())}
    images = {f"{number}.png": picture() for number in range(len(HOSTILE) + 2)}
    large, good = f"{len(HOSTILE)}.npy", f"{len(HOSTILE) + 1}.npy"
    tar(tmp_path / "0.tar", images | members | {large: npy(np.zeros(2**20)), good: npy([0, 1])})
    source = read_images(tmp_path)
    assert [pair.labels for pair in source] == [None] * (len(HOSTILE) + 1) + [(1,)]
    assert source.noted == {NO_ROW: len(HOSTILE), ".npy over 1 MiB (not read)": 1}


def test_rows_of_several_lengths_are_noted(tmp_path: Path, picture: Callable[..., bytes]):
    rows = {"a": [0, 1], "b": [0, 1, 1], "c": [1, 0], "d": [1]}
    members = {f"{key}.png": picture() for key in rows} | {f"{key}.npy": npy(row) for key, row in rows.items()}
    tar(tmp_path / "0.tar", members)
    source = read_images(tmp_path)
    assert [pair.labels for pair in source] == [(1,), (1, 2), (0,), (0,)] and source.noted == {OTHER_LENGTH: 2}


@settings(max_examples=25)
@given(rows=st.lists(st.none() | st.lists(st.booleans(), min_size=1, max_size=70), max_size=6), flat=st.booleans())
def test_any_labels_come_back(tmp_path_factory: pytest.TempPathFactory, rows: list[list[bool] | None], flat: bool):
    folder = tmp_path_factory.mktemp("set")
    members: dict[str, bytes] = {"0.png": b"x"}
    for number, row in enumerate(rows, start=1):
        members[f"{number}.png"] = b"x"
        members |= {} if row is None else {f"{number}.npy": npy(row if flat else [row], np.float32)}
    tar(folder / "0.tar", members)
    expected = [None if row is None else tuple(n for n, one in enumerate(row) if one) for row in [None, *rows]]
    for _ in range(2):
        index._indexes.clear()
        assert [pair.labels for pair in read_images(folder)] == expected


def test_an_index_whose_labels_do_not_hold_together_is_not_used(tmp_path: Path, picture: Callable[..., bytes]):
    shard = tar(
        tmp_path / "0.tar", {"a.png": picture(), "a.npy": npy([0, 1, 1]), "b.png": picture(), "b.npy": npy([1])}
    )
    read_images(shard)
    found = index._load(index.index_file(shard))
    assert found is not None and index._is_sound(found)
    sets, ends = found.arrays["label_sets"], found.arrays["set_ends"]
    for wrong in (
        {"label_sets": sets[[1, 0, 2]]},
        {"label_sets": sets - 1},
        {"label_sets": sets + 2**20},
        {"label_sets": sets.astype(float)},
        {"label_sets": sets[:-1]},
        {"set_ends": ends[:-1]},
        {"set_ends": ends - 3},
        {"set_ends": ends[::-1].copy()},
    ):
        changed = index.Index(found.sha256, found.size, {}, {}, found.arrays | wrong)
        assert not index._is_sound(changed), wrong
    without = {name: array for name, array in found.arrays.items() if name != "set_ends"}
    with pytest.raises(KeyError):
        index._is_sound(index.Index(found.sha256, found.size, {}, {}, without))
