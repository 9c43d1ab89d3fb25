"""report.html: one self-contained file about a run, from what training and evaluation left in its directory.

```
metrics.jsonl ─> curves            eval/TASK.json ─> numbers, pictures with names, best and worst, confused pairs
model/ + the task's pictures ─> thumbnails, and what a few sentences find
```
"""

import random
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment

from limner.data.pairs import Source
from limner.data.sources.read import read_pictures
from limner.embed import image_features
from limner.errors import ConfigError, DataError
from limner.evaluation.tasks import own_task
from limner.files import read_json, write_text
from limner.model.clip import CLIP
from limner.report.html import Curve, Thumbnails
from limner.run import RunDirectory
from limner.store.store import load

GRID = 48
"""Thumbnails in the grid of examples."""
EXTREMES = 12
"""Best, worst and confused classes that are shown."""
FOUND = 8
"""Thumbnails shown for each sentence."""
SENTENCES = 6
THUMBNAIL = 72
"""Pixels on the shorter side of a thumbnail."""


def write_report(path: Path, *, sentences: Sequence[str] = ()) -> Path:
    """Write RUN/report.html. `sentences` are searched for in the test pictures; captions of the test by default."""
    run = RunDirectory(path)
    results = [read_json(file) for file in sorted(run.evaluations.glob("*.json"))]
    if not results:
        raise ConfigError(
            f"The run {path}", must="have been evaluated", got="no file in eval/", then=f"Run: limner eval {path}"
        )
    config, model = run.read_config(), load(path)
    metrics = run.read_metrics()
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": lambda share: f"{share:.1%}"}
    template = environment.from_string(files("limner.report").joinpath("page.html").read_text(encoding="utf-8"))
    html = template.render(
        name=run.path.resolve().name,
        config=config,
        data=read_json(run.data),
        environment=read_json(run.path / "env.json"),
        fingerprint=model.fingerprint,
        last=metrics[-1] if metrics else {},
        curves=[
            Curve.of(metrics, "loss", "loss"),
            Curve.of(metrics, "accuracy", "in-batch accuracy"),
            Curve.of(metrics, "grad_norm", "gradient norm"),
            Curve.of(metrics, "logit_scale", "logit scale"),
        ],
        tasks=[_task(result, _task_source(result, run), model, sentences) for result in results],
    )
    write_text(run.report, html)
    return run.report


def _task_source(result: dict[str, Any], run: RunDirectory) -> Source:
    """The pictures that a result was measured on; they must still be the same."""
    source = own_task(run) if result["kept_back"] else read_pictures(result["data"])
    if source.fingerprint != result["rows"][0]["data"]:
        raise DataError(
            f"The pictures at {source.path}",
            must="be those that were measured",
            got="others",
            then=f"Run: limner eval {run.path} --data {source.path}",
        )
    return source


# --- curves ----------------------------------------------------------------------------------------------------------


# --- one task --------------------------------------------------------------------------------------------------------


def _task(result: dict[str, Any], source: Source, model: CLIP, sentences: Sequence[str]) -> dict[str, Any]:
    pictures = Thumbnails(source)
    names, predictions = result["class_names"], result["predictions"]
    shown = random.Random(0).sample(predictions, min(GRID, len(predictions)))
    ranked = _classes_by_certainty(predictions)
    asked = list(sentences) or _captions(source)

    def card(prediction: dict[str, Any]) -> dict[str, Any]:
        return {
            "picture": pictures[prediction["key"]],
            "name": names[prediction["label"]],
            "held_out": prediction["held_out"],
            "right": prediction["right"],
            "top": [
                {"name": names[i], "share": share, "right": i == prediction["label"]}
                for i, share in zip(prediction["top"], prediction["probabilities"], strict=True)
            ],
        }

    return {
        "name": result["task"],
        "rows": result["rows"],
        "skipped": result["skipped"],
        "templates": result["templates"],
        "chance": 1 / len(names) if names else None,
        "examples": [card(p) for p in shown],
        "best": [card(p) for p in ranked[:EXTREMES]],
        "worst": [card(p) for p in ranked[::-1][:EXTREMES]],
        "confused": _confused(predictions, names, pictures),
        "searches": _searches(model, source, asked, pictures),
    }


def _classes_by_certainty(predictions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One picture of each class, the class whose right name gets the most probability on average first."""
    of_class: dict[int, list[dict[str, Any]]] = {}
    for prediction in predictions:
        of_class.setdefault(prediction["label"], []).append(prediction)
    ordered = sorted(of_class.values(), key=lambda several: sum(p["right"] for p in several) / len(several))
    return [several[0] for several in reversed(ordered)]


def _confused(
    predictions: Sequence[dict[str, Any]], names: Sequence[str], pictures: "Thumbnails"
) -> list[dict[str, Any]]:
    """The pairs of classes that take each other's probability most, with a picture of each."""
    taken: dict[tuple[int, int], float] = {}
    example: dict[int, str] = {}
    count: dict[int, int] = {}
    for prediction in predictions:
        label = prediction["label"]
        example.setdefault(label, prediction["key"])
        count[label] = count.get(label, 0) + 1
        for i, share in zip(prediction["top"], prediction["probabilities"], strict=True):
            if i != label:
                pair = (min(i, label), max(i, label))
                taken[pair] = taken.get(pair, 0.0) + share
    per_picture = {
        (a, b): share / (count[a] + count[b]) for (a, b), share in taken.items() if a in example and b in example
    }
    worst = sorted(per_picture.items(), key=lambda item: item[1], reverse=True)[:EXTREMES]
    return [
        {
            "share": share,
            "sides": [{"picture": pictures[example[label]], "name": names[label]} for label in pair],
        }
        for pair, share in worst
    ]


@torch.inference_mode()
def _searches(model: CLIP, source: Source, sentences: Sequence[str], pictures: "Thumbnails") -> list[dict[str, Any]]:
    """What each sentence finds; a picture that has the sentence as its caption is marked as right."""
    if not sentences:
        return []
    kept, features, _ = image_features(model, source)
    similarity = model.encode_text(list(sentences)) @ features.T
    best = similarity.topk(min(FOUND, len(kept)), dim=1)
    return [
        {
            "sentence": sentence,
            "hits": [
                {
                    "picture": pictures[source[kept[i]].key],
                    "caption": (source[kept[i]].captions or (source[kept[i]].key,))[0],
                    "right": sentence in source[kept[i]].captions,
                    "similarity": value,
                }
                for i, value in zip(indices, values, strict=True)
            ],
        }
        for sentence, indices, values in zip(sentences, best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _captions(source: Source) -> list[str]:
    """Some captions of the source to search for."""
    different = sorted(set(source.captions()))
    return random.Random(0).sample(different, min(SENTENCES, len(different)))
