"""The command line is a reviewed surface: its help texts, exit codes, conventions and what it imports."""

import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import docstring_parser
import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from helpers.tars import tar
from limner.cli.command import VERBS, main
from limner.data.sources.read import read_pairs
from limner.data.tokenizer import Tokenizer
from limner.data.write import repack
from limner.model.clip import create
from limner.recipes import RECIPES

SNAPSHOT = Path(__file__).parent / "snapshots" / "help.txt"
HEAVY = {"torch", "numpy", "PIL", "simplejpeg", "tokenizers", "safetensors", "jaxtyping", "cattrs", "fsspec", "pyarrow"}
SHOWS = {"tyro", "rich"}
"""What a verb's help is made with; the overview is not."""
PARAMETERS = {(name, p.name): p for name, verb in VERBS.items() for p in inspect.signature(verb).parameters.values()}


def limner(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "limner", *args], capture_output=True, text=True, timeout=120, check=False
    )


def imported_by(*lines: list[str]) -> set[str]:
    """The modules that command lines import, one after the other in a process of their own."""
    code = f"""
import sys
before = set(sys.modules)
from limner.cli.command import main
for line in {lines!r}:
    try: main(line)
    except SystemExit as end: assert end.code == 0, line
print(*sorted(set(sys.modules) - before), sep="\\n", file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines())


def exit_code(*args: str) -> int:
    with pytest.raises(SystemExit) as exited:
        main(args)
    return int(exited.value.code or 0)


# --- help ------------------------------------------------------------------------------------------------------------


def test_help_texts_are_the_reviewed_ones(capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest):
    texts = []
    for args in ([], ["data"], *(name.split() for name in VERBS), ["train", "demo"]):
        assert exit_code(*args, "--help") == 0
        text = "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines())
        texts.append(f"$ limner {' '.join([*args, '--help'])}\n{text.strip()}\n")
    found = "\n".join(texts)
    if request.config.getoption("--update-snapshots"):
        SNAPSHOT.write_text(found)
    assert found == SNAPSHOT.read_text(), "run: make docs, and review the difference"


def test_the_overview_imports_little():
    modules = imported_by(["--help"])
    assert not modules & (HEAVY | SHOWS)
    assert len(modules) < 120, sorted(modules)  # 73, a third of them limner's own and re's


def test_no_help_imports_anything_heavy():
    lines = [[*name.split(), "--help"] for name in VERBS] + [["train", recipe, "--help"] for recipe in RECIPES]
    modules = imported_by(*lines)
    assert "tyro" in modules and not modules & HEAVY


def test_every_setting_of_a_run_is_in_the_help(capsys: pytest.CaptureFixture[str]):
    assert exit_code("train", "vit_b32", "--help") == 0
    text = capsys.readouterr().out
    for line in ("--model STR", "(default: ViT-B/32)", "--train.objective STR", "--optim.lr FLOAT", "--json"):
        assert line in text


# --- conventions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_says_what_it_does_and_what_each_argument_is(name: str):
    verb = VERBS[name]
    text = docstring_parser.parse(inspect.getdoc(verb) or "")
    assert text.short_description and len(text.short_description) <= 74, "100 columns"
    assert {p.arg_name for p in text.params} | {"config"} >= set(inspect.signature(verb).parameters)
    assert all(p.description and p.description.endswith(".") for p in text.params)


def test_subjects_come_first_and_outputs_are_flags():
    subjects = {p.name for p in PARAMETERS.values() if p.kind is p.POSITIONAL_ONLY}
    assert subjects == {*("run", "model", "data", "images", "text", "key", "first", "second", "videos", "sentences")}
    assert all(p.kind in (p.POSITIONAL_ONLY, p.KEYWORD_ONLY) for (_, name), p in PARAMETERS.items() if name != "config")
    assert all(p.kind is p.KEYWORD_ONLY for (_, name), p in PARAMETERS.items() if name == "out")


def test_every_verb_speaks_to_machines():
    assert {name for name in VERBS if (name, "json") not in PARAMETERS} == set()


def test_what_may_be_an_address_is_no_path():
    """`Path("s3://bucket/a")` is s3:/bucket/a."""
    for (verb, name), parameter in PARAMETERS.items():
        if name in ("data", "images", "model"):
            kinds = {parameter.annotation, *get_args(parameter.annotation)}
            assert Path not in kinds and str in kinds, verb


SETTINGS = "--train.batch-size 8 --train.epochs 0.2 --workers 1"
LINES = {
    "train": f"train digits --data DATA --test DATA --out OUT {SETTINGS}",
    "data check": "data check DATA --out OUT.html --batch-size 8",
    "data stats": "data stats DATA",
    "data show": "data show DATA KEY",
    "data bench": "data bench DATA --batches 1 --batch-size 4 --image-size 32",
    "data shard": "data shard DATA --out OUT",
    "tokenizer train": "tokenizer train DATA --out OUT.json --vocab-size 520",
    "eval": "eval MODEL --data DATA",
    "eval prompts": "eval prompts MODEL LABELLED --out OUT.json",
    "classify": "classify MODEL DATA --labels one two",
    "search": "search MODEL DATA picture",
}
"""A command line of each verb that reads pairs or pictures."""


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """A folder with shards of pairs and a model."""
    folder = tmp_path_factory.mktemp("things")
    (folder / "pairs").mkdir()
    for index in range(16):
        pixels = np.random.default_rng(index).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pairs" / f"{index:02d}.png")
        (folder / "pairs" / f"{index:02d}.txt").write_text(f"picture number {index}")
    repack(read_pairs(folder / "pairs"), folder / "shards")
    images = {path.stem: path.read_bytes() for path in (folder / "pairs").glob("*.png")}
    labels = {f"{stem}.cls": str(int(stem) % 2).encode() for stem in images}
    tar(folder / "labelled.tar", {f"{stem}.png": content for stem, content in images.items()} | labels)
    create("RN-nano", tokenizer=tokenizer).save(folder / "model")
    return folder


@pytest.fixture
def words(things: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """What the words in capitals in LINES stand for; DATA and LABELLED are shards at addresses."""
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path / "cache"))
    address = f"memory://{tmp_path.name}/shards"
    for file in (things / "shards").glob("*.tar"):
        with fsspec.open(f"{address}/{file.name}", "wb") as there:
            there.write(file.read_bytes())  # type: ignore[union-attr]
    labelled = {"classnames.txt": b"cat\ndog", "test/0.tar": (things / "labelled.tar").read_bytes()}
    for name, content in labelled.items():
        with fsspec.open(f"memory://{tmp_path.name}/labelled/{name}", "wb") as there:
            there.write(content)  # type: ignore[union-attr]
    out = {f"OUT{ending}": str(tmp_path / f"out{ending}") for ending in ("", ".html", ".json")}
    out["LABELLED"] = f"memory://{tmp_path.name}/labelled/test"
    yield {"DATA": address, "MODEL": str(things / "model"), "KEY": read_pairs(things / "shards")[0].key, **out}
    MemoryFileSystem.store.clear()


@pytest.mark.parametrize("verb", LINES)
def test_pairs_and_pictures_may_be_elsewhere(verb: str, words: dict[str, str], capsys: pytest.CaptureFixture[str]):
    assert exit_code(*(words.get(word, word) for word in LINES[verb].split()), "--json") == 0, capsys.readouterr().err
    assert json.loads(capsys.readouterr().out)


def test_all_verbs_that_read_were_tried():
    assert set(LINES) == {verb for verb, name in PARAMETERS if name in ("data", "images", "config")}


# --- spellings -------------------------------------------------------------------------------------------------------


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


def test_spellings_of_before_work_and_say_the_new_one(things: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pairs = f"{things}/pairs"
    for before, now in (
        (f"data shard {pairs} {tmp_path}/shards", f"data shard {pairs} --out {tmp_path}/shards"),
        (f"convert {things}/model {tmp_path}/new", f"convert {things}/model --out {tmp_path}/new"),
        (
            f"tokenizer train --data {pairs} --out {tmp_path}/tokenizer.json",
            f"tokenizer train {pairs} --out {tmp_path}/tokenizer.json",
        ),
    ):
        assert exit_code(*before.split()) == 0
        assert f"The new spelling is: limner {now}\n" in capsys.readouterr().err
        assert exit_code(*now.split()) == 0
        assert "new spelling" not in capsys.readouterr().err
    assert exit_code("train", "--resume", str(tmp_path / "none")) == 2
    assert f"The new spelling is: limner resume {tmp_path}/none\n" in capsys.readouterr().err


# --- results ---------------------------------------------------------------------------------------------------------


def test_version(capsys: pytest.CaptureFixture[str]):
    assert exit_code("--version") == 0
    assert capsys.readouterr().out.startswith("limner ")


def test_what_was_written_is_json(things: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def answer(*args: object) -> Any:
        assert exit_code(*map(str, args), "--json") == 0
        return json.loads(capsys.readouterr().out)

    shards = answer("data", "shard", things / "pairs", "--out", tmp_path / "shards")
    assert shards["written"] == str(tmp_path / "shards") and shards["pairs"] == 16 and shards["skipped"] == {}
    assert shards["fingerprint"] == answer("data", "stats", tmp_path / "shards")["fingerprint"]
    tokens = answer("tokenizer", "train", tmp_path / "shards", "--out", tmp_path / "tokenizer.json")
    assert tokens["pairs"] == 16 and tokens["data"] == shards["fingerprint"] and tokens["tokens"] > 514

    run = tmp_path / "run"
    settings = ("--train.batch-size", 8, "--train.epochs", 0.2, "--tokenizer", tmp_path / "tokenizer.json")
    shape = ("--test", tmp_path / "shards", "--out", run, "--workers", 1)
    trained = answer("train", "digits", "--data", tmp_path / "shards", *settings, *shape)
    assert trained["written"] == str(run) and trained["steps"] == 1 and trained["pairs_seen"] == 8
    assert trained["data"] == shards["fingerprint"]
    again = answer("resume", run)
    assert again["fingerprint"] == trained["fingerprint"] and again["steps"] == 1
    converted = answer("convert", run, "--out", tmp_path / "model")
    assert converted["fingerprint"] == trained["fingerprint"] and converted["onnx"] == []
    assert all(check["fine"] for check in answer("doctor", tmp_path / "model"))
    assert answer("eval", run) and answer("report", run)["written"] == str(run / "report.html")


def test_the_demos_result_is_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The tour itself is tested elsewhere; what it prints for people is not in the way."""
    run = tmp_path / "run"
    last = {"step": 5, "pairs": 640, "seconds": 1.5}
    for file, content in {
        "model/config.json": {"limner": {"fingerprint": "abc"}},
        "data.json": {"fingerprint": "def"},
        "summary.json": {"zero_shot": {"top1": 0.5}},
        "metrics.jsonl": last,
    }.items():
        (run / file).parent.mkdir(parents=True, exist_ok=True)
        (run / file).write_text(json.dumps(content) + "\n")

    def tour(_source: str, _out: Path | None) -> Path:
        print("for people")
        return run / "report.html"

    monkeypatch.setattr("limner.demo.tour.run_demo", tour)
    assert exit_code("demo", "--source", "digits", "--json") == 0
    printed = capsys.readouterr()
    assert "for people" in printed.err
    found = json.loads(printed.out)
    assert found["zero_shot"] == {"top1": 0.5} and found["fingerprint"] == "abc" and found["pairs_seen"] == 640


