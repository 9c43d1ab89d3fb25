"""All that can be measured on a task: what `limner eval` runs.

```
Task ─> Bench: features of its splits, embedded once ─> each of PROTOCOLS that the data allows ─> Evaluation ─> Results
```
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from limner.data.pairs import Source, describe, notes
from limner.data.reading import LATE, SLOW, UNREAD
from limner.embed import BATCH, Embedded, embed_images, measuring, stamp_of, together
from limner.errors import ConfigError, DataError, LimnerError, ModelError, StorageError
from limner.evaluation.classes import say_counts
from limner.evaluation.classified import METRICS, class_rows, multi_label_rows, right_classes
from limner.evaluation.intervals import CLOPPER_PEARSON, clopper_pearson
from limner.evaluation.metrics import Outcome, Row
from limner.evaluation.probe import held_out, probe
from limner.evaluation.prompts import with_prompts
from limner.evaluation.registry import Entry, place_in
from limner.evaluation.results import Evaluation, Key, Results, joined, write_evaluation
from limner.evaluation.retrieval import retrieval
from limner.evaluation.tasks import Split, Task, own_task, read_task, task_of, was_trained_on
from limner.evaluation.zero_shot import Prediction, ZeroShotClassifier, classify, fingerprint_of_prompts
from limner.model.clip import CLIP
from limner.progress import say
from limner.run import RunDirectory
from limner.store.store import fingerprint_now, load, unusable_weights

HELD_OUT = 0.2
"""The share of the training pictures of each class that a probe's strength is chosen by, where no split is for that."""
T = TypeVar("T")
ProbeFeatures = Literal["before", "after"]


@dataclass(frozen=True, kw_only=True)
class How:
    """How tasks are measured."""

    protocols: tuple[str, ...] = ()
    """Names in `PROTOCOLS`; empty: all that the data allows."""
    prompts: Path | None = None
    """A file of templates or prompts, in place of those that lie beside the pictures (`read_prompts`)."""
    probe_features: ProbeFeatures = "before"
    """Whether a probe stands on what the projection is given, as in the paper, or on what it gives."""
    keep: Path | None = None
    """The folder for the features of images, and classifiers."""
    group: Any = None
    """The process group whose ranks share the pictures."""
    model: str = ""
    """Where the model is, for whoever measures it again."""
    kept_back: bool = False
    trained_on: bool = False
    """What an `Evaluation` says of the pictures."""


ALL = How()


