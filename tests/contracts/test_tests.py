"""Tests stand by themselves: what several of them use is in tests/helpers or a conftest.py."""

import ast
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_no_test_imports_from_another_test_file():
    wrong = []
    for path in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = (
                [f"{'.' * node.level}{node.module or ''}"]
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else []
            )
            for module in modules:
                last = module.rpartition(".")[2]
                if module.startswith(".") or module.split(".")[0] == "tests" or last.startswith("test_"):
                    wrong.append(f"{path.relative_to(TESTS)} imports {module}")
    assert wrong == []


def test_unit_tests_lie_where_their_modules_do():
    source = TESTS.parent / "src" / "limner"
    folders = {path.relative_to(TESTS / "unit") for path in (TESTS / "unit").rglob("*") if list(path.glob("test_*.py"))}
    assert folders and all((source / folder).is_dir() for folder in folders)
