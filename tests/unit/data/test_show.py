import json
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.tars import pairs, tar
from limner.cli.command import main
from limner.data.show import describe_pair, find_pair, stats
from limner.errors import DataError


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as exited:
        main(args)
    return int(exited.value.code or 0)


def test_data_stats(folder_of_pairs: Path, capsys: pytest.CaptureFixture[str]):
    (folder_of_pairs / "00.txt").unlink()
    told = stats(str(folder_of_pairs))
    assert (told["pairs"], told["parts"], told["captions"], told["skipped"]) == (39, 1, 39, {"no caption": 1})
    assert told["words_per_caption"] == {"least": 3, "median": 3.0, "mean": 3.0, "most": 3}
    assert told["order"]["window_pairs"] == 39
    assert run("data", "stats", str(folder_of_pairs), "--json") == 0
    assert json.loads(capsys.readouterr().out) == told
    assert run("data", "stats", str(folder_of_pairs)) == 0
    assert "no caption 1" in capsys.readouterr().out


def test_data_show(tmp_path: Path, picture: Callable[..., bytes], capsys: pytest.CaptureFixture[str]):
    for number in range(2):
        members = {"a.jpg": picture(30, 20, seed=number, format="JPEG"), "a.txt": b"one", "a.cls": b"0"}
        members |= {f"b{number}.png": b"x", f"b{number}.json": b'{"captions": ["one", "two"]}'}
        tar(tmp_path / "shards" / f"{number}.tar", members)
    path = str(tmp_path / "shards")
    assert run("data", "show", path, "1/a", "--out", str(tmp_path / "picture"), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["captions"] == ["one"] and told["label"] == 0 and told["file"].endswith("1.tar")
    assert (told["format"], told["width"], told["height"]) == ("JPEG", 30, 20)
    content = (tmp_path / "picture.jpeg").read_bytes()
    assert content == picture(30, 20, seed=1, format="JPEG")
    assert Path(told["file"]).read_bytes()[told["offset"] :][: told["size"]] == content
    assert run("data", "show", path, "1/a") == 0
    assert "label     0" in " ".join(capsys.readouterr().out.split("\n"))
    told, content = describe_pair(find_pair(path, "b1"))
    assert told["key"] == "1/b1" and told["captions"] == ["one", "two"] and content == b"x"
    assert told["unreadable"] == "not a picture: 1 bytes of another format"
    assert run("data", "show", path, "b1", "--out", str(tmp_path / "other.dat")) == 0
    assert (tmp_path / "other.dat").read_bytes() == b"x" and "not a picture" in capsys.readouterr().out


def test_a_key_that_names_no_picture_or_several(tmp_path: Path, picture: Callable[..., bytes]):
    for number in range(2):
        tar(tmp_path / f"{number}.tar", pairs(picture, 0, 3))
    with pytest.raises(DataError, match=r"Got 2 that end so. Take one of 0/001, 1/001\."):
        find_pair(str(tmp_path), "001")
    with pytest.raises(DataError, match=r"Did you mean 0/001\?"):
        find_pair(str(tmp_path), "0/0001")
    assert run("data", "show", str(tmp_path), "none") == 2
