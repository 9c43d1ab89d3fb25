"""Tasks and their rows: what `limner eval` runs.

A task is a source. If its shards hold labels (`.cls`) and `classnames.txt` lies in its folder or the one around it,
CLIP_benchmark's layout, it is classified zero-shot; if its pictures have captions, retrieval is measured both ways.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limner.config import DEFAULT_TEMPLATES
from limner.data.loader import describe_unreadable
from limner.data.pairs import Pair, Source
from limner.data.sources import absolute, held_back_pairs, read_pictures
from limner.errors import ConfigError, DataError
from limner.evaluation.metrics import Row, ranks, row
from limner.evaluation.zero_shot import ZeroShotClassifier
from limner.model.clip import CLIP
from limner.model.features import image_features
from limner.model.store import load
from limner.progress import say
from limner.run import RunDirectory, write_json

TOP = 5
"""Names kept for each picture."""
RECALLS = (1, 5, 10)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What zero-shot classification said about one picture."""

    key: str
    label: int
    held_out: bool
    top: list[int]
    """Indices of the likeliest classes."""
    probabilities: list[float]
    right: float
    """Probability of the right class."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The rows of one task, and what they are counted from."""

    task: str
    data: str
    """Where the pictures are."""
    kept_back: bool
    """They are those that the run kept back from the training pairs there."""
    rows: list[Row]
    class_names: list[str] = field(default_factory=list)
    templates: list[str] = field(default_factory=list)
    predictions: list[Prediction] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    """Pictures left out, by reason."""


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


def own_task(run: RunDirectory) -> Source:
    """What a run is measured on: its test set, or the pairs that it kept back from training."""
    config = run.read_config()
    own = read_pictures(config.test) if config.test is not None else held_back_pairs(config)
    if own is None:
        raise ConfigError(
            f"The run {run.path}",
            must="have a test set or held-out pairs",
            got="neither, or too few pairs to keep any back",
            then="Give --data PATH.",
        )
    return own


def _absolute(path: Path | str) -> str:
    return str(path.resolve()) if isinstance(path, Path) else absolute(path)


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


def classify(
    classifier: ZeroShotClassifier, features: Float[Tensor, "pictures embed"], pairs: list[Pair], about: dict[str, str]
) -> tuple[list[Row], list[Prediction]]:
    """Top-1 and top-5 accuracy, over all classes and over those held out of training, and each picture's names."""
    labels = torch.tensor([pair.label for pair in pairs])
    classes = len(classifier.class_names)
    if int(labels.max()) >= classes:
        raise DataError(
            "The labels of the pictures",
            must=f"be below {classes}, the number of lines of classnames.txt",
            got=int(labels.max()),
            then="Labels are counted from 0.",
        )
    rank = ranks(classifier.scores(features), torch.arange(classes) == labels[:, None])
    held_out = torch.tensor([pair.held_out for pair in pairs])
    rows = [row(f"zero_shot.top{k}", rank, k, **about) for k in (1, TOP)]
    if held_out.any():
        rows += [row(f"held_out.top{k}", rank[held_out], k, **about) for k in (1, TOP)]
    probabilities = classifier.probabilities(features)
    found = probabilities.topk(min(TOP, classes), dim=1)
    right = probabilities[torch.arange(len(labels)), labels]
    predictions = [
        Prediction(key=pair.key, label=label, held_out=pair.held_out, top=top, probabilities=shares, right=share)
        for pair, label, top, shares, share in zip(
            pairs, labels.tolist(), found.indices.tolist(), found.values.tolist(), right.tolist(), strict=True
        )
    ]
    return rows, predictions


def retrieval(
    model: CLIP,
    picture_features: Float[Tensor, "pictures embed"],
    captions: list[tuple[str, ...]],
    about: dict[str, str],
) -> list[Row]:
    """Recall@1/5/10 from captions to pictures and back.

    Identical captions are one candidate, and every picture that one of them belongs to is right.
    """
    different = sorted({caption for several in captions for caption in several})
    index = {caption: i for i, caption in enumerate(different)}
    own = [sorted({index[caption] for caption in several}) for several in captions]
    text_features = torch.cat([model.encode_text(different[i : i + 1024]) for i in range(0, len(different), 1024)])
    to_text = _ranks_in_chunks(picture_features, text_features, own)
    pictures_of: list[list[int]] = [[] for _ in different]
    for picture, mine in enumerate(own):
        for caption in mine:
            pictures_of[caption].append(picture)
    to_image = _ranks_in_chunks(text_features, picture_features, pictures_of)
    return [row(f"retrieval.text_to_image@{k}", to_image, k, **about) for k in RECALLS] + [
        row(f"retrieval.image_to_text@{k}", to_text, k, **about) for k in RECALLS
    ]


def _ranks_in_chunks(
    queries: Float[Tensor, "queries embed"], candidates: Float[Tensor, "candidates embed"], right: list[list[int]]
) -> Int[Tensor, " queries"]:
    """`ranks` of every query's `right` candidates, a thousand queries at a time."""
    parts = []
    for start in range(0, len(queries), 1024):
        scores = queries[start : start + 1024] @ candidates.T
        is_right = torch.zeros_like(scores, dtype=torch.bool)
        for query, wanted in zip(is_right, right[start : start + 1024], strict=True):
            query[wanted] = True
        parts.append(ranks(scores, is_right))
    return torch.cat(parts)


def _lines(folder: Path, name: str) -> list[str]:
    """The lines of `name` in `folder` or in the folder around it; none if there is no such file."""
    path = next((path for path in (folder / name, folder.parent / name) if path.is_file()), None)
    return path.read_text(encoding="utf-8").rstrip().splitlines() if path else []
