import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limner.data.sources.lists import CELLS
from limner.data.sources.read import read_images, read_pairs
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
    assert source.skipped == {
        "picture file missing, or outside of the list's folder": 2,
        "row of another number of cells than the header": 1,
    }


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


def told(path: Path) -> tuple[list[tuple[str, ...]], dict[str, int]]:
    source = read_pairs(path)
    return [pair.captions for pair in source], dict(source.skipped)


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        (["00.png,a cat", '01.png,"big" dog', "02.png,a bus"], 3),
        (["00.png,a cat", '01.png,"a 5 inch ruler', "02.png,a bus"], 3),
        (["00.png,a cat", '01.png, "a big', 'dog"x', "02.png,a bus"], 3),
        (['00.png,"a \\"big\\" dog"', "02.png,a bus"], 2),
    ],
)
def test_a_quote_that_swallows_rows_is_an_error_with_its_line(folder_of_pairs: Path, rows: list[str], line: int):
    (folder_of_pairs / "list.csv").write_text("\n".join(["path,caption", *rows]) + "\n")
    with pytest.raises(DataError, match=f"The row that begins at line {line} of .*list.csv must close each quote"):
        read_pairs(folder_of_pairs / "list.csv")


def test_cells_blanks_and_lines_in_a_csv(folder_of_pairs: Path):
    text = 'path , caption\r\n00.png, "a cat, or two"\r\n 01.png ,a "big" dog \r\n02.png,one,too many\r\n03.png\r\n'
    (folder_of_pairs / "list.csv").write_text(text + '04.png,"two\nlines"\r\n', newline="")
    captions, skipped = told(folder_of_pairs / "list.csv")
    assert captions == [("a cat, or two",), ('a "big" dog',), ("two\nlines",)]
    assert skipped == {"row of another number of cells than the header": 2}
    assert read_pairs(folder_of_pairs / "list.csv").noted == {"cell of several lines (is a quote missing?)": 1}


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\t\n\"',;\\ "), max_size=12)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(captions=st.lists(TEXT, min_size=2, max_size=6), kind=st.sampled_from(["csv", "tsv", "jsonl"]))
def test_lists_are_read_as_they_were_written(folder_of_pairs: Path, captions: list[str], kind: str):
    """By Python's csv and json; and read + counted = there."""
    path = folder_of_pairs / f"list.{kind}"
    rows = [(f"{number:02d}.png", caption) for number, caption in enumerate(captions)]
    if kind == "jsonl":
        path.write_text("".join(json.dumps({"path": image, "caption": text}) + "\n" for image, text in rows))
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter={"csv": ",", "tsv": "\t"}[kind]).writerows([("path", "caption"), *rows])
    source = read_images(path)
    written = [tuple(text for text in [caption.removeprefix("\ufeff").strip()] if text) for caption in captions]
    assert [pair.captions for pair in source] == written and not source.skipped


def test_a_tsv_of_signs_keeps_them(folder_of_pairs: Path):
    rows = ['00.png\t"start of a quote', "01.png\tan inch", '02.png\tend of it"', "03.png\ta\ttab"]
    (folder_of_pairs / "list.tsv").write_text("\n".join(["path\tcaption", *rows]))
    captions, skipped = told(folder_of_pairs / "list.tsv")
    assert captions == [('"start of a quote',), ("an inch",), ('end of it"',)]
    assert skipped == {"row of another number of cells than the header": 1}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_mark_says_the_encoding(folder_of_pairs: Path, encoding: str):
    (folder_of_pairs / "list.csv").write_text("path,caption\n00.png,ein Käse\n", encoding=encoding)
    assert told(folder_of_pairs / "list.csv") == ([("ein Käse",)], {})
    for text in folder_of_pairs.glob("*.txt"):
        text.write_text("ein Käse", encoding=encoding)
    assert set(read_pairs(folder_of_pairs).captions()) == {"ein Käse"} and not read_pairs(folder_of_pairs).skipped


def test_columns_that_come_later_in_a_jsonl(folder_of_pairs: Path):
    records = [{"path": "00.png"}, {"path": "01.png", "caption": "a dog"}, {"name": "x"}]
    (folder_of_pairs / "list.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert told(folder_of_pairs / "list.jsonl") == (
        [("a dog",)],
        {"no caption": 1, "line without a picture's path": 1},
    )


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_labels_are_no_captions(folder_of_pairs: Path, kind: str):
    path, names = folder_of_pairs / f"list.{kind}", ["dog", "cat", "", "dog"]
    for labels in (names, ["3", "0", "", "3"]):
        if kind == "parquet":
            columns = {"filename": [f"{i:02d}.png" for i in range(4)], "label": labels}
            pyarrow.parquet.write_table(pyarrow.table(columns), path)
        elif kind == "jsonl":
            path.write_text(
                "".join(json.dumps({"filename": f"{i:02d}.png", "label": one}) + "\n" for i, one in enumerate(labels))
            )
        else:
            sign = {"csv": ",", "tsv": "\t"}[kind]
            path.write_text(
                "\n".join([f"filename{sign}label", *(f"{i:02d}.png{sign}{one}" for i, one in enumerate(labels))])
            )
        source = read_images(path)
        assert not any(pair.captions for pair in source)
        assert source.classes == (("cat", "dog") if labels is names else ())
        assert [pair.label for pair in source] == ([1, 0, None, 1] if labels is names else [3, 0, None, 3])
    with pytest.raises(DataError, match=r"caption column"):
        read_pairs(path)