class Bench:
    """A model and a task, whose pictures are embedded when they are first asked for."""

    def __init__(self, model: CLIP, task: Task, how: How = ALL, *, test: Embedded | None = None) -> None:
        self.model, self.task, self.how = model, task, how
        self._embedded: dict[int, Embedded] = {} if test is None else {id(task.test): test}

    def embedded(self, split: Split, *, hidden: bool = False) -> Embedded:
        """The features of a split, with `hidden` those before the projection as well."""
        known = self._embedded.get(id(split))
        if known is None or (hidden and known.hidden is None):
            hidden = hidden or "linear-probe" in self.due
            known = embed_images(self.model, split.source, keep=self.how.keep, hidden=hidden, group=self.how.group)
            self._embedded[id(split)] = known
        return known

    @cached_property
    def due(self) -> list[str]:
        """The protocols to run: those that were asked for, or all that the data allows.

        Raises `DataError` if the data does not allow one that was asked for, or allows none.
        """
        asked = self.how.protocols or tuple(PROTOCOLS)
        reasons = {name: PROTOCOLS[name].missing(self.task) for name in asked}
        possible = [name for name, reason in reasons.items() if not reason]
        if len(possible) == len(asked) or (possible and not self.how.protocols):
            return possible
        name, reason = next((name, reason) for name, reason in reasons.items() if reason)
        if not self.how.protocols:
            labels = any(label is not None for label in self.task.test.labels)
            count = len(self.task.test.labels)
            raise DataError(
                f"The task {self.task.path}",
                must="have captions, a folder for each class, or labels and a classnames.txt beside it",
                got=f"{count} pictures with labels that have no names" if labels else f"{count} with neither",
                then="Add KEY.txt beside each picture, or use limner classify to name pictures.",
            )
        raise DataError(f"The task {self.task.path}", must=f"allow {name}", got=reason, then=PROTOCOLS[name].remedy)

    def key(self, protocol: str) -> Key:
        """What the measurement by a protocol is known by."""
        about = self.about(protocol)
        is_probe = protocol == "linear-probe"
        splits = (self.task.test, self.task.train, self.task.validation) if is_probe else (self.task.test,)
        return Key(
            task=about["task"],
            protocol=protocol,
            model=about["model"],
            data=about["data"],
            prompts=about["prompts"],
            train=about["train"],
            features=self.how.probe_features if is_probe else "",
            stamp="".join(stamp_of(split.source) for split in splits if split is not None),
        )

    def about(self, protocol: str) -> dict[str, str]:
        """What all rows of a protocol say."""
        is_zero_shot, is_probe = protocol == "zero-shot", protocol == "linear-probe"
        fitted = [split.source.fingerprint for split in (self.task.train, self.task.validation) if split is not None]
        return {
            "task": self.task.name,
            "model": self.fingerprint,
            "data": self.task.test.source.fingerprint,
            "protocol": protocol,
            "prompts": fingerprint_of_prompts(self.task.prompts_of()) if is_zero_shot else "",
            "train": hashlib.sha256(json.dumps(fitted).encode()).hexdigest() if is_probe else "",
        }

    @cached_property
    def fingerprint(self) -> str:
        """The model's, as it is now. Raises `ModelError` for weights that are not finite."""
        if bad := unusable_weights(self.model):
            raise ModelError(
                "The weights of the model to measure",
                must="be finite numbers",
                got=f"NaN or infinity in {', '.join(bad[:3])}",
                then="Take a checkpoint from before.",
            )
        return fingerprint_now(self.model)

    def measure(self, protocol: str) -> Evaluation:
        """What a protocol gives."""
        start, task = time.monotonic(), self.task
        found = PROTOCOLS[protocol].measure(self, self.about(protocol))
        seconds = time.monotonic() - start
        unreadable = Counter(one.reason for one in self.embedded(task.test).unreadable)
        skipped = found.skipped + task.test.source.skipped + unreadable
        is_named = protocol != "retrieval"
        return Evaluation(
            task=task.name,
            data=task.place,
            rows=[replace(row, seconds=seconds, **self._interval(row)) for row in found.rows],
            kept_back=self.how.kept_back,
            trained_on=self.how.trained_on,
            model=self.how.model,
            precision="bf16" if self.model.image.dtype == torch.bfloat16 else "fp32",
            class_ids=list(task.classes.ids) if is_named else [],
            class_names=task.classes.class_names if is_named else [],
            templates=list(task.templates) if protocol == "zero-shot" and not task.prompts else [],
            names=[list(names) for names in task.classes.names] if task.classes.has_several_names else [],
            prompts=[list(several) for several in task.prompts] if protocol == "zero-shot" else [],
            predictions=found.predictions,
            outcomes=found.outcomes,
            reliability=found.reliability,
            skipped=dict(+skipped),
        )

    def _interval(self, row: Row) -> dict[str, Any]:
        """Of an accuracy on one of the paper's tasks the interval that the paper compares by."""
        if self.task.entry is None or not row.metric.endswith(".top1"):
            return {}
        low, high = clopper_pearson(round(row.value * row.count), row.count)
        return {"low": low, "high": high, "interval": CLOPPER_PEARSON}


# --- protocols -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a protocol gives."""

    rows: list[Row]
    outcomes: list[Outcome] = field(default_factory=list)
    predictions: list[Prediction] = field(default_factory=list)
    reliability: list[tuple[float, float, int]] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Protocol:
    """A way to measure a model on a task."""

    missing: Callable[[Task], str]
    """What a task lacks for it; "": nothing."""
    remedy: str
    """What to do about that."""
    measure: Callable[[Bench, dict[str, str]], Found]


