import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from limner.data.sources.read import read_pairs, read_pictures
from limner.errors import DataError


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
    assert len(read_pictures(folder_of_pairs)) == 39


def test_links_out_of_the_folder_are_not_followed(folder_of_pairs: Path, picture: Callable[..., bytes]):
    outside = folder_of_pairs.parent / "secret.png"
    outside.write_bytes(picture())
    (folder_of_pairs / "link.png").symlink_to(outside)
    source = read_pictures(folder_of_pairs)
    assert len(source) == 40 and source.skipped == {"broken link, or one that leads out of the folder": 1}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.csv", "caption,filepath\n{c},00.png\nanother,01.png\n"),
        ("list.csv", "﻿Image;Text\n00.png;{c}\n01.png;another\n"),
        ("list.tsv", "path\tcaption\n00.png\t{c}\n01.png\tanother\n"),
        ("list.csv", "00.png,{c}\n01.png,another\n"),
        ("list.csv", "{c}|00.png\nanother|01.png\n"),
        ("list.jsonl", '{{"image": "00.png", "text": "{c}"}}\n\n{{"image": "01.png", "text": "another"}}\n'),
    ],
)
def test_lists(folder_of_pairs: Path, name: str, text: str):
    (folder_of_pairs / name).write_text(text.format(c="one caption"), encoding="utf-8")
    source = read_pairs(folder_of_pairs / name)
    assert [(pair.key, pair.captions) for pair in source] == [("00.png", ("one caption",)), ("01.png", ("another",))]


def test_several_rows_about_one_picture_are_its_captions(folder_of_pairs: Path):
    (folder_of_pairs / "list.csv").write_text('path,caption\n00.png,one\n00.png,"two, with a comma"\n')
    assert read_pairs(folder_of_pairs / "list.csv")[0].captions == ("one", "two, with a comma")


def test_a_list_says_which_columns_it_found(folder_of_pairs: Path):
    (folder_of_pairs / "list.csv").write_text("url,words\nhttp://x,y\n")
    with pytest.raises(DataError, match="columns found: 'url', 'words'"):
        read_pairs(folder_of_pairs / "list.csv")


def test_a_list_stays_in_its_folder(folder_of_pairs: Path, picture: Callable[..., bytes]):
    (folder_of_pairs.parent / "secret.png").write_bytes(picture())
    (folder_of_pairs / "list.csv").write_text("path,caption\n../secret.png,x\ngone.png,x\n00.png,fine\nshort\n")
    source = read_pairs(folder_of_pairs / "list.csv")
    assert len(source) == 1
    assert source.skipped == {"picture file missing, or outside of the list's folder": 3}


def shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_shards(tmp_path: Path, picture: Callable[..., bytes]):
    shard(
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
    shard(tmp_path / "0.tar", {"a.png": picture(), "a.txt": b"x"})
    with tarfile.open(tmp_path / "0.tar", "a") as tar:
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    source = read_pairs(tmp_path)
    assert len(source) == 1 and source.noted == {"shard member that is not a plain file": 1}


def test_of_a_cut_shard_the_pairs_before_the_cut_are_used(tmp_path: Path, picture: Callable[..., bytes]):
    path = shard(
        tmp_path / "0.tar", {"a.png": picture(200, 200), "a.txt": b"x", "b.png": picture(200, 200), "b.txt": b"x"}
    )
    path.write_bytes(path.read_bytes()[:130_000])
    source = read_pairs(tmp_path)
    assert [pair.key for pair in source] == ["a"]
    assert [reason[:25] for reason in source.noted] == ["shard cut short (0.tar: 1"]
    path.write_bytes(b"<html>" * 1000)
    with pytest.raises(DataError, match="whole, plain tar"):
        read_pairs(tmp_path)


def test_the_fingerprint_tells_sources_apart(folder_of_pairs: Path):
    before = read_pairs(folder_of_pairs).fingerprint
    assert read_pairs(folder_of_pairs).fingerprint == before
    (folder_of_pairs / "07.txt").write_text("something else")
    assert read_pairs(folder_of_pairs).fingerprint != before


def test_a_split_is_disjoint_whole_and_stable(folder_of_pairs: Path):
    kept, held_back = read_pairs(folder_of_pairs).split(0.25)
    assert {p.key for p in kept} | {p.key for p in held_back} == {p.key for p in read_pairs(folder_of_pairs)}
    assert not {p.key for p in kept} & {p.key for p in held_back}
    assert 3 <= len(held_back) <= 20
    (folder_of_pairs / "00.png").unlink()
    assert {p.key for p in read_pairs(folder_of_pairs).split(0.25)[1]} == {p.key for p in held_back} - {"00.png"}


@pytest.mark.parametrize("name", ["empty", "missing", "notes.doc"])
def test_nothing_to_read(tmp_path: Path, name: str):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.doc").write_text("x")
    with pytest.raises(DataError, match="must"):
        read_pairs(tmp_path / name)


def test_a_tsv_is_parted_by_tabs_alone(folder_of_pairs: Path):
    rows = ["path\tcaption", '00.png\t"big" dog, small; cat', '01.png\t"unclosed', "02.png\tfine"]
    (folder_of_pairs / "list.tsv").write_text("\n".join(rows))
    source = read_pairs(folder_of_pairs / "list.tsv")
    assert [pair.captions[0] for pair in source] == ['"big" dog, small; cat', '"unclosed', "fine"]


def test_signs_in_captions_do_not_decide_the_delimiter(folder_of_pairs: Path):
    (folder_of_pairs / "list.csv").write_text("00.png;a dog, a cat, and a bird\n01.png;x\n")
    assert read_pairs(folder_of_pairs / "list.csv")[0].captions == ("a dog, a cat, and a bird",)


def test_jsonl_values_of_other_types(folder_of_pairs: Path):
    records = [
        {"path": "00.png", "caption": None},
        {"path": "01.png", "caption": ["a", "b"]},
        {"path": "\0", "caption": "x"},
    ]
    (folder_of_pairs / "list.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    source = read_pairs(folder_of_pairs / "list.jsonl")
    assert [pair.captions for pair in source] == [("a", "b")] and source.skipped["no caption"] == 1
    (folder_of_pairs / "list.jsonl").write_text('["00.png", "x"]\n')
    with pytest.raises(DataError, match="Line 1"):
        read_pairs(folder_of_pairs / "list.jsonl")


def test_caption_links_out_of_the_folder_are_not_followed(folder_of_pairs: Path):
    (folder_of_pairs.parent / "secret.txt").write_text("secret")
    (folder_of_pairs / "00.txt").unlink()
    (folder_of_pairs / "00.txt").symlink_to(folder_of_pairs.parent / "secret.txt")
    (folder_of_pairs / "circle.png").symlink_to(folder_of_pairs / "circle.png")
    source = read_pairs(folder_of_pairs)
    assert len(source) == 39 and "secret" not in set(source.captions())


def test_folders_inside_a_shard_and_shards_that_count_anew(tmp_path: Path, picture: Callable[..., bytes]):
    for name in ("0.tar", "1.tar"):
        shard(
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
    assert source.skipped == {"picture file beside shards": 1}
