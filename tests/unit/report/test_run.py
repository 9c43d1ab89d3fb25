"""The page about a run."""

import json
import re
import shutil
from pathlib import Path

import pytest

from limner.errors import ConfigError, DataError
from limner.evaluation.metrics import Row, describe_row
from limner.evaluation.results import read_evaluations
from limner.evaluation.suite import evaluate_run
from limner.files import write_json
from limner.report.run import curve_names, write_report
from limner.run import RunDirectory


@pytest.fixture
def run(digits_run: Path, tmp_path: Path) -> RunDirectory:
    """A copy of the digits' run, measured; its data lies where it was."""
    shutil.copytree(digits_run, tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def test_the_page_holds_curves_numbers_and_pictures(run: RunDirectory):
    page = write_report(run.path).read_text()
    for part in ("RN-nano trained on 1,438 pairs", "zero_shot.top1", "retrieval.text_to_image@5", "loss over 90 steps"):
        assert part in page, part
    assert "http://" not in page and "https://" not in page, "self-contained"
    assert len(re.findall("data:image/webp;base64,", page)) > 60
    (evaluation,) = read_evaluations(run.evaluations)
    value, interval = describe_row(evaluation.rows[0])
    assert f"<b>{value}</b>" in page and interval in page


def test_rows_of_another_kind_are_shown_as_they_are(run: RunDirectory):
    """A probe's row, one without an interval, one in another unit: none of them is a KeyError."""
    (file,) = run.evaluations.iterdir()
    values = json.loads(file.read_text())
    row = values["rows"][0]
    values["rows"] += [
        {**row, "metric": "probe.accuracy"},
        {**row, "metric": "geo.median", "value": 12.345, "unit": "km", "low": None, "high": None, "interval": None},
        {
            **row,
            "metric": "bias.gap",
            "value": -0.25,
            "unit": "points",
            "low": -1.5,
            "high": 1.0,
            "interval": "t, 95 %",
        },
    ]
    write_json(file, values)
    page = write_report(run.path).read_text()
    assert "probe.accuracy" in page and re.search("<b>12.3[45] km</b>", page)
    assert "-1.5 - 1" in page


def test_an_evaluation_of_before_rows_had_a_unit_is_read(run: RunDirectory):
    (file,) = run.evaluations.iterdir()
    values = json.loads(file.read_text())
    values["rows"] = [{k: v for k, v in row.items() if k not in ("unit", "interval")} for row in values["rows"]]
    write_json(file, values)
    (evaluation,) = read_evaluations(run.evaluations)
    assert evaluation.rows[0].unit == "share" and evaluation.rows[0].interval == "Wilson, 95 %"
    del values["rows"][0]["metric"]
    write_json(file, values)
    with pytest.raises(ConfigError, match="must hold an evaluation"):
        read_evaluations(run.evaluations)


def test_names_are_text_on_the_page(run: RunDirectory):
    (file,) = run.evaluations.iterdir()
    values = json.loads(file.read_text())
    values["class_names"][3] = "<script>alert('three')</script>"
    write_json(file, values)
    page = write_report(run.path, sentences=("<b>bold</b>",)).read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page and "&lt;b&gt;bold" in page


def test_what_was_measured_must_still_be_there(run: RunDirectory):
    (file,) = run.evaluations.iterdir()
    values = json.loads(file.read_text())
    for row in values["rows"]:
        row["data"] = "0" * 64
    write_json(file, values)
    with pytest.raises(DataError, match="must be those that were measured"):
        write_report(run.path)
    file.unlink()
    with pytest.raises(ConfigError, match="limner eval"):
        write_report(run.path)


def test_curves_are_of_what_the_objective_says():
    line = {
        "step": 10,
        "loss": 1.0,
        "nearness": 0.5,
        "lr": 0.1,
        "seconds": 3.0,
        "dropped_for": {"x": 1},
        "grad_norm": 2,
    }
    assert curve_names([line]) == ["loss", "nearness", "grad_norm"] and curve_names([]) == []


def test_a_row_in_words():
    row = Row(task="t", metric="m", value=0.981, low=0.96, high=0.991, count=359, model="m", data="d")
    assert describe_row(row) == ("98.1%", "96.0% - 99.1%")


def test_another_precision_is_no_number_of_the_run(run: RunDirectory):
    before = {file.name: file.read_text() for file in run.evaluations.iterdir()}
    evaluate_run(run.path, precision="bf16", device="cpu")
    files = {file.name: file.read_text() for file in run.evaluations.iterdir()}
    assert len(files) == len(before) + 1 and all(files[name] == text for name, text in before.items())
    page = write_report(run.path).read_text()
    assert "1 more in eval/ measured another model" in page and page.count("zero_shot.top1</td>") == 1
