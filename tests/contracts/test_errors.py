"""Every error that limner raises on purpose has the one sentence shape."""

import ast
import re
from pathlib import Path

import pytest

import limner
from limner.errors import ConfigError, LimnerError, MissingExtra

SRC = Path(limner.__file__).parent
KINDS = {"ConfigError", "DataError", "ModelError", "StorageError", "TrainingError"}
CALLS = [
    (path.relative_to(SRC).as_posix(), node)
    for path in sorted(SRC.rglob("*.py"))
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS
]


def literal(node: ast.expr) -> str:
    """The text of a string, with {} where a value goes; both ends of a choice are checked by the first."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    if isinstance(node, ast.IfExp):
        return literal(node.body)
    return str(node.value) if isinstance(node, ast.Constant) else "{}"


@pytest.mark.parametrize(("where", "call"), CALLS, ids=[f"{path}:{call.lineno}" for path, call in CALLS])
def test_sentence_shape(where: str, call: ast.Call):
    keywords = {keyword.arg: literal(keyword.value) for keyword in call.keywords}
    assert set(keywords) == {"must", "got", "then"} and len(call.args) == 1, where
    assert re.match(r"[a-z{]", keywords["must"]), "continues the sentence: <what> must <be ...>"
    assert re.search(r"[.?!'\"}\w]$", keywords["then"]) and re.match(r"[A-Z{]", keywords["then"])
    what = literal(call.args[0])
    assert what and not what.endswith(".")


def test_there_are_sentences_to_check():
    assert len(CALLS) > 25


def test_the_message():
    error = ConfigError("lr of optim", must="be positive", got=-1, then="Recipes use 5e-4 to 3e-3.")
    assert str(error) == "lr of optim must be positive. Got -1. Recipes use 5e-4 to 3e-3."
    assert isinstance(error, LimnerError) and isinstance(error, ValueError) and error.exit_code == 2


def test_a_missing_extra_says_what_to_install():
    assert "pip install 'limner[demo]'" in str(MissingExtra("resvg-py", extra="demo", needed_for="drawing"))
