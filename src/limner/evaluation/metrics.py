"""Metrics: pure functions of scores and labels, and the row that each number becomes.

A class is a column of `scores`; labels are int64. Where a metric takes the best score, the first of equal ones wins, as
in an arg-max; where it puts images in an order, those of equal scores count together.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from limner.embed import require_finite
from limner.errors import DataError
from limner.evaluation.intervals import BOOTSTRAP, WILSON, bootstrap, wilson
from limner.seeds import seed_for

ROWS = 1024
"""Queries whose scores are put in order together, for memory's sake."""


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
    protocol: str = ""
    """How it was measured: zero-shot, linear-probe or retrieval."""
    prompts: str = ""
    """The fingerprint of the prompts of zero-shot classification."""
    train: str = ""
    """The fingerprint of the pictures that a linear probe was fitted to."""
    setting: str = ""
    """What else the number depends on, in words: the features that a probe stands on, and its strength."""
    seconds: float = field(default=0.0, compare=False)
    """How long the protocol took on this task, with embedding."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of each trial of the rows whose metric begins with `metric`, so that two models can be compared."""

    metric: str
    keys: list[str]
    """What each trial is known by."""
    ranks: list[int]
    """How many wrong answers came before the right one."""
    labels: list[int] = field(default_factory=list)
    """The right classes, where there are classes."""


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

    A stable sort of all scores would do, but takes several times as long. Raises `ModelError` for scores that are not
    finite.
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


def share_row(metric: str, rank: Int[Tensor, " queries"], k: int, **about: Any) -> Row:
    """The share of `rank` below `k` as a row; `about` are its task, model and data."""
    value = share_within(rank, k)
    low, high = wilson(value, len(rank))
    return Row(metric=metric, value=value, low=low, high=high, count=len(rank), **about)


def measured_row(metric: str, measure: Callable[[Int[Tensor, " images"]], float], count: int, **about: Any) -> Row:
    """What `measure` gives on all of `count` images as a row, with its bootstrap interval.

    Raises `DataError` where it has no value (NaN).
    """
    value = measure(torch.arange(count))
    if math.isnan(value):
        raise DataError(
            f"The pictures for {metric}",
            must="have a value of it",
            got="none: there are pictures of one kind alone, or of none",
            then="Give pictures of each class.",
        )
    low, high = bootstrap(measure, count)
    if math.isnan(low):
        return Row(metric=metric, value=value, low=None, high=None, interval=None, count=count, **about)
    if about.get("unit", "share") == "share":
        low, high = max(0.0, low), min(1.0, high)
    return Row(metric=metric, value=value, low=low, high=high, interval=BOOTSTRAP, count=count, **about)


# --- classes ---------------------------------------------------------------------------------------------------------


def accuracy(predicted: Int[Tensor, " images"], labels: Int[Tensor, " images"]) -> float:
    """The share of images that are named right."""
    return float((predicted == labels).double().mean())


def mean_per_class(predicted: Int[Tensor, " images"], labels: Int[Tensor, " images"]) -> float:
    """The mean, over the classes that there are, of the share of their images that are named right."""
    classes = int(labels.max()) + 1
    right, there = labels[predicted == labels].bincount(minlength=classes), labels.bincount(minlength=classes)
    return float((right[there > 0] / there[there > 0].double()).mean())


def macro_f1(predicted: Int[Tensor, " images"], labels: Int[Tensor, " images"]) -> float:
    """The mean of F1, 2 right / (predicted + there), over the classes that there are or that were predicted."""
    classes = int(torch.cat([predicted, labels]).max()) + 1
    right = labels[predicted == labels].bincount(minlength=classes)
    both = predicted.bincount(minlength=classes) + labels.bincount(minlength=classes)
    return float((2 * right[both > 0] / both[both > 0].double()).mean())


def mean_of_top1_and_top5(rank: Int[Tensor, " images"]) -> float:
    """The mean of top-1 and top-5 accuracy, which Kinetics-700 is measured by; `rank` as `ranks_of_right` gives it."""
    return (share_within(rank, 1) + share_within(rank, 5)) / 2


