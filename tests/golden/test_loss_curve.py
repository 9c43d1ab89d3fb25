"""Ten steps of training give the losses that are on record: a change of the mathematics does not go unnoticed.

Recorded with torch 2.13.0 on an x86-64 CPU in float32. Other machines sum in another order; over ten steps the losses
then differ by less than 1e-3 of their value. Write it anew with --update-snapshots, and say why in CHANGELOG.md.
"""

import dataclasses
import json
from pathlib import Path

import pytest

from limner.config import TrainConfig
from limner.demo.pairs import write_demo
from limner.recipes import digits
from limner.run import RunDirectory
from limner.training import log
from limner.training.loop import train

GOLDEN = Path(__file__).parent / "losses" / "digits.json"


def test_the_loss_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest):
    monkeypatch.setattr(log, "LOG_EVERY", 1)
    write_demo(tmp_path, source="digits", say=lambda _: None)
    config = dataclasses.replace(
        digits(),
        data=str(tmp_path / "train"),
        test=str(tmp_path / "test"),
        out=tmp_path / "run",
        train=TrainConfig(batch_size=64, epochs=640 / 1438, precision="fp32"),
    )
    losses = [line["loss"] for line in RunDirectory(train(config)).read_metrics()]
    assert len(losses) == 10
    if request.config.getoption("--update-snapshots"):
        GOLDEN.write_text(json.dumps(losses, indent=1) + "\n")
    assert losses == pytest.approx(json.loads(GOLDEN.read_text()), rel=1e-3)
