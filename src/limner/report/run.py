"""report.html: one self-contained file about a run, from what training and evaluation left in its directory.

```
metrics.jsonl ─> curves            eval/TASK.json ─> numbers, images with names, best and worst, confused pairs
model/ + the task's images ─> thumbnails, and what a few sentences find
```
"""

import random
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment

from limner.architecture import name_of
from limner.data.pairs import Source
from limner.data.sources.read import read_images
from limner.embed import Embedded, embed_images, embed_texts
from limner.errors import ConfigError, DataError
from limner.evaluation.metrics import best_first, describe_row
from limner.evaluation.results import Evaluation, fingerprint_of, read_evaluations
from limner.evaluation.tasks import own_task
from limner.evaluation.zero_shot import Prediction
from limner.files import read_json, write_text
from limner.model.clip import CLIP
from limner.report.html import Curve, Thumbnails
from limner.run import RunDirectory
from limner.store.store import load
from limner.training.log import BOOKKEEPING

GRID = 48
"""Thumbnails in the grid of examples."""
EXTREMES = 12
"""Best, worst and confused classes that are shown."""
FOUND = 8
"""Thumbnails shown for each sentence."""
SENTENCES = 6
THUMBNAIL = 72
"""Pixels on the shorter side of a thumbnail."""


def write_report(
    path: Path, *, sentences: Sequence[str] = (), model: CLIP | None = None, embedded: Sequence[Embedded] = ()
) -> Path:
    """Write RUN/report.html. `sentences` are searched for in the test images; captions of the test by default.

    `model` and `embedded` are the run's model and what it has embedded, where they are at hand: nothing is done twice.
    """
    run = RunDirectory(path)
    evaluations, own = read_evaluations(run.evaluations), fingerprint_of(run)
    results = [result for result in evaluations if result.rows[0].model == own]
    if not results:
        raise ConfigError(
            f"The run {path}",
            must="have been evaluated",
            got="none of its own model in eval/",
            then=f"Run: limner eval {path}",
        )
    config, model = run.read_config(), model or load(path, device="auto")
    at_hand = {one.source.fingerprint: one for one in embedded}
    metrics = run.read_metrics()
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": lambda share: f"{share:.1%}", "described": describe_row}
    template = environment.from_string(files("limner.report").joinpath("run.html").read_text(encoding="utf-8"))
    html = template.render(
        name=run.path.resolve().name,
        config=config,
        model_name=name_of(config.model),
        data=read_json(run.data),
        environment=read_json(run.path / "env.json"),
        fingerprint=own,
        others=len(evaluations) - len(results),
        last=metrics[-1] if metrics else {},
        curves=[
            *(Curve.of(metrics, name, name.replace("_", " ")) for name in curve_names(metrics)),
            *_curves_of_measured(run.read_measured()),
        ],
        tasks=[_task(result, _embedded(result, run, model, at_hand), model, sentences) for result in results],
    )
    write_text(run.report, html)
    return run.report


def curve_names(metrics: Sequence[dict[str, Any]]) -> list[str]:
    """The numbers of the log that are worth a curve: the loss, what the objective measures, the gradient's norm."""
    last = metrics[-1] if metrics else {}
    return [name for name, value in last.items() if isinstance(value, int | float) and name not in BOOKKEEPING]


def _curves_of_measured(rows: Sequence[dict[str, Any]]) -> list[Curve]:
    """A curve for the first metric of each protocol on each task that was measured on the way."""
    firsts = {(row["task"], row["metric"].partition(".")[0]): row["metric"] for row in reversed(rows)}
    curves = list[Curve]()
    for (task, _), metric in reversed(firsts.items()):
        own = [row for row in rows if row["task"] == task and row["metric"] == metric]
        curves.append(Curve.of(own, "value", f"{task}: {metric}"))
    return curves


def _embedded(result: Evaluation, run: RunDirectory, model: CLIP, at_hand: dict[str, Embedded]) -> Embedded:
    """The images that a result was measured on, embedded; they must still be the same."""
    fingerprint = result.rows[0].data
    if fingerprint in at_hand:
        return at_hand[fingerprint]
    source = own_task(run) if result.kept_back else read_images(result.data)
    if source.fingerprint != fingerprint:
        raise DataError(
            f"The pictures at {source.path}",
            must="be those that were measured",
            got="others",
            then=f"Run limner eval {run.path} again" + ("." if result.kept_back else f" with --data {source.path}."),
        )
    return embed_images(model, source)