def _lacks_classes(task: Task) -> str:
    labelled = any(label is not None for label in task.test.labels)
    return "" if labelled and task.classes.ids else "labels without names" if labelled else "pictures without labels"


def _lacks_training(task: Task) -> str:
    if reason := _lacks_classes(task):
        return reason
    if task.train is None:
        return "no training pictures"
    if any(isinstance(label, tuple) for label in task.test.labels):
        return "pictures with several classes each"
    counts = Counter(task.train.labels)
    counts.pop(None, None)
    if len(counts) < 2:
        return "training pictures of one class alone" if counts else "training pictures without labels"
    if task.validation is None and max(counts.values()) < 2:
        return "one training picture of each class, and no validation pictures"
    return ""


def _lacks_captions(task: Task) -> str:
    return "" if any(pair.captions for pair in task.test.source) else "pictures without captions"


def require_some(task: Task, there: Sequence[int], what: str) -> None:
    """Raise `DataError` where no picture with a label, or a caption, could be read."""
    if not there:
        raise DataError(
            f"The pictures of {task.path} with {what}",
            must="be readable, one at least",
            got="none that is",
            then="Check the files: limner data check says what is wrong with each.",
        )


def _metric(task: Task) -> str:
    """What a task of one class for each image is measured by; the registry has tasks that are measured otherwise."""
    return task.entry.metric if task.entry is not None and task.entry.metric in METRICS else "top1"


def _zero_shot(bench: Bench, about: dict[str, str]) -> Found:
    task, embedded = bench.task, bench.embedded(bench.task.test)
    labels, pairs = [task.test.labels[index] for index in embedded.indices], embedded.pairs()
    there = [place for place, label in enumerate(labels) if label is not None]
    require_some(task, there, "a label")
    say_counts(task.path, task.classes, labels)
    classifier = ZeroShotClassifier(
        bench.model, list(task.classes.names), task.templates, prompts=task.prompts, keep=bench.how.keep
    )
    features, pairs = embedded.features[there], [pairs[place] for place in there]
    skipped = Counter({"no label (not classified)": len(labels) - len(there)})
    own = [labels[place] for place in there]
    if any(isinstance(label, tuple) for label in own):
        sets = [label if isinstance(label, tuple) else (label,) for label in own if label is not None]
        scores = classifier.probabilities(features).cpu()
        return Found(
            rows=multi_label_rows("zero_shot", scores, right_classes(sets, len(task.classes.ids)), **about),
            skipped=skipped,
        )
    single = [label for label in own if isinstance(label, int)]
    rows, outcomes, predictions, reliability = classify(classifier, features, pairs, single, _metric(task), about)
    return Found(rows=rows, outcomes=outcomes, predictions=predictions, reliability=reliability, skipped=skipped)


def _linear_probe(bench: Bench, about: dict[str, str]) -> Found:
    task = bench.task
    assert task.train is not None
    (features, labels, keys), metric = _features(bench, task.test), METRICS[_metric(task)]
    train, right, _ = _features(bench, task.train)
    if task.validation is not None:
        validation, chosen_by, _ = _features(bench, task.validation)
    else:
        held = torch.from_numpy(held_out(right.numpy(), HELD_OUT, seed=0))
        validation, chosen_by = train[held], right[held]
        train, right = train[~held], right[~held]
    if known := set(bench.embedded(task.test).contents) & set(bench.embedded(task.train).contents):
        count = sum(one in known for one in bench.embedded(task.test).contents)
        say(f"{count:,} of the pictures of {task.path} to measure are among those that the probe is fitted to.")
    absent = sorted(set(labels.tolist()) - set(right.tolist()) - set(chosen_by.tolist()))
    if absent:
        named = ", ".join(task.classes.class_names[one] for one in absent[:5])
        say(f"Of the classes of {task.path} {len(absent)} have no training picture, and cannot be named: {named}.")
    found = probe((train, right), (validation, chosen_by), len(task.classes.ids), metric)
    if not found.last.is_converged:
        say(f"The linear probe of {task.path} ended after its last step with a gradient of {found.last.gradient:.2g}.")
    where = "before" if bench.how.probe_features == "before" else "after"
    by = "val" if task.validation is not None else f"{HELD_OUT:.0%} of train"
    setting = f"features {where} the projection, C = {found.last.strength:.4g} chosen by {_metric(task)} on {by}"
    scores = found.last.scores(features).float()
    rows, outcome = class_rows("linear_probe", scores, labels, keys, _metric(task), setting=setting, **about)
    skipped = Counter[str]()
    for name, split in (("train", task.train), ("val", task.validation)):
        if split is not None:
            unread = Counter(one.reason for one in bench.embedded(split).unreadable) + split.source.skipped
            skipped += Counter({f"{reason} ({name})": count for reason, count in unread.items()})
    return Found(rows=rows, outcomes=[outcome], skipped=skipped)


