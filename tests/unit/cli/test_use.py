import os
import subprocess
import sys
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
            ["m", "x", "--label", "a, b", "c=d", "--top", "3"],
        ),
        (["--labels", "--labels", "b"], ["--labels", "b"]),
        ([], []),
    ],
)
def test_values_of_an_option_given_twice_are_all_taken(args: list[str], as_one: list[str]):
    assert gathered(args, {"--labels", "--label"}) == as_one


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


ASKED = """
import os, sys
from limner.cli.show import as_typed
given = os.fsencode(sys.argv[1]).decode("utf-8")
assert as_typed(sys.argv[1]) == given == "K\\u00e4se", ascii(given)
assert open(sys.argv[2]).read() == "x"  # a path is what the locale takes it for
"""


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_texts_are_utf_8_and_paths_are_paths_in_any_locale(tmp_path: Path, locale: str):
    (tmp_path / "Käse.txt").write_text("x")
    environment = os.environ | {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    asked = [sys.executable, "-c", ASKED, "Käse", str(tmp_path / "Käse.txt")]
    subprocess.run(asked, env=environment, check=True)
