"""The command line is a reviewed surface: its help texts, exit codes and start-up time."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from limner.cli.command import VERBS, main

SNAPSHOT = Path(__file__).parent / "snapshots" / "help.txt"


def limner(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "limner", *args], capture_output=True, text=True, timeout=120, check=False
    )


def without_torch(args: list[str]) -> None:
    """Run a command line in a process of its own and fail if it imported torch."""
    lines = ["import sys", "from limner.cli.command import main", f"try: main({args!r})", "except SystemExit: pass"]
    code = "\n".join([*lines, "assert 'torch' not in sys.modules"])
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def exit_code(*args: str) -> int:
    with pytest.raises(SystemExit) as exited:
        main(args)
    return int(exited.value.code or 0)


def test_help_texts_are_the_reviewed_ones(capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest):
    texts = []
    for args in ([], *(name.split() for name in VERBS), ["train", "demo"]):
        assert exit_code(*args, "--help") == 0
        text = "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines())
        texts.append(f"$ limner {' '.join([*args, '--help'])}\n{text.strip()}\n")
    found = "\n".join(texts)
    if request.config.getoption("--update-snapshots"):
        SNAPSHOT.write_text(found)
    assert found == SNAPSHOT.read_text(), "run: make docs, and review the difference"


def test_help_is_instant_and_does_not_import_torch():
    without_torch(["--help"])
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        assert limner("--help").returncode == 0
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5, seconds


@pytest.mark.parametrize("args", [["train", "demo", "--help"], ["classify", "--help"]])
def test_a_verbs_help_does_not_import_torch(args: list[str]):
    without_torch(args)


def test_an_unknown_flag_suggests_the_near_one():
    done = limner("train", "demo", "--optim.lrr", "1e-3")
    assert done.returncode == 2
    assert "--optim.lr" in done.stderr


@pytest.mark.parametrize(
    ("args", "near"),
    [(["clasify"], "classify"), (["data", "dmeo"], "data demo"), (["train", "dmeo"], "demo")],
)
def test_an_unknown_verb_or_recipe_suggests_the_near_one(
    args: list[str], near: str, capsys: pytest.CaptureFixture[str]
):
    assert exit_code(*args) == 2
    assert f"Did you mean {near}?" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]):
    assert exit_code("--version") == 0
    assert capsys.readouterr().out.startswith("limner ")


def test_classify_and_search_print_json(digits_run: Path, capsys: pytest.CaptureFixture[str]):
    pictures = sorted(digits_run.glob("pictures/*.png"))
    assert (
        exit_code(
            "classify",
            str(digits_run),
            *map(str, pictures),
            "--labels",
            "zero,one,two,three,four,five,six,seven,eight,nine",
            "--json",
        )
        == 0
    )
    answers = json.loads(capsys.readouterr().out)
    assert len(answers) == len(pictures)
    right = [next(iter(answer["names"])) == Path(answer["picture"]).stem for answer in answers]
    assert sum(right) >= len(right) - 1
    assert all(abs(sum(a["names"].values()) - 1) < 0.2 for a in answers)
    assert (
        exit_code("search", str(digits_run), str(digits_run / "pictures"), "the digit three", "--top", "2", "--json")
        == 0
    )
    hits = json.loads(capsys.readouterr().out)
    assert Path(hits[0]["path"]).name == "three.png"
    assert hits[0]["similarity"] > hits[1]["similarity"]


def test_eval_prints_rows(digits_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(digits_run.parent.parent)
    assert exit_code("eval", str(digits_run), "--json") == 0
    rows = {row["metric"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["zero_shot.top1"]["value"] > 0.9
    assert exit_code("eval", str(digits_run)) == 0
    assert "zero_shot.top1" in capsys.readouterr().out


def test_bad_input_exits_with_2_and_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for args in (
        ["eval", str(tmp_path)],
        ["search", str(tmp_path), str(tmp_path), "cat"],
        ["train", "small", "--data", str(tmp_path), "--out", str(tmp_path / "run")],
        ["train", "small", "--train.batch-size", "1"],
        ["train", "demo", "--data", str(tmp_path / "none")],
        ["classify", str(tmp_path), "x.png", "--labels", "a,b", "--top", "0"],
        ["report", str(tmp_path)],
        ["train", "--resume", str(tmp_path / "none")],
    ):
        assert exit_code(*args) == 2, args
        error = capsys.readouterr().err
        assert "must" in error and "Got" in error, args
        assert "Traceback" not in error