def _features(bench: Bench, split: Split) -> tuple[Float[Tensor, "images embed"], Tensor, list[str]]:
    """(the features that a probe stands on, labels, keys) of the pictures of a split that have a label."""
    found = bench.embedded(split, hidden=True)
    features, pairs = found.hidden, found.pairs()
    assert features is not None
    labels = [split.labels[index] for index in found.indices]
    there = [place for place, label in enumerate(labels) if isinstance(label, int)]
    if bench.how.probe_features == "after":
        projection = bench.model.image.projection
        with measuring(bench.model):
            parts = features.to(projection.weight).split(BATCH)
            features = torch.cat([projection(part).float().cpu() for part in parts])
    return features[there], torch.tensor([labels[place] for place in there]), [pairs[place].key for place in there]


def _retrieval(bench: Bench, about: dict[str, str]) -> Found:
    embedded = bench.embedded(bench.task.test)
    pairs = embedded.pairs()
    captioned = [place for place, pair in enumerate(pairs) if pair.captions]
    require_some(bench.task, captioned, "a caption")
    rows, outcomes = retrieval(
        bench.model,
        embedded.features[captioned],
        [embedded.contents[place] for place in captioned],
        [pairs[place].captions for place in captioned],
        [pairs[place].key for place in captioned],
        about,
    )
    skipped = Counter({"no caption (not in the retrieval)": len(pairs) - len(captioned)})
    if not bench.task.classes.ids:
        labelled = sum(label is not None for label in bench.task.test.labels)
        skipped["label without a classnames.txt (not classified)"] += labelled
    return Found(rows=rows, outcomes=outcomes, skipped=skipped)


PROTOCOLS: dict[str, Protocol] = {
    "zero-shot": Protocol(_lacks_classes, "Put the pictures into a folder for each class.", _zero_shot),
    "linear-probe": Protocol(
        _lacks_training, "Give the folder around its splits, with train/ and test/ in it.", _linear_probe
    ),
    "retrieval": Protocol(_lacks_captions, "Put KEY.txt beside each picture.", _retrieval),
}
"""All ways to measure, in the order in which they run."""


# --- several tasks ---------------------------------------------------------------------------------------------------


def evaluate(model: CLIP, tasks: str | Path | Source | Task | Iterable[str | Path | Source | Task]) -> list[Row]:
    """The rows of every task, or of one: zero-shot accuracy where there are labels, recall where there are captions, a
    linear probe where there are training pictures with labels beside those to measure.

    The model may be in training mode; it is measured in inference mode and left as it was.
    """
    several = [tasks] if isinstance(tasks, str | Path | Source | Task) else tasks
    return [row for task in several for row in evaluate_task(model, task).rows]


def evaluate_task(
    model: CLIP, task: str | Path | Source | Task, how: How = ALL, results: Results | None = None
) -> Evaluation:
    """What `how` asks for on one task: a path, a source, or a task. What `results` holds is not measured again, and
    what is measured is kept there."""
    opened = task if isinstance(task, Task) else task_of(task) if isinstance(task, Source) else read_task(task)
    return _evaluate_bench(Bench(model, with_prompts(opened, how.prompts), how), results)


