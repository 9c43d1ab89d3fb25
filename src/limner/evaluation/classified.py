"""Scores of classes to rows: what zero-shot classification and the linear probe share."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from limner.errors import DataError
from limner.evaluation.metrics import (
    Outcome,
    Row,
    average_precision,
    eleven_point_map,
    mean_of_top1_and_top5,
    mean_per_class,
    measured_row,
    ranks_of_right,
    roc_auc,
    share_row,
)
from limner.evaluation.probe import best_accuracy

TOP = 5
"""Of the two accuracies the wider one."""


def ranks_of_labels(scores: Float[Tensor, "images classes"], labels: Int[Tensor, " images"]) -> Int[Tensor, " images"]:
    """How many classes come before the right one; 0 means that it is named."""
    return ranks_of_right(scores, torch.arange(scores.shape[1]) == labels[:, None])


def _mean_per_class(scores: Tensor, labels: Tensor) -> float:
    return mean_per_class(scores.argmax(dim=1), labels)


def _mean_of_two(scores: Tensor, labels: Tensor) -> float:
    return mean_of_top1_and_top5(ranks_of_labels(scores, labels))


def _roc_auc(scores: Tensor, labels: Tensor) -> float:
    if scores.shape[1] != 2:
        raise DataError(
            "The classes of a task that is measured by ROC AUC",
            must="be two",
            got=scores.shape[1],
            then="Take another task.",
        )
    return roc_auc(scores[:, 1] - scores[:, 0], labels == 1)


METRICS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "top1": best_accuracy,
    "mean_per_class": _mean_per_class,
    "mean_of_top1_and_top5": _mean_of_two,
    "roc_auc": _roc_auc,
}
"""What a task of one class for each image may be measured by: of scores [images classes] and labels [images]."""


def class_rows(
    prefix: str,
    scores: Float[Tensor, "images classes"],
    labels: Int[Tensor, " images"],
    keys: Sequence[str],
    metric: str,
    **about: Any,
) -> tuple[list[Row], Outcome]:
    """Top-1 and top-5 accuracy, the mean over classes and the task's own `metric`, of images with one class each.

    A tie goes to the first of the equal classes, as an arg-max has it.
    """
    rank, named = ranks_of_labels(scores, labels), scores.argmax(dim=1)
    rows = [share_row(f"{prefix}.top{k}", rank, k, **about) for k in (1, TOP)]
    rows.append(
        measured_row(
            f"{prefix}.mean_per_class", lambda some: mean_per_class(named[some], labels[some]), len(labels), **about
        )
    )
    if metric == "mean_of_top1_and_top5":
        own = measured_row(f"{prefix}.{metric}", lambda some: mean_of_top1_and_top5(rank[some]), len(rank), **about)
        rows.append(own)
    elif metric not in ("top1", "mean_per_class"):
        measure = METRICS[metric]
        own = measured_row(f"{prefix}.{metric}", lambda some: measure(scores[some], labels[some]), len(labels), **about)
        rows.append(own)
    return rows, Outcome(metric=prefix, keys=list(keys), ranks=rank.tolist(), labels=labels.tolist())


def multi_label_rows(
    prefix: str, scores: Float[Tensor, "images classes"], right: Bool[Tensor, "images classes"], **about: Any
) -> list[Row]:
    """Mean average precision, by VOC 2007's 11 points and over all recalls, of images that may have several classes.

    Of zero-shot classification `scores` are probabilities: after the softmax a class's images are in another order.
    """

    def mean_average_precision(some: Int[Tensor, " some"]) -> float:
        columns = [(column, own) for column, own in zip(scores[some].T, right[some].T, strict=True) if own.any()]
        found = [average_precision(column, own) for column, own in columns]
        return sum(found) / len(found) if found else float("nan")

    return [
        measured_row(
            f"{prefix}.eleven_point_map",
            lambda some: eleven_point_map(scores[some], right[some]),
            len(scores),
            **about,
        ),
        measured_row(f"{prefix}.mean_average_precision", mean_average_precision, len(scores), **about),
    ]


def right_classes(labels: Sequence[Sequence[int]], classes: int) -> Bool[Tensor, "images classes"]:
    """Which classes each image has."""
    right = torch.zeros(len(labels), classes, dtype=torch.bool)
    for row, own in zip(right, labels, strict=True):
        row[list(own)] = True
    return right
