from pathlib import Path

import pytest

from limner.cli.show import gathered
from limner.cli.use import names_in, names_of
from limner.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (("cat", "dog"), ["cat", "dog"]),
        (("cat,dog",), ["cat", "dog"]),
        (("cat, red fox ,",), ["cat", "red fox"]),
        (("cat", "salt, pepper"), ["cat", "salt, pepper"]),
        (("cat",), ["cat"]),
        (("one,", "two,", "three"), ["one", "two", "three"]),
        ((" ", "cat "), ["cat"]),
        ((), []),
    ],
)
def test_labels_are_apart_or_one_value_with_commas(labels: tuple[str, ...], names: list[str]):
    assert names_in(labels) == names


@pytest.mark.parametrize(
    ("args", "as_one"),
    [
        (["--labels", "a", "--labels", "b", "c"], ["--labels", "a", "b", "c"]),
        (
            ["m", "x", "--label", "a, b", "--top", "3", "--label=c=d"],
            ["m", "x", "--labels", "a, b", "c=d", "--top", "3"],
        ),
        (["--labels", "--labels", "b"], ["--labels", "b"]),
        ([], []),
    ],
)
def test_values_of_an_option_given_twice_are_all_taken(args: list[str], as_one: list[str]):
    assert gathered(args, {"--labels"}) == as_one


def test_another_option_given_twice_is_refused():
    with pytest.raises(ConfigError, match="--top must be given once"):
        gathered(["m", "--top", "3", "--labels", "a", "--top=4"], {"--labels"})
    with pytest.raises(ConfigError, match="--labels-file must be given once"):
        gathered(["--labels_file", "3", "--labels-file=4"], {"--labels"})


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_of_names_has_one_a_line(tmp_path: Path, encoding: str):
    (tmp_path / "names.txt").write_text("Washington, D.C.\r\n\n  Käse \n", encoding=encoding)
    assert names_of(tmp_path / "names.txt") == ["Washington, D.C.", "Käse"]


def test_a_file_that_is_no_text_is_refused(tmp_path: Path):
    (tmp_path / "names.txt").write_bytes(b"\xff\x00\x80")
    with pytest.raises(DataError, match="must be text in UTF-8"):
        names_of(tmp_path / "names.txt")