def evaluate_features(model: CLIP, embedded: Embedded) -> Evaluation:
    """Everything that can be measured on images that `model` has embedded.

    The rows name the model as it is now, whatever it was when it was loaded.
    """
    return _evaluate_bench(Bench(model, task_of(embedded.source), test=embedded), None)


def _evaluate_bench(bench: Bench, results: Results | None) -> Evaluation:
    found, source = list[Evaluation](), bench.task.test.source
    for protocol in bench.due:
        key = bench.key(protocol)
        known = together(bench.how.group, lambda key=key: results.done(key) if results else None)[0]
        if known is None:
            known = bench.measure(protocol)
            passing = [one for one in known.skipped if one in (LATE, SLOW, UNREAD)]
            if results is not None and passing:
                say(f"{bench.task.name}, {protocol}: not kept, for pictures may be readable another time: {passing[0]}")

            def keep(key: Key = key, known: Evaluation = known, passing: list[str] = passing) -> None:
                if results is not None and not passing:
                    results.add(key, known)

            together(bench.how.group, keep)
        else:
            say(f"{bench.task.name}, {protocol}: taken from the results, where it is done.")
        found.append(known)
    evaluation = joined(found)
    if evaluation.skipped:
        say(f"Left out of the evaluation of {source.path}: {describe(Counter(evaluation.skipped))}.")
    if source.noted:
        say(notes(source))
    return evaluation


def evaluate_run(
    path: str | Path,
    data: str | Path | Sequence[str | Path | Entry] = (),
    how: How = ALL,
    *,
    root: Path | None = None,
    out: Path | None = None,
    device: str = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
) -> tuple[list[Evaluation], list[LimnerError]]:
    """(the evaluations, what went wrong) of a run or a model directory on `data`, or of a run on its own pictures.

    `data` are paths, and tasks of the registry, whose folders are in `root`. A run's own pictures are its test set, or
    the pairs that it kept back. A run's results are also written to its eval/, one file for each task, if that can be
    written; with `out`, to that folder, where what is done is not measured again. Of several tasks one that cannot be
    measured does not stop the others. `device` and `precision` are those of `limner.load`.
    """
    run, data = RunDirectory(Path(path)), [data] if isinstance(data, str | Path) else list(data)
    if not data and not run.is_finished:
        raise ConfigError(
            f"The model {path}, which has no test set of its own,",
            must="come with pictures to measure it on",
            got="none",
            then="Give them with --data PATH, or with --suite NAME --root FOLDER.",
        )
    model, failed, evaluations = load(path, device=device, precision=precision), list[LimnerError](), list[Evaluation]()
    how, fetch_train = replace(how, model=str(Path(path).absolute())), "linear-probe" in how.protocols
    opening: list[Callable[[], Task]] = [lambda one=one: _opened(one, root, fetch_train) for one in data]
    opening = opening or [lambda: task_of(own_task(run))]
    is_first_rank = how.group is None or dist.get_rank(how.group) == 0
    opened = list[Results]()

    def open_results() -> None:
        if out is not None and is_first_rank:
            opened.append(Results(out))

    together(how.group, open_results)
    results = opened[0] if opened else None
    is_kept_back = not data and run.read_config().test is None
    try:
        # all, before the first is measured
        tasks = [_tried(lambda one=one: together(how.group, one)[0], len(opening), failed) for one in opening]
        for task in tasks:
            if task is not None:
                measure: Callable[[], Evaluation] = lambda task=task: _evaluate_for(  # noqa: E731
                    run, model, task, how, results, kept_back=is_kept_back
                )
                evaluations += [found] if (found := _tried(measure, len(opening), failed)) is not None else []
    finally:
        if results is not None:
            results.close()
    return evaluations, failed


def _tried(do: Callable[[], T], several: int, failed: list[LimnerError]) -> T | None:
    """What `do` gives; of several tasks one that fails is said and counted, and the others go on."""
    try:
        return do()
    except StorageError:
        raise
    except LimnerError as error:
        if several == 1:
            raise
        say(f"Not measured: {error}")
        failed.append(error)
        return None


