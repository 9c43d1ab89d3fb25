"""What a run is measured on is never what it was trained on, unless it says so."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from limner.cli.command import main
from limner.config import RunConfig, TrainConfig
from limner.data.sources.read import read_images, split_pairs
from limner.data.write import Sample, write_shards
from limner.errors import ConfigError, DataError, StorageError
from limner.evaluation import suite
from limner.evaluation.results import Evaluation, read_evaluations
from limner.evaluation.suite import evaluate_run
from limner.evaluation.tasks import name_of_task, own_task
from limner.recipes import digits
from limner.run import RunDirectory
from limner.training.loop import train


@pytest.fixture
def shards(tmp_path: Path, picture: Callable[..., bytes]) -> Path:
    samples = (
        Sample(image=picture(seed=i), extension="png", width=40, height=30, captions=(f"number {i}",), record={})
        for i in range(40)
    )
    write_shards(samples, tmp_path / "shards", origin={})
    return tmp_path / "shards"


def evaluated(*args: Any, **options: Any) -> list[Evaluation]:
    found, failed = evaluate_run(*args, **options)
    assert not failed
    return found


def one_epoch(data: Path, out: Path, **settings: object) -> RunConfig:
    quick = TrainConfig(batch_size=10, epochs=1.0, precision="fp32")
    return replace(digits(), data=str(data), test=None, holdout=0.3, out=out, train=quick, **settings)


def test_held_back_pairs_are_those_that_the_run_kept_back_or_it_is_not_measured(shards: Path, tmp_path: Path):
    run = RunDirectory(train(one_epoch(shards, tmp_path / "run")))
    (evaluation,) = evaluated(run.path)
    trained, kept_back = split_pairs(str(shards), (), holdout=0.3)
    assert evaluation.kept_back and not evaluation.trained_on and evaluation.rows[0].data == kept_back.fingerprint
    assert json.loads(run.data.read_text())["fingerprint"] == trained.fingerprint

    shard = next(shards.glob("*.tar"))
    shutil.copy(shard, shards / "more.tar")  # a download that goes on: keys get the names of their shards in front
    before = {pair.read() for pair in trained}
    _, now = split_pairs(str(shards), (), holdout=0.3)
    assert any(pair.read() in before for pair in now)
    with pytest.raises(DataError, match=r"so that the ones that it kept back are known. Got others"):
        own_task(run)
    with pytest.raises(DataError, match="pictures that the run was not trained on"):
        evaluated(run.path)


def test_a_run_that_went_on_with_other_data_has_nothing_of_its_own(
    shards: Path, tmp_path: Path, picture: Callable[..., bytes]
):
    config = one_epoch(shards, tmp_path / "run")
    run = RunDirectory(train(config))
    first = json.loads(run.data.read_text())["fingerprint"]
    shutil.copy(next(shards.glob("*.tar")), shards / "more.tar")
    shutil.rmtree(run.model)
    train(config, resume=True, other_data=True)
    assert json.loads(run.data.read_text())["trained_before"] == [first]
    with pytest.raises(DataError, match="some of the pairs that would be kept back now may have been trained on"):
        own_task(run)


def test_measuring_on_what_was_trained_on_is_said(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], picture: Callable[..., bytes]
):
    path = train(one_epoch(shards, tmp_path / "run"))
    copied = tmp_path / "copy"
    shutil.copytree(shards, copied, ignore=shutil.ignore_patterns(".limner", "manifest.json"))
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.png").write_bytes(picture(seed=99))
    (other / "a.txt").write_text("number 99")
    capsys.readouterr()
    told = [evaluation.trained_on for evaluation in evaluated(path, [shards, copied, other])]
    assert told == [True, True, False] and capsys.readouterr().err.count("what it remembers") == 2


def test_measuring_on_some_of_the_files_that_were_trained_on_is_said(folder_of_pairs: Path, tmp_path: Path):
    path = train(one_epoch(folder_of_pairs, tmp_path / "run"))
    (folder_of_pairs / "some.csv").write_text("path,caption\n" + "".join(f"{n:02d}.png,a\n" for n in range(20)))
    (tmp_path / "around").mkdir()
    (tmp_path / "around" / "inner").symlink_to(folder_of_pairs)
    for data in (folder_of_pairs / "some.csv", tmp_path / "around"):
        assert evaluated(path, data)[0].trained_on


def test_a_run_that_keeps_nothing_back_says_so_before_it_trains(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = train(replace(one_epoch(shards, tmp_path / "run"), holdout=0.0))
    said = capsys.readouterr().err
    assert said.index("No pair is kept back and there is no test set") < said.index("steps from step 0")
    with pytest.raises(ConfigError, match="pictures that it was not trained on"):
        own_task(RunDirectory(path))
    train(replace(one_epoch(shards, tmp_path / "next"), test=str(shards), holdout=0.0))
    assert "No pair is kept back" not in capsys.readouterr().err


def test_numbers_that_cannot_be_kept_are_given_all_the_same(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    path = train(one_epoch(shards, tmp_path / "run"))

    def full(*_: object) -> None:
        raise StorageError("The file", must="be written whole", got="Read-only file system", then="Make room.")

    monkeypatch.setattr(suite, "write_evaluation", full)
    assert evaluated(path)[0].rows
    assert "The numbers are not kept: The file must be written whole. Got Read-only" in capsys.readouterr().err


def test_a_model_to_start_from_brings_its_tokenizer(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tokenizer: object
):
    first = train(one_epoch(shards, tmp_path / "first"))
    vocabulary = json.loads((first / "model/config.json").read_text())["limner"]["architecture"]["text"]["vocab_size"]
    with pytest.raises(ConfigError, match=r"The tokenizer openai beside --init .* must be the one that the model has"):
        train(one_epoch(shards, tmp_path / "next", init=first, tokenizer="openai"))
    assert not (tmp_path / "next/config.json").exists()
    own = str(first / "tokenizer.json")
    next_run = RunDirectory(train(one_epoch(shards, tmp_path / "next", init=first, tokenizer=own)))
    assert next_run.read_config().vocab_size == vocabulary != digits().vocab_size
    given = ["train", "digits", "--data", str(shards), "--init", str(first), "--out", str(tmp_path / "third")]
    with pytest.raises(SystemExit) as ended:
        main([*given, "--vocab-size=600"])
    assert ended.value.code == 2 and "--init and --vocab-size must not be given together" in capsys.readouterr().err


def test_pairs_of_a_mixture_that_were_trained_on_are_known_again(shards: Path, folder_of_pairs: Path, tmp_path: Path):
    path = train(one_epoch(f"{shards}::{folder_of_pairs}", tmp_path / "run"))
    copied = tmp_path / "copy"
    shutil.copytree(shards, copied, ignore=shutil.ignore_patterns(".limner", "manifest.json"))
    assert evaluated(path, copied)[0].trained_on


def test_of_a_folder_only_the_files_that_were_trained_on_count(folder_of_pairs: Path, tmp_path: Path):
    run = RunDirectory(train(one_epoch(folder_of_pairs, tmp_path / "run")))
    trained = {pair.key for pair in split_pairs(str(folder_of_pairs), (), holdout=0.3)[0]}
    for name, keys in {"kept.csv": {f"{n:02d}.png" for n in range(40)} - trained, "trained.csv": trained}.items():
        rows = (f"pairs/{key},a\n" for key in sorted(keys))
        (tmp_path / name).write_text("path,caption\n" + "".join(rows))
        assert evaluated(run.path, tmp_path / name)[0].trained_on is (name == "trained.csv")


def test_files_of_a_run_that_say_nothing_are_errors(shards: Path, tmp_path: Path):
    run = RunDirectory(train(one_epoch(shards, tmp_path / "run")))
    said = run.data.read_text()
    for file, match in ((run.manifest, "must say parts"), (run.data, "must say fingerprint")):
        file.write_text("{}")
        with pytest.raises(ConfigError, match=match):
            evaluated(run.path, [shards] if file == run.manifest else [])
        file.write_text(said)
    evaluations = evaluated(run.path)
    file = next(run.evaluations.glob("*.json"))
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rows": []}))
    with pytest.raises(ConfigError, match="must hold rows"):
        read_evaluations(run.evaluations)
    assert evaluations[0].kept_back


def test_one_task_that_cannot_be_measured_does_not_stop_the_others(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = train(one_epoch(shards, tmp_path / "run"))
    with pytest.raises(DataError, match="must exist"):
        evaluate_run(path, tmp_path / "nowhere")
    found, failed = evaluate_run(path, [tmp_path / "nowhere", shards])
    assert [one.task for one in found] == [name_of_task(read_images(shards))]
    assert len(failed) == 1 and "Not measured: The data path" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["eval", str(path), "--data", str(tmp_path / "nowhere"), str(shards), "--json"])
    said = capsys.readouterr()
    assert ended.value.code == 1 and {row["protocol"] for row in json.loads(said.out)} == {"retrieval"}


@pytest.mark.parametrize("name", ["v1.2", "set.tar.d", "a.b.c"])
def test_a_task_is_named_by_its_whole_folder(tmp_path: Path, picture: Callable[..., bytes], name: str):
    folder = tmp_path / "data" / name
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(picture())
    assert name_of_task(read_images(folder)) == f"data/{name}"
    (folder / "list.csv").write_text("path\na.png\n")
    assert name_of_task(read_images(folder / "list.csv")) == f"{name}/list"
