"""Tasks and their rows: what `limn eval` runs.

A task is a source. If its shards hold labels (`.cls`) and `classnames.txt` lies in its folder or the one around it,
CLIP_benchmark's layout, it is classified zero-shot; if its pictures have captions, retrieval is measured both ways.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from limn.data.loader import describe_unreadable, read_centre
from limn.data.sources import Source, held_back_pairs, read_pictures
from limn.errors import ConfigError, DataError
from limn.evaluation.metrics import Row, ranks, row
from limn.evaluation.zero_shot import DEFAULT_TEMPLATES, ZeroShotClassifier
from limn.model.clip import CLIP
from limn.model.store import load
from limn.progress import say, track
from limn.run import RunDirectory, write_json

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
    rows: list[Row]
    class_names: list[str] = field(default_factory=list)
    templates: list[str] = field(default_factory=list)
    predictions: list[Prediction] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    """Pictures left out, by reason."""


def evaluate(model: CLIP, tasks: Iterable[str | Path | Source]) -> list[Row]:
    """The rows of every task: zero-shot accuracy where there are labels, recall where there are captions."""
    return [row for task in tasks for row in evaluate_task(model, task).rows]


def evaluate_run(path: Path, data: Sequence[Path] = ()) -> list[Evaluation]:
    """Evaluate a run or a model directory on `data`, or a run on its own test set or the pairs that it kept back.

    A run's results are also written to its eval/, one file for each task.
    """
    run = RunDirectory(path)
    model = load(path)
    tasks: list[Path | Source] = list(data)
    if not tasks:
        config = run.read_config()
        own = config.test or held_back_pairs(config)
        if own is None:
            raise ConfigError(
                f"The run {path}", must="have a test set or held-out pairs", got="neither", then="Give --data PATH."
            )
        tasks = [own]
    evaluations = [evaluate_task(model, task) for task in tasks]
    if run.config.is_file():
        for evaluation in evaluations:
            write_json(run.evaluations / f"{evaluation.task.replace('/', '-')}.json", asdict(evaluation))
    return evaluations


@torch.inference_mode()
def evaluate_task(model: CLIP, task: str | Path | Source) -> Evaluation:
    """Everything that can be measured on one task, a path or a source."""
    source = task if isinstance(task, Source) else read_pictures(task)
    kept, features, unreadable = image_features(model, source)
    if unreadable:
        say(f"Left out of the evaluation: {describe_unreadable(unreadable)}.")
    pairs = [source[i] for i in kept]
    folder = source.path if source.path.is_dir() else source.path.parent
    about = {
        "task": "/".join(folder.resolve().parts[-2:]),
        "model": model.fingerprint or "not saved",
        "data": source.fingerprint,
    }
    rows: list[Row] = []
    class_names, templates, predictions = [], [], []
    if all(pair.label is not None for pair in pairs):
        class_names = _lines(folder, "classnames.txt")
    if class_names:
        found_templates = _lines(folder, "zeroshot_classification_templates.txt")
        templates = [line.replace("{c}", "{}") for line in found_templates] or list(DEFAULT_TEMPLATES)
        classifier = ZeroShotClassifier(model, class_names, templates)
        labels = torch.tensor([pair.label for pair in pairs])
        if int(labels.max()) >= len(class_names):
            raise DataError(
                f"The labels of {folder}",
                must=f"be below {len(class_names)}, the number of lines of classnames.txt",
                got=int(labels.max()),
                then="Labels are counted from 0.",
            )
        scores = classifier.scores(features)
        rank = ranks(scores, is_label(labels, len(class_names)))
        held_out = torch.tensor([pair.held_out for pair in pairs])
        rows += [row(f"zero_shot.top{k}", rank, k, **about) for k in (1, TOP)]
        if held_out.any():
            rows += [row(f"held_out.top{k}", rank[held_out], k, **about) for k in (1, TOP)]
        probabilities = classifier.probabilities(features)
        found = probabilities.topk(min(TOP, len(class_names)), dim=1)
        right = probabilities[torch.arange(len(labels)), labels]
        predictions = [
            Prediction(key=pair.key, label=label, held_out=pair.held_out, top=top, probabilities=shares, right=share)
            for pair, label, top, shares, share in zip(
                pairs, labels.tolist(), found.indices.tolist(), found.values.tolist(), right.tolist(), strict=True
            )
        ]
    if all(pair.captions for pair in pairs):
        rows += retrieval(model, features, [pair.captions for pair in pairs], about)
    if not rows:
        raise DataError(
            f"The task {source.path}",
            must="have captions, or labels (.cls in shards) and classnames.txt",
            got="pictures with neither for every one",
            then="Add KEY.txt beside each picture, or use limn classify to name pictures.",
        )
    return Evaluation(
        task=about["task"],
        data=str(source.path),
        rows=rows,
        class_names=class_names,
        templates=templates,
        predictions=predictions,
        skipped=dict(source.skipped + Counter(unreadable.values())),
    )


def retrieval(
    model: CLIP,
    image_features: Float[Tensor, "pictures embed"],
    captions: list[tuple[str, ...]],
    about: dict[str, str],
) -> list[Row]:
    """Recall@1/5/10 from captions to pictures and back.

    Identical captions are one candidate, and every picture that one of them belongs to is right.
    """
    different = sorted({caption for several in captions for caption in several})
    index = {caption: i for i, caption in enumerate(different)}
    right: Bool[Tensor, "pictures captions"] = torch.zeros(len(captions), len(different), dtype=torch.bool)
    for picture, several in enumerate(captions):
        right[picture, [index[caption] for caption in several]] = True
    text_features = torch.cat([model.encode_text(different[i : i + 1024]) for i in range(0, len(different), 1024)])
    scores = image_features @ text_features.T
    to_image, to_text = ranks(scores.T, right.T), ranks(scores, right)
    return [row(f"retrieval.text_to_image@{k}", to_image, k, **about) for k in RECALLS] + [
        row(f"retrieval.image_to_text@{k}", to_text, k, **about) for k in RECALLS
    ]


@torch.inference_mode()
def image_features(model: CLIP, source: Source) -> tuple[list[int], Float[Tensor, "pictures embed"], dict[str, str]]:
    """(indices of the readable pictures, their features, reasons for the unreadable ones by key)."""
    kept: list[int] = []
    parts: list[Tensor] = []
    unreadable: dict[str, str] = {}
    batches = read_centre(source, model.architecture.image_size)
    for indices, pixels, bad in track(batches, title="Encoding pictures", total=-(-len(source) // 256)):
        kept += indices
        parts.append(model.encode_image(pixels))
        unreadable |= bad
    if not kept:
        raise DataError(
            f"The pictures of {source.path}",
            must="be readable",
            got=describe_unreadable(unreadable),
            then="Check the files.",
        )
    return kept, torch.cat(parts), unreadable


def is_label(labels: Int[Tensor, " pictures"], classes: int) -> Bool[Tensor, "pictures classes"]:
    """Which class is right for each picture."""
    return torch.arange(classes) == labels[:, None]


def _lines(folder: Path, name: str) -> list[str]:
    """The lines of `name` in `folder` or in the folder around it; none if there is no such file."""
    path = next((path for path in (folder / name, folder.parent / name) if path.is_file()), None)
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()] if path else []
