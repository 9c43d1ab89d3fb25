"""The demo itself, run by name (`pytest -m slow`): it needs npm and five minutes on two cores."""

import json
from pathlib import Path

import pytest

from limner.demo.tour import run_demo


@pytest.mark.slow
def test_it_names_drawings_in_a_style_that_it_never_saw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    run_demo("emoji")
    summary = json.loads((tmp_path / "runs" / "demo" / "summary.json").read_text())
    assert summary["zero_shot"]["classes"] == 1906
    assert summary["zero_shot"]["top1"] > 0.30 and summary["zero_shot"]["top5"] > 0.54
    assert summary["train"]["peak_memory_gb"] < 3
