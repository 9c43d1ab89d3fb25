import io
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from limner.cli.show import from_flags, print_json, print_table, print_values, require_top, summary, visible
from limner.config import OptimConfig
from limner.errors import ConfigError

CALLS: list[tuple[Any, ...]] = []


@pytest.fixture(autouse=True)
def no_calls():
    CALLS.clear()


def verb(
    run: Path, images: list[str], /, *, names: tuple[str, ...], size: int | None = None, fast: bool = False
) -> None:
    """Do a thing.

    And more of it.

    Args:
        run: the run.
        images: the images.
        names: their names.
        size: how large.
        fast: or slowly.
    """
    CALLS.append((run, images, names, size, fast))


def helped(function: Any, capsys: pytest.CaptureFixture[str], **options: Any) -> str:
    with pytest.raises(SystemExit) as exited:
        from_flags(function, ["--help"], "thing", **options)
    assert exited.value.code == 0
    return capsys.readouterr().out


def test_a_verb_is_called_with_its_flags():
    from_flags(verb, ["R", "a", "s3://b/c", "--names", "x", "y", "--size", "3", "--fast"], "thing")
    from_flags(verb, ["R", "a", "--names", "x"], "thing")
    first, second = CALLS
    assert first == (Path("R"), ["a", "s3://b/c"], ("x", "y"), 3, True)
    assert second == (Path("R"), ["a"], ("x",), None, False)


def test_subjects_have_their_names_in_the_help(capsys: pytest.CaptureFixture[str]):
    text = helped(verb, capsys)
    assert "limner thing [-h] RUN IMAGES ..." in text and "the run. (required)" in text
    assert "Do a thing." in text and "--size INT" in text and "--fast" in text
    assert "None" not in text and "--no-fast" not in text and "default" not in text


def test_the_fields_of_a_config_are_flags(capsys: pytest.CaptureFixture[str]):
    def train(config: OptimConfig, *, json: bool = False) -> None:
        """Train.

        Args:
            json: print JSON.
        """
        CALLS.append((config.lr, config.beta1, json))

    half = partial(train, config=OptimConfig(lr=0.5))
    from_flags(half, ["--beta1", "0.25", "--json"], "train")
    assert CALLS == [(0.5, 0.25, True)]
    text = helped(half, capsys, description="A recipe.")
    assert "A recipe." in text and "(default: 0.5)" in text and "print JSON." in text


@pytest.mark.parametrize(
    "args", [["R"], ["R", "a", "--names", "x", "--size", "y"], ["R", "a", "--names", "x", "--sise", "3"]]
)
def test_flags_that_do_not_fit_end_with_2(args: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exited:
        from_flags(verb, args, "thing")
    assert exited.value.code == 2 and capsys.readouterr().err and not CALLS


def test_the_summary_is_the_first_line():
    assert summary(verb) == "Do a thing."


def test_answers_are_at_least_one():
    require_top(1)
    with pytest.raises(ConfigError, match="--top must be a whole number from 1 on"):
        require_top(0)


def test_json_keeps_every_letter(capsys: pytest.CaptureFixture[str]):
    print_json({"Käse": [1, None]})
    assert capsys.readouterr().out == '{\n  "Käse": [\n    1,\n    null\n  ]\n}\n'


def test_paths_in_tables_are_whole(capsys: pytest.CaptureFixture[str]):
    print_table(("file", "share"), [("a/" * 100 + "b.png", "1.0%")])
    lines = capsys.readouterr().out.splitlines()[1:]
    assert "".join(line[:90].strip() for line in lines).startswith("a/" * 40) and "b.png" in lines[-1]


def test_values_for_people(capsys: pytest.CaptureFixture[str]):
    values = {
        "pairs_seen": 12345,
        "share": 0.123456,
        "bytes": 98765.4,
        "spread": {"least": 1, "mean": 2.5},
        "captions": ["one", "two"],
        "label": None,
        "held_out": False,
        "skipped": {},
        "zero": 0,
    }
    print_values(values)
    lines = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert ["pairs", "seen", "12,345"] in [[part.strip() for part in line] for line in lines]
    text = "\n".join(" ".join(line) for line in lines)
    for shown in ("share 0.1235", "bytes 98,765", "spread least 1, mean 2.5", "captions one\ntwo", "zero 0"):
        assert shown in text
    assert "label" not in text and "held" not in text and "skipped" not in text


# --- other people's names --------------------------------------------------------------------------------------------

NAMES = ["photo[copy].png", "and [/or]", ":smile: face", "x" * 200, "café\udcff.png", "a\x1b[31m\nb"]


def test_names_are_printed_as_they_are_one_line_a_row(capsys: pytest.CaptureFixture[str]):
    print_table(("picture", "of"), [(name, "1") for name in NAMES[:4]])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["picture", *NAMES[:4]]
    assert lines[4].endswith("x  1") and len(lines) == 5


def test_what_steers_a_terminal_is_an_escape():
    assert [visible(name) for name in NAMES[4:]] == ["café\\udcff.png", "a\\x1b[31m\\nb"]
    assert visible("日本 · ☕") == "日本 · ☕"


def test_markup_in_a_name_is_no_markup_on_a_terminal(monkeypatch: pytest.MonkeyPatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    print_table(("picture [b]",), [(name,) for name in NAMES[:3]])
    assert all(name in terminal.getvalue() for name in ("picture [b]", *NAMES[:3]))


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_a_locale_without_the_signs_gets_escapes(encoding: str):
    code = "from limner.cli.show import print_table, print_json; import limner.cli.command as c\n"
    code += "name = 'caf\\u00e9 \\u2615'\n"
    code += "c.dispatch = lambda args: (print_table(('n',), [(name,)]), print_json([name]))\nc.main([])"
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    table, _, values = done.stdout.decode(encoding).partition("[")
    assert json.loads(f"[{values}") == ["café ☕"] and "caf" in table


def test_a_reader_that_has_enough_is_no_error():
    code = "import limner.cli.command as c; c.dispatch = lambda args: print('x\\n' * 10**6); c.main([])"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 141