def present(entries: Sequence[Entry], root: Path) -> list[Entry]:
    """Those tasks that have a folder in `root`; the others are said. Raises `DataError` if none has."""
    there = [entry for entry in entries if place_in(root, entry) is not None]
    missing = [entry.name for entry in entries if entry not in there]
    if not there:
        raise DataError(
            f"The folder {root}",
            must="hold a folder for each task",
            got=f"none of {', '.join(missing[:8])}" + (", ..." if len(missing) > 8 else ""),
            then=f"See where their public copies are: limner eval tasks --root {root}",
        )
    if missing:
        say(f"Not in {root}, and not measured: {', '.join(missing)}.")
    return there


def state_of(entry: Entry, root: Path) -> str:
    """What there is of a task in `root`, in words: missing, 5,400 pictures, or what is wrong with them."""
    place = place_in(root, entry)
    if place is None:
        return "missing"
    try:
        task = read_task(place, name=entry.name, entry=entry)
        require_fit(task, entry)
    except LimnerError as error:
        return f"cannot be measured: {error}"
    count = len(task.test.source)
    told = f"{count:,} pictures"
    return told if entry.test in (None, count) else f"{told}, not the paper's {entry.test:,}"


def _opened(one: str | Path | Entry, root: Path | None, fetch_train: bool) -> Task:
    if isinstance(one, str | Path):
        return read_task(one, fetch_train=fetch_train)
    place = None if root is None else place_in(root, one)
    if place is None:
        raise DataError(
            f"The task {one.name}",
            must=f"have a folder in {root}",
            got="none",
            then=f"See what is there: limner eval tasks --root {root}",
        )
    task = read_task(place, name=one.name, entry=one)
    require_measurable(task, one)
    require_fit(task, one)
    if one.test and len(task.test.source) != one.test:
        say(f"{one.name} has {len(task.test.source):,} pictures to measure; in the paper it has {one.test:,}.")
    return task


def require_measurable(task: Task, entry: Entry) -> None:
    """Raise `DataError` for a task that is measured by something that no protocol gives, or in another layout."""
    several = any(isinstance(label, tuple) for label in task.test.labels)
    own = {"eleven_point_map": several, "recall@1": True} | dict.fromkeys(METRICS, not several)
    if not own.get(entry.metric):
        raise DataError(
            f"The task {entry.name}",
            must=f"be measured by {entry.metric}" + (", of pictures with .npy" if entry.metric in own else ""),
            got="pictures of one class each" if entry.metric in own else "no protocol that gives it",
            then=f"For its accuracy as a plain folder: --data {task.path}",
        )


def require_fit(task: Task, entry: Entry) -> None:
    """Raise `DataError` where a folder holds another number of classes than the task of that name."""
    classes = len(task.classes.ids)
    if entry.classes and classes and entry.classes != classes:
        raise DataError(
            f"The folder {task.path} of the task {entry.name}",
            must=f"have its {entry.classes} classes",
            got=f"{classes}, so that it is another task's",
            then="Put each task into a folder of its name.",
        )


def _evaluate_for(
    run: RunDirectory, model: CLIP, task: Task, how: How, results: Results | None, *, kept_back: bool
) -> Evaluation:
    """The evaluation of a run's model on a task, which is kept in its eval/; of one that it was trained on, with a
    word."""
    source = task.test.source
    trained_on = run.is_finished and not kept_back and was_trained_on(run, source)
    if trained_on:
        say(f"{run.path} was trained on pairs of {source.path}: the numbers say what it remembers, not what it can do.")
    found = evaluate_task(model, task, replace(how, kept_back=kept_back, trained_on=trained_on), results)
    try:
        if run.is_finished and (how.group is None or dist.get_rank(how.group) == 0):
            write_evaluation(run, found)
    except StorageError as error:
        say(f"The numbers are not kept: {error}")
    return found