def worst_group(right: Bool[Tensor, " images"], groups: Int[Tensor, " images"]) -> float:
    """The accuracy in the group where it is lowest."""
    return min(float(right[groups == group].double().mean()) for group in groups.unique())


def calibration(
    confidence: Float[Tensor, " images"], right: Bool[Tensor, " images"], bins: int = 15
) -> tuple[float, list[tuple[float, float, int]]]:
    """(the expected calibration error, (mean confidence, accuracy, images) of each of `bins` equal bins that has any).

    The error is the mean over images of how far both are apart in their bin (Guo et al. 2017, arXiv 1706.04599); a bin
    takes its upper end in, the first one 0 as well.
    """
    require_finite("The confidences", confidence)
    place = (confidence.double() * bins).ceil().long().clamp(1, bins) - 1
    counts = place.bincount(minlength=bins)
    sure, rights = (place.bincount(values.double(), minlength=bins) for values in (confidence, right))
    error = float((sure - rights).abs().sum()) / len(confidence)
    rows = zip(sure.tolist(), rights.tolist(), counts.tolist(), strict=True)
    return error, [(one / count, share / count, count) for one, share, count in rows if count]


# --- orders of images ------------------------------------------------------------------------------------------------


def eleven_point_map(scores: Float[Tensor, "images classes"], right: Bool[Tensor, "images classes"]) -> float:
    """Mean average precision by the 11-point rule of PASCAL VOC 2007: for each class, the mean over recalls of 0, 0.1,
    ..., 1 of the best precision at that recall or a higher one; then the mean over the classes that there are.

    `scores` are probabilities over the classes: without the softmax the images of a class are in another order.
    """
    require_finite("The scores", scores)
    columns = zip(scores.T.double(), right.T, strict=True)
    found = [_eleven_points(column, is_right) for column, is_right in columns if is_right.any()]
    return float(torch.stack(found).mean()) if found else float("nan")


def _eleven_points(scores: Tensor, right: Tensor) -> Tensor:
    precision, recall = _precision_and_recall(scores, right, torch.ones_like(scores))
    points = torch.arange(11, dtype=torch.float64) / 10
    reached = recall[None] >= points[:, None] - 1e-12
    return torch.where(reached, precision[None], 0.0).max(dim=1).values.mean()


def average_precision(
    scores: Float[Tensor, " images"], right: Bool[Tensor, " images"], weights: Float[Tensor, " images"] | None = None
) -> float:
    """The precision at each new recall, weighted by how much recall it adds; images may count with `weights`."""
    require_finite("The scores", scores)
    given = torch.ones_like(scores) if weights is None else weights
    precision, recall = _precision_and_recall(scores.double(), right, given.double())
    return float((precision * recall.diff(prepend=recall.new_zeros(1))).sum())


