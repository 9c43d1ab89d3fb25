"""What the README, the guide and the map say is so: trees, links, numbers of lines, commands and code."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from limner.architecture import EncoderConfig
from limner.cli.command import main
from limner.data.sources import read
from limner.model.clip import ENCODERS
from limner.objectives.table import OBJECTIVES

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "limner"
README = ROOT / "README.md"
GUIDE = sorted((ROOT / "docs" / "guide").glob("*.md"))
PAGES = [README, *GUIDE]
ALL = [*PAGES, *sorted(ROOT.glob("C*.md")), *sorted((ROOT / "docs").glob("*.md")), *(ROOT / "docs/decisions").glob("*")]
BOX = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.S | re.M)
"""A fenced block; fences open and close in turn."""


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of `language` in a page."""
    return [body for name, body in BOX.findall(page.read_text()) if name == language]


def name_of(page: Path) -> str:
    """How a test about a page is called."""
    return page.relative_to(ROOT).as_posix()


# --- trees -----------------------------------------------------------------------------------------------------------


def tree(page: Path) -> list[tuple[str, str]]:
    """(folder, name) of all that the page's tree of src/limner names, folders with a slash at the end.

    A line is `names  what they are`, or `folder/  names in it  what they are`, and indented by two blanks a folder.
    """
    (block,) = (block for block in blocks(page, "") if block.startswith("src/limner/\n"))
    found, folders = [], [""]
    for line in block.splitlines()[1:]:
        depth = (len(line) - len(line.lstrip())) // 2
        if depth == 0:
            break  # beside src/limner
        first, *rest = re.split(r"\s{2,}", line.strip())
        folders = folders[:depth]
        if first.endswith("/"):
            found.append((folders[-1], first))
            folders.append(folders[-1] + first)
            names = rest[0].split() if len(rest) > 1 else []
        else:
            names = first.split()
        found += [(folders[-1], name) for name in names]
    return found


def test_the_map_names_every_module_and_no_other():
    real = [path.relative_to(SRC).with_suffix("").as_posix() for path in SRC.rglob("*.py") if "__" not in path.name]
    named = [folder + name for folder, name in tree(ROOT / "docs" / "architecture.md") if not name.endswith("/")]
    assert sorted(named) == sorted(real)


def test_the_readme_names_what_is_in_the_package():
    real = {path.name + ("/" if path.is_dir() else "") for path in SRC.iterdir() if not path.name.startswith("__")}
    named = [name for folder, name in tree(README) if not folder]
    assert sorted(named) == sorted(real)


def test_the_readme_names_what_is_beside_the_package():
    (block,) = (block for block in blocks(README, "") if block.startswith("src/limner/\n"))
    beside = [line for line in block.splitlines()[1:] if not line.startswith(" ")]
    assert [line.split()[0] for line in beside] == ["tests/", "benchmarks/", "docs/"]
    tests = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert set(re.findall(r"(\w+)/", beside[0])) == tests | {"tests"}


# --- words and links -------------------------------------------------------------------------------------------------


def test_the_readme_is_read_in_one_sitting():
    assert len(README.read_text().splitlines()) <= 150


def test_the_readme_leads_to_every_page_of_the_guide():
    text = README.read_text()
    assert len(GUIDE) >= 6
    for page in [*GUIDE, ROOT / "docs" / "architecture.md", ROOT / "docs" / "log.md", ROOT / "CONTRIBUTING.md"]:
        assert f"]({name_of(page)})" in text


@pytest.mark.parametrize("page", ALL, ids=name_of)
def test_the_local_links_lead_somewhere(page: Path):
    text = BOX.sub("", page.read_text())
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, place = link.partition("#")
        if not path.startswith(("http:", "https:")):
            target = page.parent / path if path else page
            assert target.exists(), link
            headings = re.findall(r"^#+ (.*)", target.read_text(), flags=re.M) if place else []
            assert not place or place in {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}, link


@pytest.mark.parametrize("page", ALL, ids=name_of)
def test_the_files_that_are_named_are_there(page: Path):
    """A path of this repository, or of the package; the log and the changelog tell of times when they were others."""
    if page.name in ("log.md", "CHANGELOG.md"):
        return
    folders = "|".join(["src", "tests", "benchmarks", "docs", *(path.name for path in SRC.iterdir() if path.is_dir())])
    for named in re.findall(rf"(?<![\w/])((?:{folders})/[\w/.]+\.(?:py|json|svg|webp))\b", page.read_text()):
        if not named.endswith(("/x.py", "manifest.json")):  # one to be written; one that the demo writes
            assert (ROOT / named).exists() or (SRC / named).exists(), named


def test_the_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"(?:^|`)make (\w+)", page.read_text(), flags=re.M):
            assert re.search(rf"^{target}:", makefile, flags=re.M), target
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("setup", "demo", "test", "lint", "bench", "docs", "clean"):
        assert f"make {target}" in listed


# --- commands and code -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def work(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all pages are followed: the digits' pairs and run, and MY_FOLDER. What pages write has names of its own."""
    work = tmp_path_factory.mktemp("docs") / "work"
    shutil.copytree(digits_run.parent.parent, work)
    return work


@pytest.fixture
def here(work: Path, picture: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """`work` as the current folder; parts that a page adds are taken out again."""
    folder = work / "MY_FOLDER"
    if not folder.exists():
        folder.mkdir()
        for i in range(270):  # 14 of which are kept out of training: an epoch is one batch of 256
            (folder / f"{i}.png").write_bytes(picture(60, 50, seed=i))
            (folder / f"{i}.txt").write_text(f"picture number {i}")
    monkeypatch.chdir(work)
    monkeypatch.setattr(read, "LAYOUTS", read.LAYOUTS)
    tables = (OBJECTIVES, ENCODERS, EncoderConfig.kinds)
    before = [dict(table) for table in tables]
    yield work
    for table, old in zip(tables, before, strict=True):
        table.clear()
        table.update(old)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_commands_work(page: Path, here: Path):
    commands = [line for block in blocks(page, "bash") for line in block.splitlines() if line.strip()]
    assert all(command.startswith("limner ") for command in commands)
    assert commands or blocks(page, "python")
    for command in commands:
        with pytest.raises(SystemExit) as exited:
            main(shlex.split(command)[1:])
        assert exited.value.code == 0, command


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_the_python_works(page: Path, here: Path, capsys: pytest.CaptureFixture[str]):
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        exec(compile(block, name_of(page), "exec"), names)
    assert capsys.readouterr().out
