"""The whole of limner on real handwriting: does it learn, and is everything there that a person is promised?"""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from limner.config import RunConfig
from limner.demo import tour
from limner.demo.tour import run_demo, train_or_continue
from limner.errors import ConfigError
from limner.evaluation import suite
from limner.model.clip import CLIP
from limner.report import run as report
from limner.run import RunDirectory
from limner.store import store


def test_it_learns_to_read_digits(digits_run: Path):
    summary = json.loads((digits_run / "summary.json").read_text())
    assert summary["zero_shot"]["classes"] == 10
    assert summary["zero_shot"]["top1"] > 0.93  # chance is 0.10; 0.97 to 0.99 over seeds
    assert summary["train"]["pairs"] == 11520 and summary["train"]["seconds"] > 0
    losses = [line["loss"] for line in RunDirectory(digits_run).read_metrics()]
    assert losses[-1] < 0.8 * losses[0]


def test_the_report_is_one_file_with_everything_in_it(digits_run: Path):
    html = (digits_run / "report.html").read_text()
    for heading in (
        "Training",
        "Pictures and their likeliest names",
        "Best classes",
        "Worst classes",
        "Most confused pairs",
        "Search",
        "How to repeat this",
    ):
        assert f">{heading}<" in html
    assert html.count("data:image/webp;base64,") > 60
    assert not re.search(r'(src|href)="(?!data:)', html) and "<script" not in html
    assert "95 % interval" in html and "the digit three" in html
    assert len(html) < 3_000_000


def test_a_second_call_measures_again_and_a_changed_one_is_refused(digits_run: Path, monkeypatch: pytest.MonkeyPatch):
    """It loads the model once, and encodes each test picture once for all that it shows of them."""
    monkeypatch.chdir(digits_run.parent.parent)
    loaded, encoded, plain_load, plain_encode = [], [], store.load, CLIP.encode_image

    def load(path: Path, **settings: Any) -> CLIP:
        loaded.append(path)
        return plain_load(path, **settings)

    def encode_image(self: CLIP, images: Any, **settings: Any) -> Any:
        encoded.append(len(images))
        return plain_encode(self, images, **settings)

    for module in (tour, suite, report):
        monkeypatch.setattr(module, "load", load)
    monkeypatch.setattr(CLIP, "encode_image", encode_image)
    before = (digits_run / "model" / "model.safetensors").stat().st_mtime_ns
    assert run_demo("digits") == digits_run / "report.html"
    assert (digits_run / "model" / "model.safetensors").stat().st_mtime_ns == before
    assert len(loaded) == 1 and sum(encoded) == 359
    config: RunConfig = RunDirectory(digits_run).read_config()
    with pytest.raises(ConfigError, match="another --out"):
        train_or_continue(replace(config, seed=5), RunDirectory(digits_run))
