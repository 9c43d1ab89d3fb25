"""Planted differences are found, and each cause has its share."""

import io
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from limner.config import DEFAULT_TEMPLATES
from limner.errors import ConfigError
from limner.evaluation.explain import explain, shapley
from limner.evaluation.suite import evaluate_run
from limner.evaluation.tasks import read_task
from limner.model.clip import CLIP
from limner.store.store import load

NORMALISED = {"mean": [0.6, 0.6, 0.6], "std": [0.35, 0.35, 0.35]}


def plain_accuracy(model: CLIP, data: Path, told: dict[str, Any]) -> float:
    """The accuracy under the conditions in `told`, written out without anything of limner's evaluation."""
    task = read_task(data)
    names = told.get("class_names", task.classes.class_names)
    templates = told.get("templates", list(DEFAULT_TEMPLATES))
    size, rows, labels = model.architecture.image_size, [], []
    filters = {"bicubic": Image.Resampling.BICUBIC, "nearest": Image.Resampling.NEAREST}
    mean, std = (torch.tensor(told.get(k, getattr(model.architecture, f"image_{k}"))) for k in ("mean", "std"))
    for pair, label in zip(task.test.source, task.test.labels, strict=True):
        image = Image.open(io.BytesIO(pair.read())).convert("RGB")
        image = image.resize((size, size), filters[told.get("interpolation", "bicubic")])
        pixels = torch.from_numpy(np.array(image)).float() / 255
        rows.append(((pixels - mean) / std).permute(2, 0, 1))
        labels.append(label)
    with torch.no_grad():
        features = model.encode_image(torch.stack(rows))
        classes = []
        for name in names:
            own = torch.stack([model.encode_text(one.replace("{}", name))[0] for one in templates]).mean(dim=0)
            classes.append(own / own.norm())
    scores = (features @ torch.stack(classes).T).numpy()
    if told.get("ties") == "wrong":
        right = [(row >= row[label]).sum() == 1 for row, label in zip(scores, labels, strict=True)]
    else:
        right = scores.argmax(axis=1) == np.array(labels)
    return float(np.mean(right))


def swapped(names: list[str], *pairs: tuple[int, int]) -> list[str]:
    names = list(names)
    for one, other in pairs:
        names[one], names[other] = names[other], names[one]
    return names


@pytest.fixture(scope="module")
def data(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits of the run, at three times their size and with noise, so that it matters how they are resized."""
    folder, rng = tmp_path_factory.mktemp("noisy"), np.random.default_rng(0)
    task = read_task(digits_run.parent.parent / "data/digits/test")
    for number, (pair, label) in enumerate(zip(task.test.source, task.test.labels, strict=True)):
        assert isinstance(label, int)
        image = Image.open(io.BytesIO(pair.read())).convert("RGB")
        pixels = np.array(image.resize((3 * image.width, 3 * image.height), Image.Resampling.BICUBIC)).astype(float)
        pixels += rng.normal(0, 90, pixels.shape)
        place = folder / task.classes.class_names[label]
        place.mkdir(exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / f"{number}.png")
    return folder


def test_planted_causes_are_named_with_their_shares(digits_run: Path, data: Path, tmp_path: Path):
    """Ten of ten, alone and together, within 0.3 point of what a plain computation gives."""
    evaluate_run(digits_run / "model", data, out=tmp_path / "first")
    model, names = load(digits_run).eval(), read_task(data).classes.class_names
    planted = {
        "class order": {"class_names": swapped(names, (3, 8))},
        "template ensemble": {"templates": ["many {} of fur"]},
        "interpolation": {"interpolation": "nearest"},
        "normalisation": NORMALISED,
        "tie rule": {"ties": "wrong", "class_names": [*names[:-1], names[0]]},
    }
    alone = [("class order",), ("template ensemble",), ("interpolation",), ("normalisation",)]
    together = [*itertools.combinations([one for (one,) in alone], 2)]
    cases = [*alone, *together]
    assert len(cases) == 10
    plain = plain_accuracy(model, data, {})
    gaps = list[float]()
    for number, causes in enumerate(cases):

        def value(some: frozenset[str]) -> float:
            return plain_accuracy(model, data, {k: v for one in some for k, v in planted[one].items()})

        told: dict[str, Any] = {k: v for one in causes for k, v in planted[one].items()}
        second = tmp_path / f"{number}.json"
        second.write_text(json.dumps({"value": value(frozenset(causes)), **told}))
        found = explain(tmp_path / "first", second)
        assert set(found.causes) == set(causes)
        assert abs(found.unexplained) <= 0.003 and found.first == pytest.approx(plain, abs=0.003)
        for cause in causes:
            expected = shapley(cause, list(causes), value)
            assert found.causes[cause] == pytest.approx(expected, abs=0.003)
        gaps.append(found.difference)
    assert sum(abs(gap) >= 0.05 for gap in gaps) >= 8


def test_the_tie_rule_is_a_cause(digits_run: Path, data: Path, tmp_path: Path):
    names = read_task(data).classes.class_names
    same = {"model": str(digits_run / "model"), "data": str(data), "class_names": [*names[:-1], names[0]]}
    (tmp_path / "a.json").write_text(json.dumps({"value": 0.9, **same}))
    (tmp_path / "b.json").write_text(json.dumps({"value": 0.8, "ties": "wrong"}))
    found = explain(tmp_path / "a.json", tmp_path / "b.json")
    zeros = sum(label == 0 for label in read_task(data).test.labels) / len(read_task(data).test.labels)
    assert set(found.causes) == {"tie rule"} and found.causes["tie rule"] == pytest.approx(-zeros, abs=0.02)
    assert found.unexplained == pytest.approx(-0.1 - found.causes["tie rule"])


def test_shares_add_up():
    worth = {"a": 3.0, "b": 5.0, "c": 7.0}

    def value(some: frozenset[str]) -> float:
        return sum(worth[one] for one in some) + (10.0 if {"a", "b"} <= some else 0.0)

    found = [shapley(one, list(worth), value) for one in worth]
    assert found == pytest.approx([8.0, 10.0, 7.0]) and math.isclose(sum(found), value(frozenset(worth)))


@pytest.mark.parametrize(
    "told, expected",
    [
        ([1], "must hold a value"),
        ({"value": "high"}, "must hold a value"),
        ({"value": 0.5, "resize": "bilinear"}, "must say nothing else. Got resize"),
        ({"value": 0.5, "interpolation": "lanczos"}, "must say its conditions"),
        ({"value": 0.5, "class_names": ["one"]}, "must be one for each of the 10 classes"),
        ({"value": 0.5, "templates": 3}, "must say its conditions"),
    ],
)
def test_files_that_are_no_result(digits_run: Path, tmp_path: Path, told: object, expected: str):
    (tmp_path / "b.json").write_text(json.dumps(told))
    with pytest.raises(ConfigError, match=expected):
        explain(digits_run, tmp_path / "b.json")
    with pytest.raises(ConfigError, match="must hold one zero-shot accuracy"):
        explain(digits_run.parent, tmp_path / "b.json")
