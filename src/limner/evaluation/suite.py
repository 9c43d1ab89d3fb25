"""Tasks and their rows: what `limner eval` runs.

A task is a source. If its shards hold labels (`.cls`) and `classnames.txt` lies in its folder or the one around it,
CLIP_benchmark's layout, it is classified zero-shot; if its pictures have captions, retrieval is measured both ways.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath

import torch

from limner.config import DEFAULT_TEMPLATES
from limner.data.pairs import Source
from limner.data.reading import describe_unreadable
from limner.data.sources.read import read_pictures
from limner.embed import image_features
from limner.errors import ConfigError, DataError
from limner.evaluation.metrics import Row
from limner.evaluation.retrieval import retrieval
from limner.evaluation.tasks import Evaluation, _absolute, own_task
from limner.evaluation.zero_shot import Prediction, ZeroShotClassifier, classify
from limner.files import write_json
from limner.model.clip import CLIP
from limner.progress import _lines, say
from limner.run import RunDirectory
from limner.store.store import load


def evaluate(model: CLIP, tasks: Iterable[str | Path | Source]) -> list[Row]:
    """The rows of every task: zero-shot accuracy where there are labels, recall where there are captions."""
    return [row for task in tasks for row in evaluate_task(model, task).rows]


def evaluate_run(path: Path, data: Sequence[str | Path] = ()) -> list[Evaluation]:
    """Evaluate a run or a model directory on `data`, or a run on its own test set or the pairs that it kept back.

    A run's results are also written to its eval/, one file for each task.
    """
    run = RunDirectory(path)
    model = load(path)
    if data:
        evaluations = [evaluate_task(model, task) for task in data]
    elif run.is_finished:
        evaluations = [evaluate_task(model, own_task(run), kept_back=run.read_config().test is None)]
    else:
        raise ConfigError(
            f"The model {path}, which has no test set of its own,",
            must="come with pictures to measure it on",
            got="none",
            then="Give them with --data PATH.",
        )
    if run.is_finished:
        for evaluation in evaluations:
            name = f"{evaluation.task.replace('/', '-')}-{evaluation.rows[0].data[:8]}.json"
            write_json(run.evaluations / name, asdict(evaluation))
    return evaluations


@torch.inference_mode()
def evaluate_task(model: CLIP, task: str | Path | Source, *, kept_back: bool = False) -> Evaluation:
    """Everything that can be measured on one task, a path or a source.

    Zero-shot accuracy counts the pictures with a label, retrieval those with a caption; the others are counted as
    skipped. `kept_back` is noted in the result: the pairs are a part of those at the path.
    """
    source = task if isinstance(task, Source) else read_pictures(task)
    kept, features, unreadable = image_features(model, source)
    if unreadable:
        say(f"Left out of the evaluation: {describe_unreadable(unreadable)}.")
    skipped = source.skipped + Counter(unreadable.values())
    pairs = [source[i] for i in kept]
    about = {
        "task": "/".join(PurePosixPath(_absolute(source.path)).with_suffix("").parts[-2:]),
        "model": model.fingerprint or "not saved",
        "data": source.fingerprint,
    }
    folder = Path(source.path) if Path(source.path).is_dir() else Path(source.path).parent
    class_names = _lines(folder, "classnames.txt")
    found_templates = _lines(folder, "zeroshot_classification_templates.txt")
    templates = [line.replace("{c}", "{}") for line in found_templates] or list(DEFAULT_TEMPLATES)

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
    return Evaluation(
        task=about["task"],
        data=_absolute(source.path),
        kept_back=kept_back,
        rows=rows,
        class_names=class_names if labelled else [],
        templates=templates if labelled else [],
        predictions=predictions,
        skipped=dict(+skipped),
    )
