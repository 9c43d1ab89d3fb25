"""Why two results differ: `limner eval explain A B`.

```
result A ─> Conditions ┐  the conditions in which they differ
result B ─> Conditions ┴─> the accuracy under A's and B's condition, for every choice of these
                       ─> what each condition is worth: its effect, averaged over the orders in which they can change
```

The average over all orders is Shapley's value (1953): the shares of the causes add up to the whole difference, and a
cause that changes nothing has none. What is left between the values that were reported and those that were measured
again is said as well: it is another model, other pictures, or something that is no condition here.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import cattrs
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from limner.config import DEFAULT_TEMPLATES
from limner.embed import images_resized_by
from limner.errors import ConfigError, DataError
from limner.evaluation.classified import ranks_of_labels
from limner.evaluation.results import Evaluation, read_evaluations
from limner.evaluation.tasks import Task, read_task
from limner.evaluation.zero_shot import ZeroShotClassifier
from limner.files import read_json
from limner.model.clip import CLIP
from limner.progress import progress, say
from limner.run import RunDirectory
from limner.store.store import load

Interpolation = Literal["bicubic", "bilinear", "nearest"]
Ties = Literal["first", "last", "wrong"]
FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What a zero-shot accuracy depends on, beside the model."""

    data: str
    """Where the pictures are: the split."""
    class_names: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """(id, its names) of each class; a wrong order gives classes the names of others. Empty: as the data says."""
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    prompts: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """(id, its prompts) of each class, where they were given in place of templates."""
    interpolation: Interpolation = "bicubic"
    """How pictures are resized."""
    ties: Ties = "first"
    """Which of equal classes wins; "wrong": none of them."""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    """What pixels are normalised by; empty: as the model says."""
    precision: Literal["fp32", "bf16"] = "fp32"

    def parts(self) -> dict[str, Any]:
        """The conditions by the names that people know them by."""
        told = {one.name: getattr(self, one.name) for one in fields(self)}
        joined = {title: tuple(told.pop(name) for name in names) for title, names in JOINED.items()}
        return {TITLES.get(name, name): value for name, value in told.items()} | joined

    def with_parts(self, parts: Mapping[str, Any]) -> "Conditions":
        """These conditions with others in place of some."""
        names = {title: name for name, title in TITLES.items()}
        told = {names.get(title, title): value for title, value in parts.items() if title not in JOINED}
        for title, several in JOINED.items():
            told |= zip(several, parts.get(title, [getattr(self, one) for one in several]), strict=True)
        return replace(self, **told)


TITLES = {"data": "split", "class_names": "class order", "ties": "tie rule"}
JOINED = {"normalisation": ("mean", "std"), "template ensemble": ("templates", "prompts")}
"""What people call the conditions; some are one to them."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """A reported accuracy, and how it came about."""

    model: str
    value: float
    conditions: Conditions
    fingerprints: tuple[str, str] = ("", "")
    """Of the model and the data, where they are known."""


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What makes two results differ."""

    first: float
    second: float
    """The values that were reported."""
    difference: float
    """The second less the first."""
    causes: dict[str, float]
    """How much of it each condition in which they differ is worth, the largest first."""
    measured_first: float
    measured_second: float
    """The values under the same conditions, measured again."""
    unexplained: float
    """What is left of the difference."""


def explain(first: Path, second: Path, *, task: str | None = None) -> Explanation:
    """What makes two zero-shot accuracies differ: of runs, folders of results, or JSON files of a result.

    Raises `ConfigError` for what holds no such result, and `DataError` where the pictures are not at hand.
    """
    ours = read_result(first, task)
    theirs = read_result(second, task, like=ours)
    before, after = ours.conditions.parts(), theirs.conditions.parts()
    differing = [name for name in before if before[name] != after[name]]
    for result in (ours, theirs):
        _say_changes(result)
    if ours.model != theirs.model:
        say(f"The models differ: {ours.model} and {theirs.model}. The conditions are measured with the first.")
    measure = Measure(ours.model)

    @cache
    def value(changed: frozenset[str]) -> float:
        return measure(ours.conditions.with_parts({name: after[name] for name in changed}))

    sets = [frozenset(some) for count in range(len(differing) + 1) for some in itertools.combinations(differing, count)]
    with progress("Measuring again", len(sets)) as advance:
        for done, some in enumerate(sets, start=1):
            value(some)
            advance(done)
    causes = {name: shapley(name, differing, value) for name in differing}
    measured = value(frozenset()), value(frozenset(differing))
    difference = theirs.value - ours.value
    return Explanation(
        first=ours.value,
        second=theirs.value,
        difference=difference,
        causes=dict(sorted(causes.items(), key=lambda cause: -abs(cause[1]))),
        measured_first=measured[0],
        measured_second=measured[1],
        unexplained=difference - (measured[1] - measured[0]),
    )


