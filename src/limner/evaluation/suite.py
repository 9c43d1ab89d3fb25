"""All that can be measured on a task: what `limner eval` runs."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from limner.data.pairs import Source, describe
from limner.data.sources.read import read_images
from limner.embed import Embedded, embed_images
from limner.errors import ConfigError, DataError
from limner.evaluation.metrics import Row
from limner.evaluation.retrieval import retrieval
from limner.evaluation.tasks import (
    Evaluation,
    classes_of_task,
    name_of_task,
    own_task,
    place_of_task,
    write_evaluation,
)
from limner.evaluation.zero_shot import Prediction, ZeroShotClassifier, classify
from limner.model.clip import CLIP
from limner.progress import say
from limner.run import RunDirectory
from limner.store.store import load


def evaluate(model: CLIP, tasks: Iterable[str | Path | Source]) -> list[Row]:
    """The rows of every task: zero-shot accuracy where there are labels, recall where there are captions."""
    return [row for task in tasks for row in evaluate_task(model, task).rows]


def evaluate_run(
    path: str | Path,
    data: Sequence[str | Path] = (),
    *,
    device: str = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
    keep: Path | None = None,
) -> list[Evaluation]:
    """Evaluate a run or a model directory on `data`, or a run on its own test set or the pairs that it kept back.

    A run's results are also written to its eval/, one file for each task. `device` and `precision` are those of
    `limner.load`, `keep` is a folder for the features of images.
    """
    run = RunDirectory(Path(path))
    model = load(path, device=device, precision=precision)
    if not data and not run.is_finished:
        raise ConfigError(
            f"The model {path}, which has no test set of its own,",
            must="come with pictures to measure it on",
            got="none",
            then="Give them with --data PATH.",
        )
    if data:
        evaluations = [evaluate_task(model, task, keep=keep) for task in data]
    else:
        evaluations = [evaluate_task(model, own_task(run), kept_back=run.read_config().test is None, keep=keep)]
    if run.is_finished:
        for evaluation in evaluations:
            write_evaluation(run, evaluation)
    return evaluations


def evaluate_task(
    model: CLIP, task: str | Path | Source, *, kept_back: bool = False, keep: Path | None = None
) -> Evaluation:
    """Everything that can be measured on one task, a path or a source; `keep` is a folder for the features."""
    source = task if isinstance(task, Source) else read_images(task)
    return evaluate_features(model, embed_images(model, source, keep=keep), kept_back=kept_back)


def evaluate_features(model: CLIP, embedded: Embedded, *, kept_back: bool = False) -> Evaluation:
    """Everything that can be measured on images that `model` has embedded.

    Zero-shot accuracy counts the images with a label, retrieval those with a caption; the others are counted as
    skipped. `kept_back` is noted in the result: the pairs are a part of those at the path.
    """
    source, features, pairs = embedded.source, embedded.features, embedded.pairs()
    skipped = source.skipped + Counter(one.got for one in embedded.unreadable)
    about = {"task": name_of_task(source), "model": model.fingerprint or "not saved", "data": source.fingerprint}
    class_names, templates = classes_of_task(source)
    rows: list[Row] = []
    predictions: list[Prediction] = []
    labelled = [i for i, pair in enumerate(pairs) if pair.label is not None] if class_names else []
    captioned = [i for i, pair in enumerate(pairs) if pair.captions]
    if labelled:
        skipped["no label (not classified)"] += len(pairs) - len(labelled)
        classifier = ZeroShotClassifier(model, class_names, templates)
        zero_shot_rows, predictions = classify(classifier, features[labelled], [pairs[i] for i in labelled], about)
        rows += zero_shot_rows
    if captioned:
        skipped["no caption (not in the retrieval)"] += len(pairs) - len(captioned)
        rows += retrieval(model, features[captioned], [pairs[i].captions for i in captioned], about)
    if not rows:
        raise DataError(
            f"The task {source.path}",
            must="have captions, or labels (.cls in shards) and classnames.txt",
            got=f"{len(pairs)} pictures with neither",
            then="Add KEY.txt beside each picture, or use limner classify to name pictures.",
        )
    if +skipped:
        say(f"Left out of the evaluation of {source.path}: {describe(+skipped)}.")
    return Evaluation(
        task=about["task"],
        data=place_of_task(source),
        kept_back=kept_back,
        rows=rows,
        class_names=class_names if labelled else [],
        templates=templates if labelled else [],
        predictions=predictions,
        skipped=dict(+skipped),
    )
