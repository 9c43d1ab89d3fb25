import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.tars import tar
from limner.data.pairs import CUT, MAX_CAPTION, SEVERAL_LINES
from limner.data.sources.beside import IMAGE, OTHER_TAR
from limner.data.sources.read import read_pairs
from limner.data.sources.shards import DOTTED, SEVERAL_IMAGES
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