def _say_changes(result: Result) -> None:
    """Say where the model or the pictures of a result are others now."""
    model, data = result.fingerprints
    if model and Path(result.model).is_dir() and result.conditions.precision == "fp32":
        now = load(result.model).fingerprint
        if now != model:
            say(f"The model {result.model} is another one than the one that was measured.")
    if data and read_task(result.conditions.data).test.source.fingerprint != data:
        say(f"The pictures {result.conditions.data} are others than those that were measured.")


def shapley(name: str, names: list[str], value: Callable[[frozenset[str]], float]) -> float:
    """What `name` adds to a value, averaged over all orders in which `names` can come."""
    others, total = [one for one in names if one != name], 0.0
    for count in range(len(others) + 1):
        weight = math.factorial(count) * math.factorial(len(others) - count) / math.factorial(len(names))
        for some in itertools.combinations(others, count):
            total += weight * (value(frozenset({*some, name})) - value(frozenset(some)))
    return total


# --- results ---------------------------------------------------------------------------------------------------------


def read_result(path: Path, task: str | None, *, like: Result | None = None) -> Result:
    """The zero-shot accuracy at a path: a run, a folder of results, or a JSON file; of a file, what it does not say is
    as in `like`."""
    run = RunDirectory(path)
    folder = run.evaluations if run.evaluations.is_dir() else path
    if folder.is_dir():
        found = [one for one in read_evaluations(folder) if any(row.metric == METRIC for row in one.rows)]
        found = [one for one in found if task in (None, one.task)]
        if len(found) != 1:
            raise ConfigError(
                f"The results {path}",
                must="hold one zero-shot accuracy" + (f" of {task}" if task else ""),
                got=", ".join(sorted({one.task for one in found})) or "none",
                then="Name it with --task." if found else "Write one: limner eval MODEL --data DATA --out FOLDER.",
            )
        return _result_of(found[0], str(run.model) if run.is_finished else "")
    told = read_json(path)
    if not isinstance(told, dict) or not isinstance(told.get("value"), int | float):
        raise ConfigError(
            f"The result {path}",
            must="hold a value, and what differs of model, data, class_names, templates, interpolation, ties, mean, "
            "std, precision",
            got=str(told)[:60],
            then='For example: {"value": 0.55, "interpolation": "bilinear"}.',
        )
    if like is None and not {"model", "data"} <= told.keys():
        raise ConfigError(f"The result {path}", must="name its model and data", got="none", then="Add their paths.")
    names = told.pop("class_names", None)
    if isinstance(names, list):
        data = told.get("data") or (like.conditions.data if like else "")
        ids = read_task(data).classes.ids
        if len(names) != len(ids):
            raise ConfigError(
                f"The class_names of {path}",
                must=f"be one for each of the {len(ids)} classes of {data}",
                got=len(names),
                then="Write them in the order of the labels.",
            )
        names = dict(zip(ids, names, strict=True))
    base = like.conditions if like else Conditions(data=str(told["data"]))
    about = {key: value for key, value in told.items() if key in {one.name for one in fields(Conditions)}}
    unknown = sorted(told.keys() - about.keys() - {"value", "model"})
    if unknown:
        raise ConfigError(
            f"The result {path}", must="say nothing else", got=", ".join(unknown), then="Take it away, or rename it."
        )
    try:
        if names is not None:
            about["class_names"] = tuple(
                (str(one), (name,) if isinstance(name, str) else tuple(map(str, name))) for one, name in names.items()
            )
        whole = {one.name: getattr(base, one.name) for one in fields(Conditions)} | about
        conditions = cattrs.structure(whole, Conditions)
        if any(len(values) not in (0, 3) for values in (conditions.mean, conditions.std)):
            raise ValueError("mean and std are three numbers each")
    except (cattrs.BaseValidationError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"The result {path}",
            must="say its conditions as limner eval explain --help does",
            got=error,
            then="Correct it.",
        ) from error
    return Result(
        model=told.get("model") or (like.model if like else ""), value=float(told["value"]), conditions=conditions
    )


METRIC = "zero_shot.top1"


