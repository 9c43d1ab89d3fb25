"""Every error that limner raises on purpose has the one sentence shape."""

import ast
import re
from pathlib import Path

import pytest

import limner
from limner.errors import ConfigError, LimnerError, MissingExtra

SRC = Path(limner.__file__).parent
TREES = {path.relative_to(SRC).as_posix(): ast.parse(path.read_text()) for path in sorted(SRC.rglob("*.py"))}
CLASSES = {node.name: node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
SENTENCE = ("what", "must", "got", "then")


def is_error(name: str) -> bool:
    """Whether a class of the source is a LimnerError."""
    bases = [ast.unparse(base) for base in CLASSES[name].bases] if name in CLASSES else []
    return name == "LimnerError" or any(is_error(base) for base in bases)


def has_a_constructor(name: str) -> bool:
    return any(isinstance(node, ast.FunctionDef) and node.name == "__init__" for node in CLASSES[name].body)


ERRORS = {name for name in CLASSES if is_error(name)}
KINDS = {name for name in ERRORS if name != "LimnerError" and not has_a_constructor(name)}
"""Classes whose calls hold the sentence; those of the others are in their constructors."""


def sentence(call: ast.Call) -> dict[str, ast.expr] | None:
    """The parts of the sentence that a call makes: of an error, of `super().__init__` in one, of `require`."""
    called = ast.unparse(call.func)
    if called in KINDS or called == "super().__init__":
        names = ("what",)
    elif called == "require":
        names = ("fine", *SENTENCE)
    else:
        return None
    parts = {**dict(zip(names, call.args, strict=False)), **{k.arg: k.value for k in call.keywords if k.arg}}
    parts.pop("fine", None)
    return parts if parts.keys() & {"must", "got", "then"} or called != "super().__init__" else None


def texts(node: ast.expr) -> list[str]:
    """The strings that an expression can be, with {} where a value goes."""
    if isinstance(node, ast.JoinedStr):
        return ["".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)]
    if isinstance(node, ast.IfExp):
        return texts(node.body) + texts(node.orelse)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [left + right for left in texts(node.left) for right in texts(node.right)]
    return [str(node.value) if isinstance(node, ast.Constant) else "{}"]


CALLS = [
    (path, node, parts)
    for path, tree in TREES.items()
    for node in ast.walk(tree)
    if isinstance(node, ast.Call) and (parts := sentence(node)) is not None
]


@pytest.mark.parametrize(
    ("where", "parts"),
    [(path, parts) for path, _, parts in CALLS],
    ids=[f"{path}:{call.lineno}" for path, call, _ in CALLS],
)
def test_sentence_shape(where: str, parts: dict[str, ast.expr]):
    assert set(parts) == set(SENTENCE), where
    for what in texts(parts["what"]):
        assert what and not what.endswith(".")
    for must in texts(parts["must"]):
        assert re.match(r"[a-z{]", must), "continues the sentence: <what> must <be ...>"
        assert not must.endswith(".") or must.endswith("...")
    for then in texts(parts["then"]):
        assert re.match(r"[^a-z]|[a-z]+\d", then), "a sentence of its own, or one that begins with fp32, say"
        assert re.search(r"[.?!'\"}\w]$", then)


def test_there_are_sentences_to_check():
    called = [ast.unparse(call.func) for _, call, _ in CALLS]
    assert len(called) > 100 and called.count("require") > 20
    assert set(called) == KINDS | {"require", "super().__init__"}, "an error that is never raised can go"


def test_the_drawn_tree_is_the_real_one():
    here = {node.name for node in TREES["errors.py"].body if isinstance(node, ast.ClassDef)}
    drawn = re.findall(r"^[├└]── (\w+)", ast.get_docstring(TREES["errors.py"]) or "", flags=re.M)
    assert sorted(drawn) == sorted(here & ERRORS - {"LimnerError"})


def test_the_message():
    error = ConfigError("lr of optim", must="be positive", got=-1, then="Recipes use 5e-4 to 3e-3.")
    assert str(error) == "lr of optim must be positive. Got -1. Recipes use 5e-4 to 3e-3."
    assert isinstance(error, LimnerError) and isinstance(error, ValueError) and error.exit_code == 2


def test_a_missing_extra_says_what_to_install():
    assert "pip install 'limner[demo]'" in str(MissingExtra("resvg-py", extra="demo", needed_for="drawing"))