def test_a_list_that_is_no_file(folder_of_pairs: Path):
    os.mkfifo(folder_of_pairs / "list.csv")
    with pytest.raises(DataError, match=r"must be a file\. Got a pipe"):
        read_pairs(folder_of_pairs / "list.csv")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_labels_with_gaps_are_the_same_numbers(folder_of_pairs: Path, kind: str):
    """A column of whole numbers with a gap has been made floats by pandas; -1 says that there is none."""
    labels = [0.0, 3.0, None, -1.0]
    rows = [{"path": f"0{number}.png", "label": label} for number, label in enumerate(labels)]
    file = folder_of_pairs / f"list.{kind}"
    if kind == "csv":
        file.write_text(
            "path,label\n" + "".join(f"{row['path']},{'' if row['label'] is None else row['label']}\n" for row in rows)
        )
    elif kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    source = read_images(file)
    assert [pair.label for pair in source] == [0, 3, None, None] and source.classes == ()
    assert source.noted == {"label below 0 (no class)": 1}


def test_labels_that_are_neither_numbers_nor_texts_are_noted(folder_of_pairs: Path):
    lines = [{"path": f"0{number}.png", "label": label} for number, label in enumerate([True, [1], {"a": 1}, "dog"])]
    (folder_of_pairs / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = read_images(folder_of_pairs / "list.jsonl")
    assert source.classes == ("dog",) and source.noted == {"label that is neither a number nor a text (not used)": 3}


def test_links_to_one_file_are_pictures_of_their_own(folder_of_pairs: Path):
    objects = folder_of_pairs / ".git" / "annex" / "objects"
    objects.mkdir(parents=True)
    (folder_of_pairs / "00.png").rename(objects / "SHA256-0")
    for name in ("cat.png", "dog.png"):
        (folder_of_pairs / name).symlink_to(objects / "SHA256-0")
    (folder_of_pairs / "list.csv").write_text("path,caption,label\ncat.png,a cat,0\n./dog.png,a dog,1\ndog.png,two,1\n")
    found = [(pair.key, pair.captions, pair.label) for pair in read_pairs(folder_of_pairs / "list.csv")]
    assert found == [("cat.png", ("a cat",), 0), ("dog.png", ("a dog", "two"), 1)]


def test_a_line_of_a_jsonl_that_is_none_is_named_by_the_files_line(folder_of_pairs: Path):
    good = '{"path": "00.png", "caption": "a"}\n'
    (folder_of_pairs / "list.jsonl").write_text(good * 4 + '{"path": "01.png", "caption" "b"}\n')
    with pytest.raises(DataError, match=r"Line 5 of .*list.jsonl must be a JSON object. Got .* at its sign 30"):
        read_pairs(folder_of_pairs / "list.jsonl")


def test_a_tsv_is_read_in_the_way_that_more_rows_fit(folder_of_pairs: Path):
    rows = ['00.png\t"two\nlines"', "01.png\ta dog\tmore", "02.png\ta cat"]
    (folder_of_pairs / "list.tsv").write_text("\n".join(["path\tcaption", *rows]))
    captions, skipped = told(folder_of_pairs / "list.tsv")
    assert captions == [("two\nlines",), ("a cat",)] and skipped == {CELLS: 1}


def test_a_cell_over_the_limit_of_csv_has_words_of_its_own(folder_of_pairs: Path):
    (folder_of_pairs / "list.csv").write_text('path,caption\n00.png,"' + "x" * 140_000 + '"\n')
    with pytest.raises(DataError, match=r"begins at line 2 .* cells of 131,072 characters at most"):
        read_pairs(folder_of_pairs / "list.csv")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_without_a_mark_zeros_tell_the_encoding(folder_of_pairs: Path, encoding: str):
    (folder_of_pairs / "list.csv").write_text("path,caption\n00.png,ein Käse\n", encoding=encoding)
    assert told(folder_of_pairs / "list.csv") == ([("ein Käse",)], {})
    for text in folder_of_pairs.glob("*.txt"):
        text.write_text("ein Käse ☕", encoding=encoding)
    source = read_pairs(folder_of_pairs)
    assert set(source.captions()) == {"ein Käse ☕"} and source.noted.total() == 1  # the list


def test_a_cell_has_no_encoding_of_its_own(folder_of_pairs: Path):
    (folder_of_pairs / "list.csv").write_bytes(b"path,caption\n00.png,\xff\xfeabcd\n")
    source = read_pairs(folder_of_pairs / "list.csv")
    assert list(source.captions()) == ["\ufffd\ufffdabcd"] and source.noted.total() == 1


def test_labels_that_are_numbers_in_part_are_noted(folder_of_pairs: Path):
    (folder_of_pairs / "list.csv").write_text("path,label\n00.png,1\n01.png,nan\n02.png,2\n03.png,NaN\n")
    assert [pair.label for pair in read_images(folder_of_pairs / "list.csv")] == [1, None, 2, None]
    (folder_of_pairs / "list.csv").write_text("path,label\n00.png,1\n01.png,N/A\n02.png,2\n")
    source = read_images(folder_of_pairs / "list.csv")
    assert source.classes == ("1", "2", "N/A")
    assert source.noted == {"label that is a number beside others that are none (all are names)": 2}


def test_blank_lines_before_a_header_and_delimiters_behind_rows_cost_nothing(folder_of_pairs: Path):
    (folder_of_pairs / "list.csv").write_text("\n\npath,caption\n00.png,a dog,\n01.png,a cat,,\n02.png,a,b\n")
    assert told(folder_of_pairs / "list.csv") == ([("a dog",), ("a cat",)], {CELLS: 1})


def test_of_a_line_the_columns_that_say_something_count(folder_of_pairs: Path):
    rows = [{"path": "00.png", "caption": None, "text": "a"}, {"path": "01.png", "caption": "", "title": "b"}]
    (folder_of_pairs / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert told(folder_of_pairs / "list.jsonl") == ([("a",), ("b",)], {})
