"""Results on disk: what is done is not done again, nothing is overwritten, and a kill loses one protocol at most."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limner.data.tokenizer import Tokenizer
from limner.errors import ConfigError, DataError
from limner.evaluation import suite
from limner.evaluation.metrics import Outcome, Row
from limner.evaluation.results import Evaluation, Key, Results
from limner.evaluation.suite import How, evaluate_run, evaluate_task
from limner.model.clip import CLIP, create


@pytest.fixture
def model(tokenizer: Tokenizer) -> CLIP:
    return create("RN-nano", tokenizer=tokenizer).eval()


@pytest.fixture
def splits(tmp_path: Path, picture: Callable[..., bytes]) -> Path:
    """Class folders of two splits, five pictures of each of two classes."""
    for split, first in (("train", 0), ("test", 100)):
        for number, name in enumerate(("dog", "table")):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for copy in range(5):
                content = picture(seed=first + 10 * number + copy)
                (tmp_path / "set" / split / name / f"{copy}.png").write_bytes(content)
    return tmp_path / "set"


def lines(folder: Path) -> list[dict[str, object]]:
    """The rows in a folder of results, but for their seconds."""
    told = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return [{name: value for name, value in one.items() if name != "seconds"} for one in told]


def row(metric: str, value: float = 0.5) -> Row:
    return Row(task="t", metric=metric, value=value, low=0.4, high=0.6, count=10, model="m", data="d", protocol="p")


def test_what_is_done_is_not_measured_again(
    model: CLIP, splits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    model.save(tmp_path / "model")
    (first,), _ = evaluate_run(tmp_path / "model", splits, out=tmp_path / "out")
    before = (tmp_path / "out/results.jsonl").read_bytes()
    monkeypatch.setattr(suite, "embed_images", lambda *_, **__: pytest.fail("embedded again"))
    (again,), _ = evaluate_run(tmp_path / "model", splits, out=tmp_path / "out")
    assert again == first and (tmp_path / "out/results.jsonl").read_bytes() == before
    assert capsys.readouterr().err.count("taken from the results") == 2
    monkeypatch.undo()
    (tmp_path / "prompts.txt").write_text("a {}.\n")
    (other,), _ = evaluate_run(tmp_path / "model", splits, How(prompts=tmp_path / "prompts.txt"), out=tmp_path / "out")
    after = (tmp_path / "out/results.jsonl").read_bytes()
    assert after.startswith(before) and len(after) > len(before)  # the probe, which has no prompts, is not done again
    assert {one.metric.split(".")[0] for one in other.rows} == {"zero_shot", "linear_probe"}
    assert {one["protocol"] for one in lines(tmp_path / "out")[len(before.splitlines()) :]} == {"zero-shot"}


def test_a_file_cut_anywhere_goes_on_to_the_same_end(model: CLIP, splits: Path, tmp_path: Path):
    with_results(model, splits, tmp_path / "whole")
    whole, expected = (tmp_path / "whole/results.jsonl").read_bytes(), lines(tmp_path / "whole")
    for place in (0, 1, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        file = tmp_path / "whole/results.jsonl"
        file.write_bytes(whole[:place])
        with_results(model, splits, tmp_path / "whole")
        assert lines(tmp_path / "whole") == expected


def with_results(model: CLIP, task: Path, folder: Path) -> None:
    results = Results(folder)
    evaluate_task(model, task, results=results)
    results.close()


@given(
    groups=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    share=st.floats(0, 1),
    tail=st.binary(max_size=3).filter(lambda tail: b"\n" not in tail and b"\r" not in tail),
)
def test_groups_are_there_whole_or_not_at_all(
    groups: list[int], share: float, tail: bytes, tmp_path_factory: pytest.TempPathFactory
):
    folder = tmp_path_factory.mktemp("results")
    results, keys = Results(folder), [Key(f"t{place}", "p", "m", "d") for place in range(len(groups))]
    for key, size in zip(keys, groups, strict=True):
        results.add(key, Evaluation(task=key.task, data="", rows=[row(f"m{number}") for number in range(size)]))
    results.close()
    content = (folder / "results.jsonl").read_bytes()
    ends = [sum(groups[: place + 1]) for place in range(len(groups))]
    there = content.splitlines(keepends=True)
    cut = int(share * len(content))
    (folder / "results.jsonl").write_bytes(content[:cut] + (tail if cut < len(content) else b""))
    again = Results(folder)
    for key, end in zip(keys, ends, strict=True):
        assert (again.done(key) is not None) == (len(b"".join(there[:end])) <= cut)
    for key, size in zip(keys, groups, strict=True):
        if again.done(key) is None:
            again.add(key, Evaluation(task=key.task, data="", rows=[row(f"m{number}") for number in range(size)]))
    again.close()
    assert (folder / "results.jsonl").read_bytes() == content


def test_one_command_at_a_time_writes(tmp_path: Path):
    first = Results(tmp_path / "out")
    with pytest.raises(ConfigError, match="written by one command at a time"):
        Results(tmp_path / "out")
    first.close()
    Results(tmp_path / "out").close()


@pytest.mark.parametrize("content", ["[1]\n", '{"key": "a"}\n', "{}\n{}\n", "task,value\n", '{"key": 1, "rows": 0}\n'])
def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path, content: str):
    (tmp_path / "results.jsonl").write_text(content)
    with pytest.raises(ConfigError, match="must hold rows that limner eval wrote"):
        Results(tmp_path)
    assert (tmp_path / "results.jsonl").read_text() == content
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="must be one to write to"):
        Results(tmp_path / "file")


def test_a_protocol_that_the_data_does_not_allow_is_a_sentence(model: CLIP, splits: Path, folder_of_pairs: Path):
    with pytest.raises(DataError, match=r"must allow linear-probe\. Got no training pictures\. Give the folder around"):
        evaluate_task(model, splits / "test", How(protocols=("linear-probe",)))
    with pytest.raises(DataError, match=r"must allow zero-shot\. Got pictures without labels"):
        evaluate_task(model, folder_of_pairs, How(protocols=("retrieval", "zero-shot")))
    with pytest.raises(DataError, match=r"must allow retrieval\. Got pictures without captions"):
        evaluate_task(model, splits, How(protocols=("retrieval",)))
    found = evaluate_task(model, splits, How(protocols=("linear-probe",)))
    assert {one.protocol for one in found.rows} == {"linear-probe"}
    assert all(one.train and not one.prompts and "before the projection, C = " in one.setting for one in found.rows)


def test_outcomes_are_those_of_the_rows(model: CLIP, splits: Path):
    found = evaluate_task(model, splits)
    values = {one.metric: one.value for one in found.rows}
    for outcome in found.outcomes:
        assert sum(rank < 1 for rank in outcome.ranks) / len(outcome.ranks) == values[f"{outcome.metric}.top1"]
        assert len(set(outcome.keys)) == len(outcome.keys) == 10 and sorted(set(outcome.labels)) == [0, 1]
    assert Outcome(metric="m", keys=[], ranks=[]).labels == []
    assert replace(found.rows[0], seconds=99.0) == found.rows[0]
    assert sum(count for _, _, count in found.reliability) == 10


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_to_the_same_results(model: CLIP, splits: Path, tmp_path: Path):
    """kill -9 as soon as the first rows are there, then the same command again."""
    model.save(tmp_path / "model")
    tasks = [tmp_path / name for name in ("a", "b", "c")]
    for task in tasks:
        task.symlink_to(splits)
    command = [sys.executable, "-m", "limner", "eval", str(tmp_path / "model"), "--data", *map(str, tasks)]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen([*command, "--out", str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not ((killed / "results.jsonl").exists() and (killed / "results.jsonl").stat().st_size):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    some = lines(killed)
    for folder in (killed, whole):
        subprocess.run([*command, "--out", str(folder)], check=True, capture_output=True)
    assert lines(killed) == lines(whole) and 0 < len(some) < len(lines(whole))


def test_training_pictures_that_cannot_be_read_are_counted(model: CLIP, splits: Path):
    (splits / "train/dog/0.png").write_bytes(b"no picture")
    (splits / "train/table/1.png").write_bytes(b"")
    assert evaluate_task(model, splits).skipped == {"not a picture (train)": 1, "empty picture file (train)": 1}
