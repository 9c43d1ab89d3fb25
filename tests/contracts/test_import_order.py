"""Data flows one way: a module imports only what stands above it, in the package and inside each of its folders."""

import ast
from itertools import pairwise
from pathlib import Path

import limner

SRC = Path(limner.__file__).parent
ORDER = {
    "": (
        "version errors seeds progress files architecture config recipes run data model store embed curate objectives "
        "evaluation training use report demo cli __main__"
    ),
    "data": "order remote pairs bare whole decode tokenizer sources reading loader write made show bench",
    "data/sources": "kept tar arrow index beside lists folders shards tables read",
    "model": "transformer vit resnet text inputs clip size",
    "store": "tensors unpack pickles hub convert foreign golden store doctor onnx",
    "curate": "findings signals check",
    "objectives": "ranks chunks objective contrastive sigmoid table",
    "training": "watch world log half_adamw optimizer checkpoint measure guard step prepare loop",
    "evaluation": "intervals metrics probe estimator classified zero_shot retrieval registry classes tasks results "
    "prompts suite compare explain",
    "use": "classify search mteb",
    "report": "html check run",
    "demo": "pairs tour",
    "cli": "show data train model eval use command",
}
"""The modules and folders of each folder, in the order in which data flows."""
TORCH_FREE = "__init__ version errors seeds progress files architecture config recipes cli/show cli/command __main__"


def modules() -> dict[str, Path]:
    """Every module by its place: "data/sources/read"."""
    return {path.relative_to(SRC).with_suffix("").as_posix(): path for path in sorted(SRC.rglob("*.py"))}


def place_of(module: str, name: str) -> str | None:
    """The place of what `from module import name` means, "data/pairs" say; None outside of limner."""
    top, *parts = module.split(".")
    if top != "limner":
        return None
    place = "/".join(parts)
    inner = f"{place}/{name}".strip("/")
    if inner and ((SRC / inner).is_dir() or (SRC / f"{inner}.py").is_file()):
        return inner
    return place or "__init__"


def imports_of(path: Path) -> set[str]:
    """The places of limner that a module imports anywhere in it; an import for the type checker alone is none."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {place_of(node.module or "", alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {
                place_of(*(alias.name.rpartition(".")[::2] if "." in alias.name else (alias.name, "")))
                for alias in node.names
            }
    return {place for place in found if place is not None}


def steps_between(importer: str, imported: str) -> tuple[str, str, str]:
    """(the folder in which both lie, which of its members the importer is in, which the imported one)."""
    one, other = importer.split("/"), imported.split("/")
    shared = 0
    while shared < min(len(one), len(other)) - 1 and one[shared] == other[shared]:
        shared += 1
    return "/".join(one[:shared]), one[shared], other[shared]


def arrows() -> list[tuple[str, str]]:
    """(importer, imported) of all modules; the front door, limner/__init__.py, loads lazily and stands outside."""
    return [
        (place, imported)
        for place, path in modules().items()
        if not place.endswith("__init__")
        for imported in imports_of(path)
        if imported not in (place, "__init__")
    ]


def test_every_module_has_its_place():
    for folder, names in ORDER.items():
        here = {p.stem if p.is_file() else p.name for p in (SRC / folder).iterdir() if p.suffix in ("", ".py")}
        here = {name for name in here if not (SRC / folder / name).is_dir() or list((SRC / folder / name).glob("*.py"))}
        assert here - {"__init__", "__pycache__"} == set(names.split()), folder or "limner"


def test_modules_import_only_what_stands_above_them():
    wrong = []
    for importer, imported in arrows():
        folder, one, other = steps_between(importer, imported)
        order = ORDER[folder].split()
        if order.index(other) > order.index(one):
            wrong.append(f"{importer} imports {imported}")
    assert wrong == []


def test_only_two_modules_go_through_the_front_door():
    found = [place for place, path in modules().items() if "__init__" in imports_of(path)]
    assert found == ["cli/command", "model/clip"]  # --version; CLIP.save, which is limner.save


def test_there_is_no_circle():
    """Follows from the order; said again without it, for an order can be changed."""
    after: dict[str, set[str]] = {}
    for importer, imported in arrows():
        after.setdefault(importer, set()).add(imported)
    done: set[str] = set()

    def walk(place: str, path: tuple[str, ...]) -> None:
        assert place not in path, " -> ".join([*path, place])
        if place not in done:
            for further in after.get(place, ()):
                walk(further, (*path, place))
            done.add(place)

    for place in after:
        walk(place, ())
    assert len(after) > 50


def test_a_circle_and_an_arrow_back_would_be_found(tmp_path: Path):
    file = tmp_path / "x.py"
    file.write_text("from limner import errors\nimport limner.data.pairs\nfrom limner.model.clip import CLIP\n")
    assert imports_of(file) == {"errors", "data/pairs", "model/clip"}
    assert steps_between("data/sources/read", "data/pairs") == ("data", "sources", "pairs")
    assert steps_between("embed", "data/pairs") == ("", "embed", "data")
    assert all(len(names.split()) == len(set(names.split())) for names in ORDER.values())
    assert list(pairwise("ab")) == [("a", "b")]


def test_light_modules_do_not_import_heavy_ones_when_they_are_imported():
    for name in TORCH_FREE.split():
        for node in ast.parse((SRC / f"{name}.py").read_text()).body:
            names = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else []
            )
            assert not {n.split(".")[0] for n in names} & {"torch", "jaxtyping", "tokenizers", "cattrs", "tyro", "rich"}


def test_what_a_model_and_a_run_are_needs_the_standard_library_only():
    standard = {"abc", "collections", "dataclasses", "functools", "math", "pathlib", "typing", "limner"}
    for name in ("architecture", "config", "recipes"):
        tree = ast.parse((SRC / f"{name}.py").read_text())
        found = {node.module.split(".")[0] for node in tree.body if isinstance(node, ast.ImportFrom) and node.module}
        found |= {
            alias.name.split(".")[0] for node in tree.body if isinstance(node, ast.Import) for alias in node.names
        }
        assert found <= standard, name