def test_the_demos_pairs_are_counted(digits_run: Path, capsys: pytest.CaptureFixture[str]):
    folder = digits_run.parent.parent / "data" / "digits"  # whole: nothing is written
    assert exit_code("data", "demo", "--source", "digits", "--out", str(folder), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["train"]["pairs"] + found["test"]["pairs"] == 1797
    assert found["test"]["fingerprint"] == read_pairs(folder / "test").fingerprint


def test_classify_and_search_print_json(digits_run: Path, capsys: pytest.CaptureFixture[str]):
    images = [str(image) for image in sorted(digits_run.glob("pictures/*.png"))]
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    before = ""
    for labels in (names, [",".join(names)]):  # apart, and as they were written before
        assert exit_code("classify", str(digits_run), *images, "--labels", *labels, "--json") == 0
        printed = capsys.readouterr().out
        assert printed == (before or printed)
        before = printed
    answers = json.loads(before)
    assert len(answers) == len(images)
    right = [next(iter(answer["names"])) == Path(answer["image"]).stem for answer in answers]
    assert sum(right) >= len(right) - 1
    assert all(abs(sum(a["names"].values()) - 1) < 0.2 for a in answers)
    search = ("search", str(digits_run), str(digits_run / "pictures"), "the digit three", "--top", "2", "--json")
    assert exit_code(*search) == 0
    hits = json.loads(capsys.readouterr().out)
    assert Path(hits[0]["path"]).name == "three.png"
    assert hits[0]["similarity"] > hits[1]["similarity"]


def test_features_are_kept_and_a_device_and_a_precision_chosen(
    words: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def answer(verb: str, *more: str) -> Any:
        args = [words.get(word, word) for word in LINES[verb].split()]
        assert exit_code(*args, "--json", "--device", "cpu", "--features", str(tmp_path / verb), *more) == 0
        return json.loads(capsys.readouterr().out)

    for verb in ("eval", "classify", "search"):
        first = answer(verb)
        assert [file for file in (tmp_path / verb).rglob("*") if file.is_file()]
        again = answer(verb)
        for row in (*first, *again):
            row.pop("seconds", None)
        assert again == first
        assert answer(verb, "--precision", "bf16")


def test_eval_prints_rows(digits_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(digits_run.parent.parent)
    assert exit_code("eval", str(digits_run), "--json") == 0
    rows = {row["metric"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["zero_shot.top1"]["value"] > 0.9 and rows["zero_shot.top1"]["unit"] == "share"
    assert exit_code("eval", str(digits_run)) == 0
    text = capsys.readouterr().out
    assert "zero_shot.top1" in text and "%" in text


def test_bad_input_exits_with_2_and_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for args in (
        ["eval", str(tmp_path)],
        ["search", str(tmp_path), str(tmp_path), "cat"],
        ["train", "small", "--data", str(tmp_path), "--out", str(tmp_path / "run")],
        ["train", "small", "--train.batch-size", "1"],
        ["train", "small", "--model", "none", "--data", str(tmp_path)],
        ["train", "demo", "--data", str(tmp_path / "none")],
        ["classify", str(tmp_path), "x.png", "--labels", "a,b", "--top", "0"],
        ["classify", str(tmp_path), "--labels", "a", "b"],
        ["classify", str(tmp_path), "x.png", "--labels", " "],
        ["search", str(tmp_path), "x.png", "a", "--top", "0"],
        ["data", "shard", str(tmp_path), "--out", str(tmp_path / "out"), "--per-shard", "0"],
        ["report", str(tmp_path)],
        ["resume", str(tmp_path / "none")],
        ["train", "--resume", str(tmp_path / "none")],
    ):
        assert exit_code(*args) == 2, args
        error = capsys.readouterr().err
        assert "must" in error and "Got" in error, args
        assert "Traceback" not in error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left", "x"), OSError("odd")])
def test_other_ends_have_their_codes(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(_args: list[str]) -> None:
        raise error

    monkeypatch.setattr("limner.cli.command.dispatch", fail)
    assert exit_code("models") == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert capsys.readouterr().err.startswith("limner: ")
