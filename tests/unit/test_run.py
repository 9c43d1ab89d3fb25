import json
from pathlib import Path

import pytest

import limner.run
from limner.config import to_json
from limner.errors import ConfigError
from limner.files import write_json
from limner.recipes import digits
from limner.run import RunDirectory


def test_the_paths_are_those_of_the_docstring(tmp_path: Path):
    run = RunDirectory(tmp_path)
    lines = [line for line in (limner.run.__doc__ or "").splitlines() if line.startswith("RUN/")]
    named = {line.split()[0].removeprefix("RUN/").rstrip("/") for line in lines}
    paths = {
        *(run.config, run.data, run.manifest, run.tokenizer, run.metrics, run.tensorboard, run.checkpoints, run.model),
        *(run.model_ema, run.evaluations, run.measured, run.report),
    }
    assert {path.name for path in paths} | {"env.json"} == named
    assert all(path.parent == tmp_path for path in paths)


def test_a_config_comes_back(tmp_path: Path):
    run = RunDirectory(tmp_path)
    write_json(run.config, to_json(digits()))
    assert run.read_config() == digits()
    run.config.write_text("{")
    with pytest.raises(ConfigError, match="hold JSON"):
        run.read_config()
    with pytest.raises(ConfigError, match="must exist"):
        RunDirectory(tmp_path / "none").read_config()


def test_a_last_line_cut_short_by_a_crash_is_left_out(tmp_path: Path):
    run = RunDirectory(tmp_path)
    assert run.read_metrics() == []
    run.metrics.write_text('{"step": 10}\n{"step": 20}\n{"step": 3')
    assert run.read_metrics() == [{"step": 10}, {"step": 20}]


def test_a_run_is_finished_when_its_model_is_there(tmp_path: Path):
    run = RunDirectory(tmp_path)
    run.model.mkdir()
    assert not run.is_finished
    write_json(run.model / "config.json", {})
    assert run.is_finished


def test_the_environment_is_written_once(tmp_path: Path):
    run = RunDirectory(tmp_path)
    run.describe_environment()
    facts = json.loads((tmp_path / "env.json").read_text())
    assert {"limner", "revision", "command", "python", "torch", "processor", "threads"} <= facts.keys()
    (tmp_path / "env.json").write_text("{}")
    run.describe_environment()
    assert (tmp_path / "env.json").read_text() == "{}", "a resumed run keeps what it began with"
