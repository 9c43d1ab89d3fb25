"""Each metric has an answer worked out by hand, and agrees with scikit-learn where that has it."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as theirs

from limner.errors import DataError, ModelError
from limner.evaluation.intervals import bootstrap, clopper_pearson, wilson
from limner.evaluation.metrics import (
    Clip,
    accuracy,
    average_precision,
    calibration,
    eleven_point_map,
    great_circle_km,
    macro_f1,
    mean_of_top1_and_top5,
    mean_per_class,
    measured_row,
    mwap,
    roc_auc,
    sampled_mwap,
    shares_within_km,
    worst_group,
)

LABELS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40)
SCORES = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40).filter(
    lambda rows: len({right for _, right in rows}) == 2
)
"""Whole numbers as scores: many are equal."""


# --- classes ---------------------------------------------------------------------------------------------------------


def test_classes_by_hand():
    labels, predicted = torch.tensor([0, 0, 0, 0, 1, 3]), torch.tensor([0, 0, 0, 1, 1, 0])
    assert accuracy(predicted, labels) == pytest.approx(4 / 6)
    assert mean_per_class(predicted, labels) == pytest.approx((3 / 4 + 1 + 0) / 3)  # class 2 is not there
    assert macro_f1(predicted, labels) == pytest.approx((6 / 8 + 2 / 3 + 0) / 3)
    assert mean_of_top1_and_top5(torch.tensor([0, 4, 5, 0])) == pytest.approx((0.5 + 0.75) / 2)
    assert worst_group(torch.tensor([True, False, True, True]), torch.tensor([3, 3, 7, 7])) == 0.5


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
@given(LABELS)
def test_classes_are_those_of_scikit_learn(rows: list[tuple[int, int]]):
    predicted, labels = torch.tensor(rows).T
    assert accuracy(predicted, labels) == pytest.approx(theirs.accuracy_score(labels, predicted), abs=1e-12)
    assert macro_f1(predicted, labels) == pytest.approx(
        theirs.f1_score(labels, predicted, average="macro", zero_division=0.0), abs=1e-12
    )
    assert mean_per_class(predicted, labels) == pytest.approx(
        theirs.recall_score(labels, predicted, labels=np.unique(labels), average="macro"), abs=1e-12
    )


def test_calibration_by_hand():
    confidence, right = torch.tensor([0.0, 0.1, 0.55, 0.65, 1.0]), torch.tensor([False, True, True, False, True])
    error, table = calibration(confidence, right, bins=2)
    assert [count for *_, count in table] == [2, 3]
    assert table[0][:2] == pytest.approx((0.05, 0.5)) and table[1][:2] == pytest.approx((2.2 / 3, 2 / 3))
    assert error == pytest.approx((2 * 0.45 + 3 * (2.2 / 3 - 2 / 3)) / 5)


# --- orders of images ------------------------------------------------------------------------------------------------


def test_orders_by_hand():
    scores, right = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([True, False, True, False])
    assert average_precision(scores, right) == pytest.approx((1 + 2 / 3) / 2)
    assert roc_auc(scores, right) == pytest.approx(3 / 4)
    assert roc_auc(torch.ones(4), right) == 0.5
    # recalls up to 0.5 have a precision of 1, those above it of 2/3
    assert eleven_point_map(scores[:, None], right[:, None]) == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    two = torch.stack([scores, 1 - scores], dim=1), torch.stack([right, torch.zeros(4, dtype=torch.bool)], dim=1)
    assert eleven_point_map(*two) == pytest.approx((6 + 10 / 3) / 11)  # a class that no image has does not count
    assert math.isnan(roc_auc(scores, torch.ones(4, dtype=torch.bool)))
    assert math.isnan(eleven_point_map(scores[:, None], torch.zeros(4, 1, dtype=torch.bool)))


@given(SCORES)
def test_orders_are_those_of_scikit_learn(rows: list[tuple[int, bool]]):
    scores, right = torch.tensor([float(score) for score, _ in rows]), torch.tensor([right for _, right in rows])
    assert roc_auc(scores, right) == pytest.approx(theirs.roc_auc_score(right, scores), abs=1e-12)
    assert average_precision(scores, right) == pytest.approx(theirs.average_precision_score(right, scores), abs=1e-12)
    weights = torch.arange(1.0, len(rows) + 1)
    expected = theirs.average_precision_score(right, scores, sample_weight=weights)
    assert average_precision(scores, right, weights) == pytest.approx(expected, abs=1e-12)


@given(SCORES)
def test_eleven_points_are_the_definition(rows: list[tuple[int, bool]]):
    scores, right = torch.tensor([float(score) for score, _ in rows]), torch.tensor([right for _, right in rows])
    found = [scores >= value for value in scores.unique()]
    points = [(int((right & one).sum()) / int(one.sum()), int((right & one).sum())) for one in found]
    wanted = [max(p for p, count in points if 10 * count >= tenth * int(right.sum())) for tenth in range(11)]
    assert eleven_point_map(scores[:, None], right[:, None]) == pytest.approx(sum(wanted) / 11)


@pytest.mark.parametrize(
    "measure",
    [
        lambda x: roc_auc(x, torch.tensor([True, False])),
        lambda x: average_precision(x, torch.tensor([True, False])),
        lambda x: eleven_point_map(x[:, None], torch.ones(2, 1, dtype=torch.bool)),
        lambda x: calibration(x, torch.tensor([True, False])),
        lambda x: shares_within_km(x),
    ],
)
def test_scores_that_are_not_finite_are_an_error(measure: Any):
    with pytest.raises(ModelError, match="must be finite"):
        measure(torch.tensor([float("nan"), 1.0]))


# --- places, and rare actions ----------------------------------------------------------------------------------------


def test_distances_on_the_earth():
    greenwich, quarter, pole = (51.4779, 0.0), (0.0, 90.0), (90.0, 0.0)
    one, other = (
        torch.tensor([greenwich, (0.0, 0.0), (0.0, 0.0), (10.0, 179.9)]),
        torch.tensor([greenwich, quarter, pole, (10.0, -179.9)]),
    )
    found = great_circle_km(one, other)
    assert found[:3].tolist() == pytest.approx([0, 6371.0088 * math.pi / 2, 6371.0088 * math.pi / 2])
    assert float(found[3]) == pytest.approx(21.9, abs=0.1)  # across the date line
    paris_to_london = great_circle_km(torch.tensor([[48.8566, 2.3522]]), torch.tensor([[51.5074, -0.1278]]))
    assert float(paris_to_london) == pytest.approx(343.6, abs=0.5)
    assert shares_within_km(torch.tensor([0.5, 1.0, 24.0, 800.0])) == {
        1: 0.5,
        25: 0.75,
        200: 0.75,
        750: 0.75,
        2500: 1.0,
    }


ACTIONS = [("cut", "cake"), ("cut", "tyre"), ("wash", "phone")]
CLIPS = [
    *(Clip(0, 1, "a"), Clip(0, 1, "a"), Clip(0, 1, "b")),  # positives of cut cake; hard negatives of cut tyre
    *(Clip(1, 1, "c"), Clip(0, 2, "d"), Clip(0, 0, "e"), Clip(1, 3, "f")),
]


def test_rare_actions_by_hand():
    scores = torch.zeros(7, 3)
    scores[:, 0] = torch.tensor([0.9, 0.5, 0.8, 0.85, 0.7, 0.6, 0.99])  # the last does not count for cut cake
    scores[:, 1] = torch.tensor([0.9, 0.8, 0.7, 0.95, 0.0, 0.0, 0.1])
    # cut cake: 0.9 right (a half), 0.85 hard (1), 0.8 right (1), 0.7 hard, 0.6 negative, 0.5 right (a half)
    cake = (0.5 * (0.5 / 0.5) + 1 * (1.5 / 2.5) + 0.5 * (2 / 5)) / 2
    assert mwap(scores, CLIPS, ACTIONS) == pytest.approx((cake + 1) / 2)  # wash phone has no positive
    with pytest.raises(DataError, match="must show an action"):
        mwap(scores[4:6], CLIPS[4:6], ACTIONS)


def test_one_clip_a_video_is_the_same_where_each_video_has_one():
    scores = torch.arange(21.0).view(7, 3).sin()
    apart = [Clip(clip.action, clip.kind, str(number)) for number, clip in enumerate(CLIPS)]
    assert sampled_mwap(scores, apart, ACTIONS) == pytest.approx(mwap(scores, apart, ACTIONS))
    assert sampled_mwap(scores, CLIPS, ACTIONS) == sampled_mwap(scores, CLIPS, ACTIONS)
    assert sampled_mwap(scores, CLIPS, ACTIONS) != sampled_mwap(scores, CLIPS, ACTIONS, seed=1)


# --- intervals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "count"), [(0, 10), (10, 10), (1, 10), (5, 10), (271, 359), (25_000, 50_000)])
def test_exact_intervals_leave_a_tail_on_each_side(right: int, count: int):
    from scipy.stats import beta

    low, high = clopper_pearson(right, count)
    assert low == pytest.approx(beta.ppf(0.0025, right, count - right + 1) if right else 0.0, abs=1e-9)
    assert high == pytest.approx(beta.ppf(0.9975, right + 1, count - right) if right < count else 1.0, abs=1e-9)
    assert low <= wilson(right / count, count)[0] + 1e-12 and high >= wilson(right / count, count)[1] - 1e-12


def test_a_bootstrap_covers_what_it_should():
    values = torch.arange(400.0)
    low, high = bootstrap(lambda numbers: float(values[numbers].mean()), 400)
    error = float(values.std()) / 20
    assert low == pytest.approx(199.5 - 1.96 * error, abs=error / 3)
    assert high == pytest.approx(199.5 + 1.96 * error, abs=error / 3)
    assert bootstrap(lambda numbers: float(values[numbers].mean()), 400) == (low, high)
    assert all(map(math.isnan, bootstrap(lambda _: float("nan"), 3)))


def test_a_measured_row_names_its_interval():
    predicted, labels = torch.tensor([0, 1] * 50), torch.tensor([0, 0] * 50)
    row = measured_row(
        "mean_per_class", lambda i: mean_per_class(predicted[i], labels[i]), 100, task="t", model="m", data="d"
    )
    assert row.value == 0.5 and row.interval == "bootstrap, 95 %" and row.count == 100
    assert row.low is not None and row.high is not None and 0.35 < row.low < 0.5 < row.high < 0.65


def test_what_has_no_value_is_no_row():
    with pytest.raises(DataError, match=r"The pictures for m must have a value of it\. Got none"):
        measured_row("m", lambda _: float("nan"), 4, task="t", model="m", data="d")