def _precision_and_recall(scores: Tensor, right: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Both after each group of equal scores, the highest first."""
    order = scores.argsort(descending=True, stable=True)
    scores, weights = scores[order], weights[order]
    found = (weights * right[order]).cumsum(dim=0)
    ends = torch.cat([scores.diff() != 0, torch.ones(1, dtype=torch.bool)])
    return (found / weights.cumsum(dim=0))[ends], (found / found[-1])[ends]


def roc_auc(scores: Float[Tensor, " images"], positive: Bool[Tensor, " images"]) -> float:
    """The chance that an image of the class has a higher score than another one, equal scores being half of it.

    NaN where there is only one kind.
    """
    require_finite("The scores", scores)
    values, place = scores.double().unique(return_inverse=True)
    of_class = place[positive].bincount(minlength=len(values)).double()
    of_others = place[~positive].bincount(minlength=len(values)).double()
    before = of_others.cumsum(dim=0) - of_others / 2
    return float((of_class * before).sum() / (of_class.sum() * of_others.sum()))


# --- places, and rare actions ----------------------------------------------------------------------------------------

EARTH_KM = 6371.0088
"""The mean radius of the Earth (IUGG)."""
DISTANCES_KM = (1, 25, 200, 750, 2500)
"""Street, city, region, country, continent: within them a place counts as found (IM2GPS)."""


def great_circle_km(one: Float[Tensor, "places 2"], other: Float[Tensor, "places 2"]) -> Float[Tensor, " places"]:
    """The distances in km between places given as latitude and longitude in degrees (haversine formula)."""
    (latitude, longitude), (latitude_2, longitude_2) = (x.double().deg2rad().T for x in (one, other))
    half = ((latitude_2 - latitude) / 2).sin() ** 2
    half = half + latitude.cos() * latitude_2.cos() * ((longitude_2 - longitude) / 2).sin() ** 2
    return 2 * EARTH_KM * half.clamp(0, 1).sqrt().asin()


def shares_within_km(distances: Float[Tensor, " places"]) -> dict[int, float]:
    """The share of places that were found to within each of `DISTANCES_KM`."""
    require_finite("The distances", distances)
    return {km: float((distances <= km).double().mean()) for km in DISTANCES_KM}


SAMPLES = 100
"""How often RareAct's second metric draws its clips."""


@dataclass(frozen=True)
class Clip:
    """What RareAct says of a clip: it shows an action (kind 1), its verb or noun alone (2 to 4), or neither (0)."""

    action: int
    kind: int
    video: str


def mwap(scores: Float[Tensor, "clips actions"], clips: Sequence[Clip], actions: Sequence[tuple[str, str]]) -> float:
    """Mean weighted average precision of RareAct (Miech et al. 2020, arXiv 2008.01018); `actions` are (verb, noun).

    A clip of an action is a hard negative of the actions that share its verb or its noun, and a negative of the others;
    one of another kind counts for its own action alone. Within the positives, the hard negatives and the negatives of
    an action a clip weighs 1 / the number of its video's clips there. Actions without a positive are left out.
    """

    def weigh(group: Sequence[int]) -> dict[int, float]:
        of_video = Counter(clips[number].video for number in group)
        return {number: 1 / of_video[clips[number].video] for number in group}

    return _mean_over_actions(scores, clips, actions, weigh)


def sampled_mwap(
    scores: Float[Tensor, "clips actions"], clips: Sequence[Clip], actions: Sequence[tuple[str, str]], *, seed: int = 0
) -> float:
    """The twin of `mwap` that takes one clip of each video within each group at random; the mean of `SAMPLES` times."""
    generator = torch.Generator().manual_seed(seed_for("clips", seed))

    def weigh(group: Sequence[int]) -> dict[int, float]:
        return _one_a_video(clips, group, generator)

    return sum(_mean_over_actions(scores, clips, actions, weigh) for _ in range(SAMPLES)) / SAMPLES


def _mean_over_actions(
    scores: Tensor,
    clips: Sequence[Clip],
    actions: Sequence[tuple[str, str]],
    weigh: Callable[[Sequence[int]], dict[int, float]],
) -> float:
    require_finite("The scores", scores)
    found = list[float]()
    for action in range(len(actions)):
        groups = _groups(clips, actions, action)
        if not groups[0]:
            continue
        weights = {clip: weight for group in groups for clip, weight in weigh(group).items()}
        there = sorted(weights)
        right = torch.tensor([clip in set(groups[0]) for clip in there])
        own = torch.tensor([weights[clip] for clip in there], dtype=torch.float64)
        found.append(average_precision(scores[there, action], right, own))
    if not found:
        raise DataError("The clips", must="show an action of the list", got="none", then="Check their annotations.")
    return sum(found) / len(found)


def _groups(clips: Sequence[Clip], actions: Sequence[tuple[str, str]], action: int) -> tuple[list[int], ...]:
    """The positives, hard negatives and negatives of an action, by their numbers."""
    groups: tuple[list[int], list[int], list[int]] = ([], [], [])
    verb, noun = actions[action]
    for number, clip in enumerate(clips):
        if clip.action == action:
            groups[{1: 0, 0: 2}.get(clip.kind, 1)].append(number)
        elif clip.kind == 1:
            other_verb, other_noun = actions[clip.action]
            groups[1 if verb == other_verb or noun == other_noun else 2].append(number)
    return groups


def _one_a_video(clips: Sequence[Clip], group: Sequence[int], generator: torch.Generator) -> dict[int, float]:
    order = torch.randperm(len(group), generator=generator).tolist()
    chosen = {clips[group[place]].video: group[place] for place in order}
    return dict.fromkeys(chosen.values(), 1.0)