def _result_of(evaluation: Evaluation, model: str) -> Result:
    row = next(row for row in evaluation.rows if row.metric == METRIC)
    if evaluation.kept_back:
        raise DataError(
            f"The result on {evaluation.task}",
            must="be of pictures that can be read again",
            got="the pairs that a run kept back from training",
            then="Measure both on a folder: limner eval MODEL --data DATA --out FOLDER.",
        )
    names = evaluation.names or [[name] for name in evaluation.class_names]
    return Result(
        model=evaluation.model or model,
        value=row.value,
        conditions=Conditions(
            data=evaluation.data,
            class_names=_by_id(evaluation.class_ids, names),
            templates=tuple(evaluation.templates),
            prompts=_by_id(evaluation.class_ids, evaluation.prompts) if evaluation.prompts else (),
            precision="bf16" if evaluation.precision == "bf16" else "fp32",
        ),
        fingerprints=(row.model, row.data),
    )


def _by_id(ids: Sequence[str], texts: Sequence[Sequence[str]]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple(sorted((one, tuple(several)) for one, several in zip(ids, texts, strict=True)))


# --- measured again --------------------------------------------------------------------------------------------------


class Measure:
    """The accuracy of a model under conditions; what was read or encoded once is not read again."""

    def __init__(self, model: str) -> None:
        self.path = model
        self._models: dict[str, CLIP] = {}
        self._tasks: dict[str, Task] = {}
        self._features: dict[Any, tuple[Tensor, list[int]]] = {}

    def __call__(self, conditions: Conditions) -> float:
        """Top-1 accuracy under `conditions`."""
        model, task = self.model(conditions), self.task(conditions.data)
        names = dict(conditions.class_names or zip(task.classes.ids, task.classes.names, strict=True))
        missing = [one for one in task.classes.ids if one not in names]
        if missing:
            raise DataError(
                f"The classes of {conditions.data}",
                must="be those of the other result",
                got=f"others: {', '.join(missing[:5])}",
                then="Compare results on the same classes.",
            )
        features, labels = self.features(conditions)
        own, given = [names[one] for one in task.classes.ids], dict(conditions.prompts)
        prompts = [given[one] for one in task.classes.ids] if given else []
        classifier = ZeroShotClassifier(model, own, list(conditions.templates), prompts=prompts)
        scores = classifier.scores(features).cpu()
        return accuracy_by(conditions.ties, scores, torch.tensor(labels))

    def model(self, conditions: Conditions) -> CLIP:
        """The model in the precision of `conditions`."""
        if conditions.precision not in self._models:
            self._models[conditions.precision] = load(self.path, precision=conditions.precision).eval()
        return self._models[conditions.precision]

    def task(self, data: str) -> Task:
        """The task at a place."""
        if data not in self._tasks:
            self._tasks[data] = read_task(data)
        return self._tasks[data]

    def features(self, conditions: Conditions) -> tuple[Float[Tensor, "images embed"], list[int]]:
        """(features, labels) of the pictures with a label."""
        model, task = self.model(conditions), self.task(conditions.data)
        known = conditions.data, conditions.interpolation, conditions.mean, conditions.std, conditions.precision
        if known not in self._features:
            with normalised_by(model, conditions):
                embedded = images_resized_by(model, task.test.source, FILTERS[conditions.interpolation])
            labels, features = [task.test.labels[index] for index in embedded.indices], embedded.features
            there = [place for place, label in enumerate(labels) if isinstance(label, int)]
            single = [label for label in labels if isinstance(label, int)]
            self._features[known] = features[there], single
        return self._features[known]


@contextmanager
def normalised_by(model: CLIP, conditions: Conditions) -> Iterator[None]:
    """While it lasts, the model normalises pixels as `conditions` say."""
    kept = model._mean, model._std
    try:
        for name, values in (("_mean", conditions.mean), ("_std", conditions.std)):
            if values:
                old = getattr(model, name)
                setattr(model, name, torch.tensor(values, dtype=old.dtype, device=old.device).view_as(old))
        yield
    finally:
        model._mean, model._std = kept


def accuracy_by(ties: Ties, scores: Float[Tensor, "images classes"], labels: Int[Tensor, " images"]) -> float:
    """Top-1 accuracy, by the rule of which of equal classes wins."""
    if ties == "first":
        return float((ranks_of_labels(scores, labels) == 0).double().mean())
    if ties == "last":
        classes = scores.shape[1]
        return float((ranks_of_labels(scores.flip(1), classes - 1 - labels) == 0).double().mean())
    own = scores.gather(1, labels[:, None])
    return float(((scores >= own).sum(dim=1) == 1).double().mean())
