"""Two models on the same pictures."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from limner.errors import ConfigError, DataError
from limner.evaluation.compare import MCNEMAR, PAIRED, compare
from limner.evaluation.intervals import holm, mcnemar
from limner.evaluation.metrics import Outcome, Row
from limner.evaluation.results import Evaluation


@given(first=st.integers(0, 60), second=st.integers(0, 60))
def test_mcnemar_is_the_binomial_test_of_scipy(first: int, second: int):
    expected = 1.0 if first + second == 0 else binomtest(first, first + second).pvalue
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(first, second) == mcnemar(second, first)


def test_mcnemar_of_many():
    assert mcnemar(5000, 5200) == pytest.approx(binomtest(5000, 10200).pvalue, rel=1e-6)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == [] and holm([0.2]) == [0.2] and holm([0.9, 0.9]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_keeps_the_order_and_never_lowers(chances: list[float]):
    found = holm(chances)
    assert all(one >= chance for one, chance in zip(found, chances, strict=True)) and all(one <= 1 for one in found)
    order = sorted(range(len(chances)), key=chances.__getitem__)
    assert [found[place] for place in order] == sorted(found)


def results(folder: Path, task: str, right: list[bool], *, data: str = "d", metric: str = "zero_shot") -> Path:
    folder.mkdir(exist_ok=True)
    row = Row(
        task=task,
        metric=f"{metric}.top1",
        value=sum(right) / len(right),
        low=0.0,
        high=1.0,
        count=1,
        model="m",
        data=data,
    )
    labels = [place % 3 for place in range(len(right))]
    keys, ranks = [str(place) for place in range(len(right))], [0 if one else 7 for one in right]
    outcome = Outcome(metric=metric, keys=keys, ranks=ranks, labels=labels if metric == "zero_shot" else [])
    told = Evaluation(task=task, data="place", rows=[row], outcomes=[outcome])
    (folder / f"{task}.json").write_text(json.dumps(asdict(told)))
    return folder


def test_differences_are_paired_and_corrected(tmp_path: Path):
    rng = np.random.default_rng(0)
    for task, lost in (("plain", 0.0), ("worse", 0.2)):
        first = rng.random(600) < 0.8
        second = first & (rng.random(600) >= lost)
        results(tmp_path / "a", task, first.tolist())
        results(tmp_path / "b", task, second.tolist())
    found = {(one.task, one.metric): one for one in compare(tmp_path / "a", tmp_path / "b")}
    same, worse = found["plain", "zero_shot.top1"], found["worse", "zero_shot.top1"]
    assert same.difference == 0 and same.chance == same.corrected == 1 and same.test == MCNEMAR
    assert (
        worse.difference == pytest.approx(worse.second - worse.first) and worse.low < worse.difference < worse.high < 0
    )
    assert worse.corrected == pytest.approx(2 * worse.chance) and worse.corrected < 1e-6
    classes = found["worse", "zero_shot.mean_per_class"]
    assert classes.test == PAIRED and classes.high < 0 and classes.chance < 1e-6


def test_what_was_not_measured_in_both_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    results(tmp_path / "a", "both", [True, False])
    results(tmp_path / "a", "alone", [True, False])
    results(tmp_path / "b", "both", [True, True])
    results(tmp_path / "b", "other", [True, False], metric="retrieval.text_to_image")
    found = compare(tmp_path / "a", tmp_path / "b")
    assert {one.task for one in found} == {"both"}
    assert "in one of them alone, or on other pictures: alone, other" in capsys.readouterr().err
    results(tmp_path / "c", "both", [True, True], data="changed")
    with pytest.raises(DataError, match="must be of the same tasks, on the same pictures"):
        compare(tmp_path / "a", tmp_path / "c")
    (tmp_path / "none").mkdir()
    with pytest.raises(ConfigError, match="must hold results"):
        compare(tmp_path / "a", tmp_path / "none")
    (tmp_path / "a/again.json").write_text((tmp_path / "a/both.json").read_text())
    with pytest.raises(ConfigError, match="must hold one measurement of zero_shot on both"):
        compare(tmp_path / "a", tmp_path / "b")
