import json
from collections.abc import Callable
from pathlib import Path

import pytest

from limner.data.sources.read import read_pairs
from limner.errors import DataError


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