# --- one task --------------------------------------------------------------------------------------------------------


def _task(result: Evaluation, embedded: Embedded, model: CLIP, sentences: Sequence[str]) -> dict[str, Any]:
    source = embedded.source
    thumbnails = Thumbnails(source, THUMBNAIL)
    names, predictions = result.class_names, result.predictions
    shown = random.Random(0).sample(predictions, min(GRID, len(predictions)))
    ranked = _classes_by_certainty(predictions)

    def card(prediction: Prediction) -> dict[str, Any]:
        return {
            "picture": thumbnails[prediction.key],
            "name": names[prediction.label],
            "held_out": prediction.held_out,
            "right": prediction.right,
            "top": [
                {"name": names[i], "share": share, "right": i == prediction.label}
                for i, share in zip(prediction.top, prediction.probabilities, strict=True)
            ],
        }

    return {
        "name": result.task,
        "trained_on": result.trained_on,
        "rows": result.rows,
        "skipped": result.skipped,
        "templates": result.templates,
        "chance": 1 / len(names) if names else None,
        "examples": [card(p) for p in shown],
        "best": [card(p) for p in ranked[:EXTREMES]],
        "worst": [card(p) for p in ranked[::-1][:EXTREMES]],
        "confused": _confused(predictions, names, thumbnails),
        "searches": _searches(model, embedded, list(sentences) or _captions(source), thumbnails),
    }


def _classes_by_certainty(predictions: Sequence[Prediction]) -> list[Prediction]:
    """One image of each class, the class whose right name gets the most probability on average first."""
    of_class: dict[int, list[Prediction]] = {}
    for prediction in predictions:
        of_class.setdefault(prediction.label, []).append(prediction)
    ordered = sorted(of_class.values(), key=lambda several: sum(p.right for p in several) / len(several))
    return [several[0] for several in reversed(ordered)]


def _confused(predictions: Sequence[Prediction], names: Sequence[str], thumbnails: Thumbnails) -> list[dict[str, Any]]:
    """The pairs of classes that take each other's probability most, with an image of each."""
    taken: dict[tuple[int, int], float] = {}
    example: dict[int, str] = {}
    count: dict[int, int] = {}
    for prediction in predictions:
        label = prediction.label
        example.setdefault(label, prediction.key)
        count[label] = count.get(label, 0) + 1
        for i, share in zip(prediction.top, prediction.probabilities, strict=True):
            if i != label:
                pair = (min(i, label), max(i, label))
                taken[pair] = taken.get(pair, 0.0) + share
    per_image = {
        (a, b): share / (count[a] + count[b]) for (a, b), share in taken.items() if a in example and b in example
    }
    worst = sorted(per_image.items(), key=lambda item: item[1], reverse=True)[:EXTREMES]
    return [
        {
            "share": share,
            "sides": [{"picture": thumbnails[example[label]], "name": names[label]} for label in pair],
        }
        for pair, share in worst
    ]


def _searches(
    model: CLIP, embedded: Embedded, sentences: Sequence[str], thumbnails: Thumbnails
) -> list[dict[str, Any]]:
    """What each sentence finds; an image that has the sentence as its caption is marked as right."""
    if not sentences:
        return []
    pairs = embedded.pairs()
    similarity = embed_texts(model, list(sentences)) @ embedded.features.T
    best = best_first(similarity, FOUND)
    return [
        {
            "sentence": sentence,
            "hits": [
                {
                    "picture": thumbnails[pairs[i].key],
                    "caption": (pairs[i].captions or (pairs[i].key,))[0],
                    "right": sentence in pairs[i].captions,
                    "similarity": value,
                }
                for i, value in zip(indices, values, strict=True)
            ],
        }
        for sentence, indices, values in zip(sentences, best.tolist(), similarity.gather(1, best).tolist(), strict=True)
    ]


def _captions(source: Source) -> list[str]:
    """Some captions of the source to search for."""
    different = sorted(set(source.captions()))
    return random.Random(0).sample(different, min(SENTENCES, len(different)))
