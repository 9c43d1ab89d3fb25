"""All that can be measured on a task: what `limner eval` runs."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from limner.data.pairs import Source, describe, notes
from limner.data.sources.read import read_images
from limner.embed import Embedded, embed_images
from limner.errors import ConfigError, DataError, ModelError, StorageError
from limner.evaluation.metrics import Row
from limner.evaluation.retrieval import retrieval
from limner.evaluation.tasks import (
    Evaluation,
    classes_of_task,
    name_of_task,
    own_task,
    place_of_task,
    templates_of_task,
    was_trained_on,
    write_evaluation,
)
from limner.evaluation.zero_shot import Prediction, ZeroShotClassifier, classify
from limner.model.clip import CLIP
from limner.progress import say
from limner.run import RunDirectory
from limner.store.store import fingerprint_now, load, unusable_weights


def evaluate(model: CLIP, tasks: str | Path | Source | Iterable[str | Path | Source]) -> list[Row]:
    """The rows of every task, or of one: zero-shot accuracy where there are labels, recall where there are captions.

    The model may be in training mode; it is measured in inference mode and left as it was.
    """
    several = [tasks] if isinstance(tasks, str | Path | Source) else tasks
    return [row for task in several for row in evaluate_task(model, task).rows]


def evaluate_run(
    path: str | Path,
    data: str | Path | Sequence[str | Path] = (),
    *,
    device: str = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
    keep: Path | None = None,
) -> list[Evaluation]:
    """Evaluate a run or a model directory on `data`, or a run on its own test set or the pairs that it kept back.

    A run's results are also written to its eval/, one file for each task, if that can be written. `device` and
    `precision` are those of `limner.load`, `keep` is a folder for the features of images.
    """
    run, data = RunDirectory(Path(path)), [data] if isinstance(data, str | Path) else data
    model = load(path, device=device, precision=precision)
    if not data and not run.is_finished:
        raise ConfigError(
            f"The model {path}, which has no test set of its own,",
            must="come with pictures to measure it on",
            got="none",
            then="Give them with --data PATH.",
        )
    sources = [read_images(task) for task in data] or [own_task(run)]  # all, before the first is measured
    is_kept_back = not data and run.read_config().test is None
    return [_evaluate_for(run, model, source, kept_back=is_kept_back, keep=keep) for source in sources]


def _evaluate_for(run: RunDirectory, model: CLIP, source: Source, *, kept_back: bool, keep: Path | None) -> Evaluation:
    """The evaluation of a run's model on `source`, which is kept in its eval/; of one that it was trained on, with a
    word."""
    trained_on = run.is_finished and not kept_back and was_trained_on(run, source)
    if trained_on:
        say(f"{run.path} was trained on pairs of {source.path}: the numbers say what it remembers, not what it can do.")
    found = replace(evaluate_task(model, source, keep=keep), kept_back=kept_back, trained_on=trained_on)
    try:
        if run.is_finished:
            write_evaluation(run, found)
    except StorageError as error:
        say(f"The numbers are not kept: {error}")
    return found


def evaluate_task(model: CLIP, task: str | Path | Source, *, keep: Path | None = None) -> Evaluation:
    """Everything that can be measured on one task, a path or a source; `keep` is a folder for the features."""
    source = task if isinstance(task, Source) else read_images(task)
    return evaluate_features(model, embed_images(model, source, keep=keep))


def evaluate_features(model: CLIP, embedded: Embedded) -> Evaluation:
    """Everything that can be measured on images that `model` has embedded.

    Zero-shot accuracy counts the images with a label, retrieval those with a caption; the others are counted as
    skipped. The rows name the model as it is now, whatever it was when it was loaded.
    """
    if bad := unusable_weights(model):
        raise ModelError(
            "The weights of the model to measure",
            must="be finite numbers",
            got=f"NaN or infinity in {', '.join(bad[:3])}",
            then="Take a checkpoint from before.",
        )
    source, features, pairs = embedded.source, embedded.features, embedded.pairs()
    skipped = source.skipped + Counter(one.reason for one in embedded.unreadable)
    about = {"task": name_of_task(source), "model": fingerprint_now(model), "data": source.fingerprint}
    (class_names, labels), templates = classes_of_task(source, pairs), templates_of_task(source)
    rows: list[Row] = []
    predictions: list[Prediction] = []
    classes = {i: label for i, label in enumerate(labels) if label is not None}
    labelled = list(classes) if class_names else []
    captioned = [i for i, pair in enumerate(pairs) if pair.captions]
    if labelled:
        skipped["no label (not classified)"] += len(pairs) - len(labelled)
        classifier = ZeroShotClassifier(model, class_names, templates)
        of_labelled = [pairs[i] for i in labelled]
        zero_shot_rows, predictions = classify(
            classifier, features[labelled], of_labelled, list(classes.values()), about
        )
        rows += zero_shot_rows
    elif classes:
        skipped["label without a classnames.txt (not classified)"] += len(classes)
    if captioned:
        skipped["no caption (not in the retrieval)"] += len(pairs) - len(captioned)
        contents, captions = [embedded.contents[i] for i in captioned], [pairs[i].captions for i in captioned]
        rows += retrieval(model, features[captioned], contents, captions, about)
    if not rows:
        raise DataError(
            f"The task {source.path}",
            must="have captions, a folder for each class, or labels and a classnames.txt beside it",
            got=f"{len(pairs)} pictures with labels that have no names" if classes else f"{len(pairs)} with neither",
            then="Add KEY.txt beside each picture, or use limner classify to name pictures.",
        )
    if +skipped:
        say(f"Left out of the evaluation of {source.path}: {describe(+skipped)}.")
    if source.noted:
        say(notes(source))
    return Evaluation(
        task=about["task"],
        data=place_of_task(source),
        rows=rows,
        class_names=class_names if labelled else [],
        templates=templates if labelled else [],
        predictions=predictions,
        skipped=dict(+skipped),
    )
