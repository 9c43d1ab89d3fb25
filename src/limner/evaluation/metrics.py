"""Metrics: pure functions of score matrices, and the interval that each number comes with."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from limner.embed import require_finite

ROWS = 1024
"""Queries whose scores are put in order together, for memory's sake."""
WILSON = "Wilson, 95 %"
"""The kind of interval of a share of independent trials."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number of an evaluation, counted over `count` trials."""

    task: str
    metric: str
    value: float
    unit: str = "share"
    """What the value is: share (of the trials, in [0, 1]), or whatever the metric measures in."""
    low: float | None
    high: float | None
    """The interval's ends; None: there is no interval."""
    interval: str | None = WILSON
    """The interval's kind."""
    count: int
    model: str
    """The model fingerprint."""
    data: str
    """The data fingerprint."""


def describe_row(row: Row) -> tuple[str, str]:
    """(value, interval) for people: shares in per cent, other units as numbers."""

    def number(value: float) -> str:
        return f"{value:.1%}" if row.unit == "share" else f"{value:.4g}"

    value = number(row.value) if row.unit in ("share", "") else f"{number(row.value)} {row.unit}"
    return value, "" if row.low is None or row.high is None else f"{number(row.low)} - {number(row.high)}"


def ranks_of_right(
    scores: Float[Tensor, "queries candidates"], right: Bool[Tensor, "queries candidates"]
) -> Int[Tensor, " queries"]:
    """How many wrong candidates come before the best right one; 0 means found first.

    Of equal scores the first candidate wins, as in an arg-max: equal scores for everything are worth as much as chance.
    Raises `ModelError` for scores that are not finite.
    """
    require_finite("The scores", scores)
    best, place = scores.masked_fill(~right, float("-inf")).max(dim=1, keepdim=True)
    is_before = torch.arange(scores.shape[1], device=scores.device) < place
    return (((scores > best) | ((scores == best) & is_before)) & ~right).sum(dim=1)


def best_first(scores: Float[Tensor, "queries candidates"], top: int) -> Int[Tensor, "queries top"]:
    """The candidates with the highest scores, of equal ones the first; all of them if there are fewer than `top`.

    A stable sort would do, at eighty times the time. Raises `ModelError` for scores that are not finite.
    """
    require_finite("The scores", scores)
    top = min(top, scores.shape[1])
    return torch.cat([_best_first(chunk, top) for chunk in scores.split(ROWS)]) if top else scores.long()


def _best_first(scores: Float[Tensor, "queries candidates"], top: int) -> Int[Tensor, "queries top"]:
    last = scores.topk(top, dim=1).values[:, -1:]
    better, equal = scores > last, scores == last
    is_in = better | (equal & (equal.cumsum(dim=1) <= top - better.sum(dim=1, keepdim=True)))
    found = is_in.nonzero()[:, 1].unflatten(0, (len(scores), top))
    return found.gather(1, scores.gather(1, found).argsort(dim=1, descending=True, stable=True))


def share_within(rank: Int[Tensor, " queries"], k: int) -> float:
    """The share of queries whose right candidate is among the first `k`: top-k accuracy, recall@k."""
    return (rank < k).double().mean().item()


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share observed over `count` independent trials (Wilson 1927)."""
    z = 1.959963984540054
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def share_row(metric: str, rank: Int[Tensor, " queries"], k: int, **about: Any) -> Row:
    """The share of `rank` below `k` as a row; `about` are its task, model and data."""
    value = share_within(rank, k)
    low, high = wilson(value, len(rank))
    return Row(metric=metric, value=value, low=low, high=high, count=len(rank), **about)
