"""Two models on the same pictures: `limner eval compare A B`.

```
results of A and of B ─> the same task, data and protocol ─> the same trials ─> difference, interval, chance
```

A trial is a picture, or a query of retrieval. Both models had the same, so what counts is where they differ: accuracies
and recalls are compared by McNemar's test, the mean over classes by a bootstrap over pictures. The chances of one
metric over several tasks are corrected by Holm's rule.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from limner.errors import ConfigError, DataError
from limner.evaluation.intervals import NORMAL, bootstrap, holm, mcnemar
from limner.evaluation.metrics import Outcome, mean_per_class
from limner.evaluation.results import Evaluation, read_evaluations
from limner.progress import say
from limner.run import RunDirectory

MCNEMAR, PAIRED = "McNemar's exact test", "paired bootstrap"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far two models are apart in one metric on one task."""

    task: str
    metric: str
    first: float
    second: float
    difference: float
    """The second less the first."""
    low: float
    high: float
    """The ends of its 95 % interval, by a bootstrap over the trials."""
    chance: float
    """The chance of a difference as large between models that are equally good, by `test`."""
    corrected: float
    """The same over all tasks of the metric, by Holm's rule."""
    test: str
    count: int
    """Trials that both models had."""


def compare(first: Path, second: Path) -> list[Difference]:
    """The differences between two folders of results, or runs, on what was measured in both.

    Raises `ConfigError` if a folder holds no results and `DataError` if nothing was measured in both.
    """
    ours, theirs = _by_place(first), _by_place(second)
    found = list[Difference]()
    for place, one in ours.items():
        if place in theirs:
            found += _differences(place[0], one, theirs[place])
    alone = sorted({place[0] for place in ours.keys() ^ theirs.keys()})
    if not found:
        raise DataError(
            f"The results {first} and {second}",
            must="be of the same tasks, on the same pictures",
            got=f"none of {', '.join(alone[:5])} in both" if alone else "none",
            then="Measure both models with the same --data, and --out.",
        )
    if alone:
        say(f"Measured in one of them alone, or on other pictures: {', '.join(alone)}.")
    metrics = dict.fromkeys(one.metric for one in found)
    corrected = dict[int, float]()
    for metric in metrics:
        of_metric = [place for place, one in enumerate(found) if one.metric == metric]
        corrected |= zip(of_metric, holm([found[place].chance for place in of_metric]), strict=True)
    return [replace(one, corrected=corrected[place]) for place, one in enumerate(found)]


def _by_place(folder: Path) -> dict[tuple[str, str, str], tuple[Evaluation, Outcome]]:
    """The outcomes in a folder by task, the data's fingerprint, and what was measured."""
    run = RunDirectory(folder)
    place = run.evaluations if run.evaluations.is_dir() else folder
    evaluations = read_evaluations(place) if place.is_dir() else []
    if not evaluations:
        raise ConfigError(
            f"The folder {folder}",
            must="hold results",
            got="none",
            then="Write them: limner eval MODEL --data DATA --out FOLDER.",
        )
    found = dict[tuple[str, str, str], tuple[Evaluation, Outcome]]()
    for evaluation in evaluations:
        for outcome in evaluation.outcomes:
            known = (evaluation.task, evaluation.rows[0].data, outcome.metric)
            if known in found:
                raise ConfigError(
                    f"The results {folder}",
                    must=f"hold one measurement of {outcome.metric} on {evaluation.task}",
                    got="several, of other models or prompts",
                    then="Give a folder of its own to each, by --out.",
                )
            found[known] = (evaluation, outcome)
    return found


def _differences(task: str, ours: tuple[Evaluation, Outcome], theirs: tuple[Evaluation, Outcome]) -> list[Difference]:
    (_, first), (_, second) = ours, theirs
    known = set(second.keys)
    keys = [key for key in first.keys if key in known]
    if not keys:
        raise DataError(
            f"The trials of {task}",
            must="be the same in both results",
            got=f"none of {len(first.keys):,} {first.metric} in both",
            then="Measure both models on the same data.",
        )
    if any(len(set(one.keys)) < len(one.keys) for one in (first, second)):
        raise DataError(
            f"The pictures of {task}", must="have keys of their own", got="some twice", then="Measure them anew."
        )
    places = [{key: place for place, key in enumerate(one.keys)} for one in (first, second)]
    ranks = [
        torch.tensor([one.ranks[of[key]] for key in keys]) for one, of in zip((first, second), places, strict=True)
    ]
    if len(keys) < max(len(first.keys), len(second.keys)):
        say(f"{task}, {first.metric}: {len(keys):,} trials were in both, and are compared.")
    is_retrieval = first.metric.startswith("retrieval")
    measures = [(f"@{k}" if is_retrieval else f".top{k}", k) for k in ((1, 5, 10) if is_retrieval else (1, 5))]
    found = [_of_share(task, f"{first.metric}{name}", ranks[0] < k, ranks[1] < k) for name, k in measures]
    if first.labels:
        labels = torch.tensor([first.labels[places[0][key]] for key in keys])
        found.append(_of_classes(task, f"{first.metric}.mean_per_class", ranks[0] < 1, ranks[1] < 1, labels))
    return found


def _of_share(task: str, metric: str, first: Tensor, second: Tensor) -> Difference:
    change = second.double() - first.double()
    low, high = bootstrap(lambda some: float(change[some].mean()), len(change))
    return Difference(
        task=task,
        metric=metric,
        first=float(first.double().mean()),
        second=float(second.double().mean()),
        difference=float(change.mean()),
        low=low,
        high=high,
        chance=mcnemar(int((first & ~second).sum()), int((second & ~first).sum())),
        corrected=1.0,
        test=MCNEMAR,
        count=len(change),
    )


def _of_classes(task: str, metric: str, first: Tensor, second: Tensor, labels: Tensor) -> Difference:
    """The mean over classes of the share of their pictures that are named right."""

    named = [torch.where(right, labels, -1) for right in (first, second)]  # which wrong class it is makes no difference
    values = [mean_per_class(one, labels) for one in named]

    def change(some: Int[Tensor, " some"]) -> float:
        before, after = (mean_per_class(one[some], labels[some]) for one in named)
        return after - before

    low, high = bootstrap(change, len(labels))
    return Difference(
        task=task,
        metric=metric,
        first=values[0],
        second=values[1],
        difference=values[1] - values[0],
        low=low,
        high=high,
        chance=_by_spread(values[1] - values[0], low, high),
        corrected=1.0,
        test=PAIRED,
        count=len(labels),
    )


def _by_spread(difference: float, low: float, high: float) -> float:
    """The chance of a difference as large or larger, of one that is spread normally over this 95 % interval."""
    deviation = (high - low) / (2 * NORMAL)
    return float(difference == 0) if deviation == 0 else math.erfc(abs(difference) / deviation / math.sqrt(2))
