"""The README's tree is the real one, its targets exist, and its commands work."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from limner.cli.command import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The fenced blocks of `language`; fences open and close in turn."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.S | re.M)
    return [body for name, body in fenced if name == language]


def test_the_tree_is_the_real_one():
    (tree,) = (block for block in blocks("") if block.startswith("src/limner/"))
    lines = [line.split()[0] for line in tree.splitlines()]
    inside = [line for line in lines[1:] if tree.splitlines()[lines.index(line)].startswith("  ")]
    source = ROOT / "src" / "limner"
    real = {p.name + ("/" if p.is_dir() else "") for p in source.iterdir()} - {
        "__pycache__/",
        "__init__.py",
        "__main__.py",
    }
    assert set(inside) == real
    for line in lines[1:]:
        if line not in inside:
            assert (ROOT / line).is_dir(), line


def test_every_folder_of_tests_and_docs_is_named():
    named = set(re.findall(r"(\w+)/", next(line for line in README.splitlines() if line.startswith("tests/")))) - {
        "tests"
    }
    assert named == {p.name for p in (ROOT / "tests").iterdir() if p.is_dir() and p.name != "__pycache__"}


def test_the_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make (\w+)", README + (ROOT / "CONTRIBUTING.md").read_text()):
        assert re.search(rf"^{target}:", makefile, flags=re.M), target
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("setup", "demo", "test", "lint", "bench", "docs", "clean"):
        assert f"make {target}" in listed


def test_the_local_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)h#][^)]*)\)", README):
        assert (ROOT / link).exists(), link


def test_the_commands_work(
    digits_run: Path, tmp_path: Path, picture: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
):
    work = tmp_path / "work"
    shutil.copytree(digits_run.parent.parent, work)
    monkeypatch.chdir(work)
    folder = work / "MY_FOLDER"
    folder.mkdir()
    for i in range(280):
        (folder / f"{i}.png").write_bytes(picture(120, 100, seed=i))
        (folder / f"{i}.txt").write_text(f"picture number {i}")
    commands = [line for block in blocks("bash") for line in block.splitlines() if line.strip()]
    assert len(commands) >= 8 and all(command.startswith("limner ") for command in commands)
    for command in commands:
        with pytest.raises(SystemExit) as exited:
            main(shlex.split(command)[1:])
        assert exited.value.code == 0, command


def test_the_python_works(digits_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(digits_run.parent.parent)
    (code,) = blocks("python")
    exec(compile(code, "README.md", "exec"), {})
    assert "zero_shot.top1" in capsys.readouterr().out
