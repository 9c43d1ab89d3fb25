import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from limner.architecture import ZOO
from limner.cli.command import main
from limner.data.tokenizer import Tokenizer
from limner.errors import ModelError
from limner.model.clip import create
from limner.store.doctor import examine


@pytest.fixture(params=["ViT-mini", "RN-nano"])
def folder(request: pytest.FixtureRequest, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    create(request.param, tokenizer=tokenizer).save(tmp_path)
    return tmp_path


def failed(folder: Path) -> list[str]:
    return [check.what for check in examine(str(folder)) if not check.fine]


def test_a_model_is_reproduced_where_it_was_saved(folder: Path):
    assert failed(folder) == []


@pytest.mark.parametrize("part", ["pixels", "tokens", "image_features", "text_features"])
def test_each_stage_is_looked_at(folder: Path, part: str):
    golden = load_file(folder / "golden.safetensors")
    golden[part] = golden[part].flip(0) if part == "tokens" else golden[part] + (1 if part == "pixels" else 1e-3)
    save_file(golden, folder / "golden.safetensors")
    expected = {"pixels": "preprocessing", "tokens": "tokens"}.get(part, part.replace("_", " "))
    assert expected in failed(folder)


def test_the_second_copy_of_the_weights_is_compared(tokenizer: Tokenizer, tmp_path: Path):
    create("ViT-mini", tokenizer=tokenizer).save(tmp_path)
    weights = load_file(tmp_path / "open_clip_model.safetensors")
    weights["visual.class_embedding"] = weights["visual.class_embedding"] + 1
    save_file(weights, tmp_path / "open_clip_model.safetensors")
    assert failed(tmp_path) == ["weights for open_clip"]


def test_without_golden_vectors_it_says_how_to_get_them(folder: Path):
    (folder / "golden.safetensors").unlink()
    with pytest.raises(ModelError, match="limner convert"):
        examine(str(folder))


def test_a_model_without_a_tokenizer_has_golden_tokens(tmp_path: Path, tokenizer: Tokenizer):
    model = create("RN-nano", tokenizer=tokenizer)
    model.tokenizer = None
    model.save(tmp_path)
    golden = load_file(tmp_path / "golden.safetensors")
    assert (golden["tokens"].argmax(1) == torch.tensor([2, 7, 38, 76])).all()
    assert failed(tmp_path) == []
    short = dataclasses.replace(
        ZOO["RN-nano"], text=dataclasses.replace(ZOO["RN-nano"].text, context_length=6, vocab_size=90)
    )
    create(short).save(tmp_path)
    assert failed(tmp_path) == []
    assert "limner" in json.loads((tmp_path / "config.json").read_text())


def test_the_command_ends_with_1_where_numbers_differ(folder: Path, capsys: pytest.CaptureFixture[str]):
    golden = load_file(folder / "golden.safetensors")
    golden["text_features"] = golden["text_features"].neg()
    save_file(golden, folder / "golden.safetensors")
    with pytest.raises(SystemExit) as exited:
        main(["doctor", str(folder)])
    output = capsys.readouterr()
    assert exited.value.code == 1
    assert "NOT REPRODUCED" in output.out and "on this machine must be those" in output.err
