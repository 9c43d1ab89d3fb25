"""Data flows one way: a module imports only what stands above it."""

import ast
from pathlib import Path

import limner

SRC = Path(limner.__file__).parent
ORDER = [
    "errors",
    "files",
    "config",
    "recipes",
    "run",
    "progress",
    "data",
    "model",
    "objectives",
    "training",
    "evaluation",
    "search",
    "report",
    "demo",
    "cli",
    "__main__",
]
TORCH_FREE = ["__init__", "errors", "files", "config", "recipes", "progress", "cli", "__main__"]


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_every_part_has_its_place():
    parts = {p.stem if p.is_file() else p.name for p in SRC.iterdir() if p.suffix in ("", ".py")}
    assert parts - {"__init__", "__pycache__"} == set(ORDER)


def test_modules_import_only_what_stands_above_them():
    wrong = []
    for path in SRC.rglob("*.py"):
        part = path.relative_to(SRC).parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        allowed = set(ORDER[: ORDER.index(part) + 1]) | {""}
        wrong += [
            f"{path.relative_to(SRC)} imports {module}"
            for module in imports_of(path)
            if module.split(".")[0] == "limner" and part_of(module) not in allowed
        ]
    assert wrong == []


def test_config_needs_the_standard_library_only():
    assert {name.split(".")[0] for name in imports_of(SRC / "config.py")} == {
        "math",
        "dataclasses",
        "pathlib",
        "typing",
        "limner",
    }


def test_light_modules_do_not_import_torch_when_they_are_imported():
    for name in TORCH_FREE:
        for node in ast.parse((SRC / f"{name}.py").read_text()).body:
            names = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else []
            )
            assert not any(n.split(".")[0] in ("torch", "jaxtyping", "tokenizers") for n in names), name
