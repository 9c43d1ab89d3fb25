"""Models on disk: what limner writes, and what it reads of others'. Parity with the others is in tests/parity."""

import argparse
import copy
import json
import math
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from safetensors.torch import load_file, save_file

import limner
from limner.architecture import PAPER, ZOO, Architecture, ResNetConfig, TextConfig, ViTConfig
from limner.data.tokenizer import Tokenizer
from limner.errors import ConfigError, LimnerError, ModelError, StorageError
from limner.model.clip import CLIP, create
from limner.store import convert
from limner.store.doctor import examine
from limner.store.pickles import OPENAI_FILES
from limner.store.store import chosen_device, fingerprint_now, load, load_weights, save
from limner.store.tensors import Tensors, read_tensors, write_tensors

TEXT = TextConfig(layers=2, width=128, heads=2, vocab_size=602, context_length=20)
VIT = Architecture(image=ViTConfig(layers=2, width=64, heads=1, patch_size=8), text=TEXT, embed_dim=32, image_size=32)
RESNET = replace(VIT, image=ResNetConfig(layers=(1, 2, 1, 1), width=8, heads=4), image_size=64)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the two were of the paper: files without a config are read for its shapes alone."""
    monkeypatch.setitem(ZOO, "RN50", RESNET)
    monkeypatch.setitem(ZOO, "ViT-B/32", VIT)


@pytest.fixture(params=[VIT, RESNET], ids=["ViT", "ResNet"])
def model(request: pytest.FixtureRequest) -> CLIP:
    with torch.random.fork_rng():
        return CLIP(request.param).eval()


def features(model: CLIP) -> tuple[torch.Tensor, torch.Tensor]:
    size, generator = model.architecture.image_size, torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=generator)
    tokens = torch.randint(0, 600, (2, 20), generator=generator)
    tokens[:, 9] = 601
    with torch.no_grad():
        return model.encode_image(pixels), model.encode_text(tokens)


def assert_same(one: CLIP, two: CLIP) -> None:
    assert all(torch.equal(a, b) for a, b in zip(features(one), features(two), strict=True))


def write_open_clip(folder: Path, model: CLIP, name: str = "open_clip_model.safetensors") -> None:
    folder.mkdir(exist_ok=True)
    weights = convert.to_openai(model.state_dict(), model.architecture)
    save_file(weights, folder / name) if name.endswith("safetensors") else torch.save(weights, folder / name)
    config = convert.open_clip_config(model.architecture, own_tokenizer=False)
    (folder / "open_clip_config.json").write_text(json.dumps(config))


def test_names_are_a_bijection_and_tensors_come_back(model: CLIP):
    shape, weights = model.architecture, model.state_dict()
    ways = [(convert.to_openai, convert.from_openai)]
    if isinstance(shape.image, ViTConfig):
        ways.append((convert.to_hf, convert.from_hf))
    for there, back in ways:
        again = back(there(weights, shape), shape)
        assert set(again) == set(weights)
        assert all(torch.equal(again[name], weights[name]) for name in weights)


def test_the_directory_is_for_three_readers_and_comes_back_to_the_bit(
    model: CLIP, tokenizer: Tokenizer, tmp_path: Path
):
    model.save(tmp_path)
    assert_same(model, load(tmp_path))
    assert load(tmp_path).fingerprint == model.fingerprint
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"config.json", "open_clip_config.json", "model.safetensors", "preprocessor_config.json"}
    is_vit = isinstance(model.architecture.image, ViTConfig)
    assert ("open_clip_model.safetensors" in names) == is_vit
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.get("model_type") == ("clip" if is_vit else None)
    if is_vit:
        assert config["text_config"]["hidden_act"] == "quick_gelu"
    assert json.loads((tmp_path / "open_clip_config.json").read_text())["model_cfg"]["quick_gelu"] is True


def test_the_fingerprint_is_of_the_model_not_of_its_files(model: CLIP, tmp_path: Path):
    model.save(tmp_path / "limner")
    write_open_clip(tmp_path / "open_clip", model)
    assert load(tmp_path / "open_clip").fingerprint == model.fingerprint
    with torch.no_grad():
        model.log_logit_scale += 1e-6
    model.save(tmp_path / "other")
    assert load(tmp_path / "other").fingerprint != load(tmp_path / "limner").fingerprint


def test_an_open_clip_directory(model: CLIP, tmp_path: Path):
    write_open_clip(tmp_path, model)
    assert_same(model, load(tmp_path))
    assert_same(model, load(tmp_path / "open_clip_model.safetensors"))  # the config beside it is used


@pytest.mark.usefixtures("known")
def test_the_activation_is_part_of_the_checkpoint(model: CLIP, tmp_path: Path):
    write_open_clip(tmp_path, model)
    path = tmp_path / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["quick_gelu"] = False
    path.write_text(json.dumps(config))
    assert load(tmp_path).architecture.activation == "gelu"
    for place in (tmp_path, tmp_path / "open_clip_model.safetensors"):
        with pytest.raises(ModelError, match="must be what its config says, gelu"):
            load(place, activation="quick_gelu")
    path.unlink()
    with pytest.raises(ModelError, match="must be known: weights do not say it"):
        load(tmp_path / "open_clip_model.safetensors")
    assert_same(model, load(tmp_path / "open_clip_model.safetensors", activation="quick_gelu"))


def test_settings_that_limner_does_not_have_are_all_named(tmp_path: Path):
    config = convert.open_clip_config(VIT, own_tokenizer=False)
    assert config is not None
    config["model_cfg"]["vision_cfg"] |= {"ls_init_value": 1e-5, "patch_dropout": 0.5, "attentional_pool": False}
    config["model_cfg"]["text_cfg"]["hf_model_name"] = "bert"
    config["preprocess_cfg"]["resize_mode"] = "squash"
    with pytest.raises(ModelError) as caught:
        convert.architecture_from_open_clip(config, where="x")
    assert caught.value.got.startswith("4 that limner's encoders do not have")
    for fault in (
        "ls_init_value is 1e-05",
        "patch_dropout is 0.5",
        "hf_model_name is 'bert'",
        "resize_mode is 'squash'",
    ):
        assert fault in caught.value.got
    hf = convert.hf_config(VIT)
    hf["text_config"]["eos_token_id"] = 7
    hf["vision_config"]["hidden_act"] = "gelu"
    with pytest.raises(ModelError, match=r"eos_token_id is 7.*hidden_act is gelu and quick_gelu"):
        convert.architecture_from_hf(hf, {}, where="x")


def test_an_old_hugging_face_config_means_vit_b_32_and_an_end_token_of_2_is_the_highest_id():
    shape = convert.architecture_from_hf({"text_config": {"eos_token_id": 2}}, {}, where="x")
    assert shape == ZOO["ViT-B/32"]


# --- pickles ---------------------------------------------------------------------------------------------------------


class Tree(torch.nn.Module):
    """Tensors under dotted names, as the modules that OpenAI's archives hold."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        branches: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            first, _, rest = name.partition(".")
            if rest:
                branches.setdefault(first, {})[rest] = tensor
            else:
                self.register_buffer(first, tensor)
        for name, below in branches.items():
            self.add_module(name, Tree(below))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.fixture
def archive(model: CLIP, tmp_path: Path) -> Path:
    """A TorchScript archive as OpenAI's: half precision, with three numbers among the tensors."""
    weights = convert.to_openai(model.state_dict(), model.architecture)
    half = {name: t.half() if t.is_floating_point() else t for name, t in weights.items()}
    numbers = {name: torch.tensor(1) for name in ("input_resolution", "context_length", "vocab_size")}
    path = tmp_path / "model.pt"
    with pytest.warns(DeprecationWarning):
        torch.jit.save(torch.jit.trace(Tree(half | numbers), torch.zeros(1)), path)
    return path


@pytest.mark.usefixtures("known")
def test_an_archive_of_openai_is_opened_by_its_hash_or_by_trust(
    archive: Path, model: CLIP, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(ModelError, match="one of the nine that OpenAI published"):
        load(archive)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(tensor.half())
    assert_same(model, load(archive, trust=True, activation="quick_gelu"))
    with pytest.raises(ModelError, match="activation"):  # trusted, but nobody said what it computes
        load(archive, trust=True)
    monkeypatch.setitem(OPENAI_FILES, limner.files.sha256_of(archive), "ViT-B/32")
    assert_same(model, load(archive))
    damaged = bytearray(archive.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    archive.write_bytes(damaged)
    with pytest.raises(ModelError, match="one of the nine that OpenAI published"):
        load(archive)


@pytest.mark.usefixtures("known")
def test_an_archive_that_changes_after_it_was_hashed_is_not_opened(archive: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("limner.store.pickles.sha256_of", lambda _: next(iter(OPENAI_FILES)))
    with pytest.raises(ModelError, match=r"The TorchScript archive .* Got a file that changed while it was read"):
        load(archive)


def test_a_damaged_archive_is_explained(tmp_path: Path):
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:  # looks like one, but there is nothing in it
        archive.writestr("model/constants.pkl", b"")
    with pytest.raises(ModelError, match=r"The TorchScript archive .* must be whole"):
        load(path, trust=True, activation="gelu")
    path.write_bytes(b"PK half a file")
    with pytest.raises(ModelError, match="tensors and nothing else"):
        load(path, allow_pickle=True, activation="gelu")


@pytest.mark.usefixtures("known")
def test_pickles_need_a_word_and_run_nothing(model: CLIP, tmp_path: Path):
    write_open_clip(tmp_path, model, "open_clip_pytorch_model.bin")
    with pytest.raises(ModelError, match="only the pickle"):
        load(tmp_path)
    assert_same(model, load(tmp_path, allow_pickle=True))
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')  # and a pickle of transformers': neither is opened
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="only the pickle"):
        load(tmp_path)
    weights = torch.load(tmp_path / "open_clip_pytorch_model.bin", weights_only=True)
    save_file(weights, tmp_path / "open_clip_model.safetensors")
    assert_same(model, load(tmp_path))  # what is safe comes first
    checkpoint = {"state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}, "epoch": 3}
    torch.save(checkpoint, tmp_path / "epoch_3.pt")
    with pytest.raises(ModelError, match="a pickle"):
        load(tmp_path / "epoch_3.pt")
    assert_same(model, load(tmp_path / "epoch_3.pt", allow_pickle=True))

    class Canary:
        def __reduce__(self):  # what a malicious file does
            return (Path.touch, (tmp_path / "canary",))

    torch.save({"weight": Canary()}, tmp_path / "bad.pt")
    with pytest.raises(ModelError, match="tensors and nothing else"):
        load(tmp_path / "bad.pt", allow_pickle=True)
    assert not (tmp_path / "canary").exists()


# --- other people's checkpoints ---------------------------------------------------------------------------------------


def under(prefix: str, weights: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in weights.items()}


@pytest.fixture
def theirs(model: CLIP, tmp_path: Path) -> Tensors:
    """The weights in open_clip's names; their config is in tmp_path."""
    write_open_clip(tmp_path, model)
    (tmp_path / "open_clip_model.safetensors").unlink()
    return convert.to_openai(model.state_dict(), model.architecture)


PREFIXES = ["module.", "_orig_mod.", "model.", "module._orig_mod.", "clip.", "clip_model.", "net.", "a.b_c.d."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_what_a_trainer_puts_before_the_names_is_taken_off(
    model: CLIP, theirs: Tensors, tmp_path: Path, prefix: str, capsys: pytest.CaptureFixture[str]
):
    save_file(under(prefix, theirs), tmp_path / "open_clip_model.safetensors")
    assert_same(model, load(tmp_path))
    assert_same(model, load(tmp_path / "open_clip_model.safetensors"))
    torch.save({"state_dict": under(prefix, theirs), "epoch": 3}, tmp_path / "last.ckpt")
    with pytest.raises(ModelError, match="must be safetensors: a pickle could run code"):
        load(tmp_path / "last.ckpt")
    assert_same(model, load(tmp_path / "last.ckpt", allow_pickle=True))
    assert "other tensors" not in capsys.readouterr().err  # nothing was left out


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "weights", "ckpt"])
def test_weights_lie_under_any_key_beside_what_an_optimizer_keeps(
    model: CLIP, theirs: Tensors, tmp_path: Path, key: str, capsys: pytest.CaptureFixture[str]
):
    kept = {"state": {0: {"exp_avg": torch.zeros(3), "step": torch.tensor(1)}}, "param_groups": [{"lr": 0.1}]}
    for name in ("epoch.pt", "epoch.tar"):  # by what is in a file: names are as people like them
        torch.save({key: theirs, "optimizer": kept, "epoch": 1, "scheduler": {"last": 2}}, tmp_path / name)
        assert_same(model, load(tmp_path / name, allow_pickle=True))
        assert f"the weights under {key} are read, 2 other tensors are not" in capsys.readouterr().err
        with pytest.raises(ModelError, match="a pickle could run code"):
            load(tmp_path / name)


def test_wrappers_inside_names_and_numbers_that_are_no_weights_are_taken_off(
    model: CLIP, theirs: Tensors, tmp_path: Path
):
    def wrapped(name: str) -> str:
        return name.replace("visual.", "visual._orig_mod.").replace("blocks.0.", "blocks.0._checkpoint_wrapped_module.")

    weights = {wrapped(name): tensor for name, tensor in theirs.items()} | {"input_resolution": torch.tensor(32)}
    save_file(weights, tmp_path / "plain.safetensors")
    save_file(under("model.", weights) | {"n_averaged": torch.tensor(7)}, tmp_path / "model.safetensors")
    for name in ("plain.safetensors", "model.safetensors"):
        assert_same(model, load(tmp_path / name))


def test_plain_weights_are_read_before_averaged_ones(
    model: CLIP, theirs: Tensors, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other = {name: tensor + 1 for name, tensor in theirs.items()}
    for name in ("ema_state_dict", "state_dict_ema", "model_ema", "ema", "swa_model"):
        torch.save({"state_dict": theirs, name: under("module.", other)}, tmp_path / "both.pt")
        assert_same(model, load(tmp_path / "both.pt", allow_pickle=True))
        assert f"also has averaged weights, under {name}.module: the plain ones are read" in capsys.readouterr().err
        torch.save({name: theirs}, tmp_path / "averaged.pt")
        assert_same(model, load(tmp_path / "averaged.pt", allow_pickle=True))
    save_file(theirs | under("ema.", other), tmp_path / "model.safetensors")
    assert_same(model, load(tmp_path / "model.safetensors"))
    assert "averaged weights, under ema" in capsys.readouterr().err


def test_two_models_in_a_file_are_an_error_unless_they_are_one(model: CLIP, theirs: Tensors, tmp_path: Path):
    other = {name: tensor + 1 for name, tensor in theirs.items()}
    torch.save({"state_dict": under("student.", theirs) | under("teacher.", other)}, tmp_path / "two.pt")
    with pytest.raises(ModelError, match=r"those of 2, under state_dict\.student and state_dict\.teacher"):
        load(tmp_path / "two.pt", allow_pickle=True)
    torch.save({"state_dict": under("model.", theirs) | under("loss.model.", theirs)}, tmp_path / "shared.pt")
    assert_same(model, load(tmp_path / "shared.pt", allow_pickle=True))
    broken = theirs | {"logit_scale": torch.tensor(float("nan"))}
    torch.save({"state_dict": under("model.", broken) | under("loss.model.", broken)}, tmp_path / "shared.pt")
    assert load(tmp_path / "shared.pt", allow_pickle=True, allow_nonfinite=True)  # NaN or not, it is one
    save_file(theirs | under("_orig_mod.", other), tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="that are there twice"):
        load(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "Got a dictionary of epoch"),
        ([1], "Got list"),
        ({"args": argparse.Namespace(a=1)}, r"argparse\.Namespace too.*save the weights alone: torch\.save"),
        ({"best": np.float64(1)}, r"scalar too.*save the weights alone: torch\.save"),
        ({"state_dict": {"conv.weight": torch.zeros(1)}}, "conv.weight is unknown"),
    ],
)
def test_a_pickle_of_other_things_says_what(theirs: Tensors, tmp_path: Path, content: object, message: str):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ModelError, match=message):
        load(tmp_path / "other.pt", allow_pickle=True)


def test_weights_of_another_dtype_are_listed(theirs: Tensors, tmp_path: Path):
    weights = theirs | {"text_projection": theirs["text_projection"].to(torch.int8)}
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"text\.projection\.weight is torch\.int8"):
        load(tmp_path / "model.safetensors")


def test_a_directory_names_the_weight_files_that_it_does_not_know(theirs: Tensors, tmp_path: Path):
    torch.save(theirs, tmp_path / "last.ckpt")
    with pytest.raises(ModelError, match=r"load one of these: last\.ckpt"):
        load(tmp_path)


# --- numbers that are not finite --------------------------------------------------------------------------------------


def test_a_model_that_is_not_finite_is_kept_and_loaded_only_by_a_word(
    model: CLIP, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with torch.no_grad():
        model.text.projection.weight[0, 0] = math.inf
        model.text.norm.weight[:2] = math.nan
    model.save(tmp_path)
    assert "NaN or infinity in 2 tensors: text.norm.weight (2 of 128)" in capsys.readouterr().err
    assert not (tmp_path / "golden.safetensors").exists()
    with pytest.raises(ModelError, match=r"text\.norm\.weight \(2 of 128\), text\.projection\.weight \(1 of 4,096\)"):
        load(tmp_path)
    assert load(tmp_path, allow_nonfinite=True).fingerprint == model.fingerprint == fingerprint_now(model)
    checks = {check.what: check for check in examine(str(tmp_path))}
    assert checks["fingerprint"].fine and not checks["weights"].fine and "text.norm.weight" in checks["weights"].got


def test_numbers_that_overflow_on_loading_are_noticed(theirs: Tensors, tmp_path: Path):
    for dtype in (torch.float64, torch.float32):  # beyond float32, and beyond bfloat16 alone
        large = 1e300 if dtype == torch.float64 else 3.4e38
        save_file(theirs | {"ln_final.bias": torch.full((128,), large, dtype=dtype)}, tmp_path / "model.safetensors")
        with pytest.raises(ModelError, match=r"text\.norm\.bias \(128 of 128\)"):
            load(tmp_path / "model.safetensors", precision="bf16")


# --- what is passed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [None, 3, b"model", ["model"], "a\0b", "", " ", "x" * 256, "x/" * 2100, "\ud800"])
def test_a_place_for_a_model_is_a_path(model: CLIP, wrong: Any):
    with pytest.raises(ConfigError, match="must be a path"):
        load(wrong)
    with pytest.raises(ConfigError, match="must be a path"):
        limner.save(model, wrong)


def test_what_is_saved_is_a_model_and_what_is_loaded_lies_at_any_path(model: CLIP, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"must be a limner\.CLIP"):
        limner.save(str(tmp_path), tmp_path)
    limner.save(model, str(tmp_path / "model"))
    with os.scandir(tmp_path) as entries:
        assert_same(model, load(next(entries)))
    assert_same(model, load(str(tmp_path / "model"), device=torch.device("cpu")))
    with pytest.raises(ConfigError, match="be a whole number"):
        load(tmp_path / "model", image_size="64")


# --- directories of transformers -------------------------------------------------------------------------------------


@pytest.fixture
def hf_folder(tmp_path: Path) -> Path:
    """A ViT as transformers writes it: no word of limner's."""
    with torch.random.fork_rng():
        model = CLIP(VIT).eval()
    model.save(tmp_path / "hf")
    for name in ("open_clip_config.json", "open_clip_model.safetensors", "golden.safetensors"):
        (tmp_path / "hf" / name).unlink()
    edit(tmp_path / "hf" / "config.json", lambda config: config.pop("limner"))
    return tmp_path / "hf"


def edit(path: Path, change) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_a_checkpoint_in_several_files_may_not_name_a_file_elsewhere(hf_folder: Path):
    expected = features(load(hf_folder))
    weights = load_file(hf_folder / "model.safetensors")
    names = sorted(weights)
    halves = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, half in halves.items():
        save_file({name: weights[name] for name in half}, hf_folder / file)
    index = hf_folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, half in halves.items() for name in half}}))
    (hf_folder / "model.safetensors").unlink()
    assert all(torch.equal(a, b) for a, b in zip(features(load(hf_folder)), expected, strict=True))
    shutil.copy(hf_folder / "model-1.safetensors", hf_folder.parent / "evil.safetensors")
    edit(index, lambda values: values["weight_map"].update({names[0]: "../evil.safetensors"}))
    with pytest.raises(ModelError, match=r"'\.\./evil\.safetensors'"):
        load(hf_folder)


def test_code_that_a_config_names_is_ignored_aloud(hf_folder: Path, capsys: pytest.CaptureFixture[str]):
    edit(hf_folder / "config.json", lambda config: config.update(auto_map={"AutoModel": "evil.Model"}))
    (hf_folder / "evil.py").write_text("raise SystemExit")
    load(hf_folder)
    assert "auto_map" in capsys.readouterr().err


def test_every_tensor_that_does_not_fit_is_listed(hf_folder: Path):
    weights = load_file(hf_folder / "model.safetensors")
    weights["text_projection.weight"] = torch.zeros(3, 3)
    weights["extra"] = torch.zeros(1)
    del weights["vision_model.embeddings.class_embedding"]
    save_file(weights, hf_folder / "model.safetensors")
    with pytest.raises(ModelError) as caught:
        load(hf_folder)
    assert caught.value.got.startswith("3 that do not")
    for fault in (
        "image.class_embedding is missing",
        "extra is unknown",
        "text.projection.weight has the shape [3, 3]",
    ):
        assert fault in caught.value.got


def test_another_kind_of_model_and_a_config_alone(hf_folder: Path, tmp_path: Path):
    (hf_folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="a CLIP's config without weights"):
        load(hf_folder)
    edit(hf_folder / "config.json", lambda config: config.update(model_type="bert"))
    save_file({"weight": torch.zeros(1)}, hf_folder / "model.safetensors")
    with pytest.raises(ModelError, match="another kind of model, bert"):
        load(hf_folder)


def test_the_hub_is_asked_only_by_its_name(hf_folder: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **kw: asked.append((name, kw)) or hf_folder)
    assert load("hf-hub:org/name@v1").architecture == VIT
    (name, options), *rest = asked
    assert name == "org/name" and options["revision"] == "v1" and not rest
    assert not any(pattern.endswith((".bin", ".py", ".pt")) for pattern in options["allow_patterns"])
    assert options["ignore_patterns"] == ["*/*"]

    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(ModelError, match="hf-hub:org/name must be on the hub"):
        load("hf-hub:org/name")


def test_weights_without_a_config_are_read_for_the_papers_shapes_alone(model: CLIP, tmp_path: Path):
    save_file(convert.to_openai(model.state_dict(), model.architecture), tmp_path / "weights.safetensors")
    with pytest.raises(ModelError, match="heads do not show in weights"):
        load(tmp_path / "weights.safetensors", activation="gelu")


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_shapes_are_recognised(name: str):
    with torch.device("meta"):
        weights = CLIP(ZOO[name]).state_dict()
    assert convert.architecture_from_weights(convert.to_openai(weights, ZOO[name]), "quick_gelu") == ZOO[name]


def test_names_of_one_library_under_the_config_of_the_other_are_an_error(hf_folder: Path):
    with torch.random.fork_rng():
        write_open_clip(hf_folder, CLIP(VIT))
    theirs, others = hf_folder / "model.safetensors", hf_folder / "open_clip_model.safetensors"
    hf, openai = theirs.read_bytes(), others.read_bytes()
    theirs.write_bytes(openai)
    with pytest.raises(ModelError, match=r"must have Hugging Face's names.* Got OpenAI's"):
        load(hf_folder)
    (hf_folder / "config.json").unlink()
    others.write_bytes(hf)
    with pytest.raises(ModelError, match=r"must have OpenAI's or open_clip's names.* Got Hugging Face's"):
        load(hf_folder)


@pytest.mark.parametrize("prefix", ["clip.", "module.model."])
def test_a_directory_of_transformers_whose_weights_lie_deeper(hf_folder: Path, prefix: str):
    expected = features(load(hf_folder))
    weights = under(prefix, load_file(hf_folder / "model.safetensors"))
    save_file(weights, hf_folder / "model.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(features(load(hf_folder)), expected, strict=True))
    (hf_folder / "model.safetensors").unlink()
    torch.save({"state_dict": weights}, hf_folder / "pytorch_model.bin")
    assert all(torch.equal(a, b) for a, b in zip(features(load(hf_folder, allow_pickle=True)), expected, strict=True))


def test_hugging_faces_weights_alone_are_sent_to_their_config(hf_folder: Path):
    with pytest.raises(ModelError, match="Load the directory"):
        load(hf_folder / "model.safetensors", activation="gelu")


def test_newer_directories_keep_the_preprocessing_elsewhere(hf_folder: Path, capsys: pytest.CaptureFixture[str]):
    values = json.loads((hf_folder / "preprocessor_config.json").read_text())
    (hf_folder / "preprocessor_config.json").unlink()
    (hf_folder / "processor_config.json").write_text(
        json.dumps({"image_processor": values | {"image_mean": [0.5] * 3}})
    )
    assert load(hf_folder).architecture.image_mean == (0.5, 0.5, 0.5)
    edit(hf_folder / "processor_config.json", lambda config: config["image_processor"].update(rescale_factor=1 / 127.5))
    with pytest.raises(ModelError, match="rescale_factor"):
        load(hf_folder)
    (hf_folder / "processor_config.json").unlink()
    assert load(hf_folder).architecture.image_mean == VIT.image_mean
    assert "does not say how it prepares pictures" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", '{"limner": "x"}'),
        ("config.json", '{"limner": {}}'),
        ("config.json", '{"model_type": "clip", "vision_config": 7}'),
        ("config.json", '{"model_type": "clip", "text_config": {"hidden_size": "64"}}'),
        ("config.json", '{"model_type": "clip", "vision_config": {"num_attention_heads": 0}}'),
        ("open_clip_config.json", "[]"),
        ("open_clip_config.json", '{"model_cfg": {"vision_cfg": null}}'),
        ("open_clip_config.json", '{"model_cfg": {"embed_dim": 32, "vision_cfg": {"head_width": 0}}}'),
        ("open_clip_config.json", '{"model_cfg": {"embed_dim": 32}, "preprocess_cfg": {"mean": 0.5}}'),
    ],
)
def test_malformed_configs_are_errors_of_ours(hf_folder: Path, file: str, content: str):
    if file != "config.json":
        (hf_folder / "config.json").unlink()
    (hf_folder / file).write_text(content)
    with pytest.raises(LimnerError):
        load(hf_folder)


def test_places_that_are_spelt_alike_do_not_replace_each_other(model: CLIP, theirs: Tensors, tmp_path: Path):
    other = {name: tensor + 1 for name, tensor in theirs.items()}
    for number, content in enumerate(({1: theirs, "1": other}, {"a": {"b": theirs}, "a.b": other})):
        torch.save(content, tmp_path / f"{number}.pt")
        with pytest.raises(ModelError, match=r"those of 2, under .* and "):
            load(tmp_path / f"{number}.pt", allow_pickle=True)
    torch.save({1: torch.zeros(1), "1": torch.ones(1)}, tmp_path / "names.pt")
    with pytest.raises(ModelError, match="one name each as text"):
        load(tmp_path / "names.pt", allow_pickle=True)
    torch.save({f"model {number}": theirs if number else other for number in range(500)}, tmp_path / "many.pt")
    with pytest.raises(ModelError, match=r"those of 500, under model 0 and model 1 and model 2 and others\."):
        load(tmp_path / "many.pt", allow_pickle=True)


def test_dictionaries_are_looked_into_to_a_depth_that_is_said(
    model: CLIP, theirs: Tensors, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for depth, is_found in ((7, True), (9, False)):
        content: dict[str, Any] = theirs
        for number in range(depth):
            content = {f"v1.{number}.0": content}
        torch.save(content, tmp_path / "deep.pt")
        if is_found:
            assert_same(model, load(tmp_path / "deep.pt", allow_pickle=True))
        else:
            with pytest.raises(ModelError):
                load(tmp_path / "deep.pt", allow_pickle=True)
        assert ("is not looked into" in capsys.readouterr().err) is not is_found


def test_a_pickle_by_the_name_of_safetensors_needs_the_same_word(model: CLIP, theirs: Tensors, tmp_path: Path):
    for folder, name in (("open_clip", "open_clip_model.safetensors"), ("file", "weights.safetensors")):
        (tmp_path / folder).mkdir()
        shutil.copy(tmp_path / "open_clip_config.json", tmp_path / folder)
        with (tmp_path / folder / name).open("wb") as file:
            torch.save(theirs, file)
        place = tmp_path / folder / (name if folder == "file" else "")
        with pytest.raises(ModelError, match="a pickle could run code"):
            load(place)
        assert_same(model, load(place, allow_pickle=True))


def test_a_tensor_in_two_files_has_its_place_in_the_index_or_is_refused(tmp_path: Path):
    for file, value in (("a.safetensors", 1.0), ("b.safetensors", 2.0)):
        save_file({"x": torch.tensor(value), file: torch.zeros(1)}, tmp_path / file)
    index = {"a.safetensors": "a.safetensors", "b.safetensors": "b.safetensors"}
    (tmp_path / "index.json").write_text(json.dumps({"weight_map": index | {"x": "b.safetensors"}}))
    assert float(read_tensors(tmp_path / "index.json")["x"]) == 2
    (tmp_path / "index.json").write_text(json.dumps({"weight_map": index}))
    with pytest.raises(ModelError, match=r"The tensor x of .* must be in one file"):
        read_tensors(tmp_path / "index.json")


def test_weights_that_are_sparse_are_listed(model: CLIP):
    weights = dict(model.state_dict())
    name = next(name for name, tensor in weights.items() if tensor.ndim == 2)
    weights[name] = weights[name].to_sparse()
    with pytest.raises(ModelError, match=rf"{name} is sparse or quantized"):
        load_weights(model, weights, where="here")


@pytest.mark.parametrize("device", [10**30, None, "cuda:99999999999999999999", "gpu", 3.5, "meta:x"])
def test_a_device_that_is_none_is_a_sentence(device: Any):
    with pytest.raises(ConfigError, match="The device must be auto, or one that"):
        chosen_device(device)


def test_a_tokenizer_is_another_one_by_its_merges_too(model: CLIP, tokenizer: Tokenizer, tmp_path: Path):
    other = Tokenizer(tokenizer.vocab, tokenizer.merges[::-1], context_length=77)
    assert tokenizer.is_like(copy.deepcopy(tokenizer)) and not tokenizer.is_like(other)


@pytest.mark.parametrize("content", ['{"weight_map": {"a": 1, "b": "x"}}', '{"weight_map": []}', "{}", "[]"])
def test_a_malformed_index(hf_folder: Path, content: str):
    (hf_folder / "model.safetensors").unlink()
    (hf_folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(LimnerError):
        load(hf_folder)


def test_a_tokenizer_in_another_form_is_not_replaced_by_openais(hf_folder: Path):
    (hf_folder / "vocab.json").write_text("{}")
    with pytest.raises(ModelError, match=r"must be in a tokenizer\.json"):
        load(hf_folder)


# --- saving over what is there ---------------------------------------------------------------------------------------


def test_a_folder_with_other_things_is_left_alone(model: CLIP, hf_folder: Path, tmp_path: Path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "notes.txt").write_text("mine")
    for folder, named in ((tmp_path / "own", "notes.txt"), (hf_folder, "config.json")):
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        with pytest.raises(StorageError, match=named):
            model.save(folder)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.raises(StorageError, match=r"notes\.txt"):
        model.save(tmp_path / "own" / "notes.txt")


def test_nothing_of_the_model_before_stays(model: CLIP, tokenizer: Tokenizer, tmp_path: Path):
    limner.create("ViT-mini", tokenizer=tokenizer).save(tmp_path / "model")
    (tmp_path / "model" / "onnx").mkdir()
    model.save(tmp_path / "model")
    model.save(tmp_path / "fresh")
    assert {p.name for p in (tmp_path / "model").iterdir()} == {p.name for p in (tmp_path / "fresh").iterdir()}
    assert_same(model, load(tmp_path / "model"))
    assert {p.name for p in tmp_path.iterdir()} == {"model", "fresh"}


@pytest.mark.parametrize("step", ["golden_vectors", "write_tensors"])
def test_a_save_that_fails_changes_nothing(model: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str):
    model.save(tmp_path / "model")
    expected = features(model)

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"limner.store.store.{step}", fail)
    with torch.no_grad():
        model.log_logit_scale += 1
    with pytest.raises(StorageError, match="No space left"):
        model.save(tmp_path / "model")
    assert all(torch.equal(a, b) for a, b in zip(features(load(tmp_path / "model")), expected, strict=True))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_is_an_error_of_ours(model: CLIP, tmp_path: Path):
    code = f"""
import resource, limner
model = limner.load({str(tmp_path / "model")!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    model.save({str(tmp_path / "copy")!r})
except limner.StorageError as error:
    print(error)
"""
    model.save(tmp_path / "model")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "must be written whole" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_loaded_model_does_not_live_in_the_file(model: CLIP, tmp_path: Path):
    model.save(tmp_path)
    loaded = load(tmp_path)
    with (tmp_path / "model.safetensors").open("r+b") as file:  # as cp and rsync --inplace do
        file.seek(-1000, 2)
        file.write(b"\1" * 1000)
    assert_same(model, loaded)


def test_golden_vectors_are_those_of_the_file_whatever_state_the_model_is_in(model: CLIP, tmp_path: Path):
    model.save(tmp_path / "model")
    half = load(tmp_path / "model", precision="bf16")
    half.train()
    half.image.eval()
    half.save(tmp_path / "half")
    assert half.training and not half.image.training and half.image.dtype == torch.bfloat16
    assert all(check.fine for check in examine(str(tmp_path / "half")))


# --- another resolution, another precision ---------------------------------------------------------------------------


def test_another_resolution_resizes_the_grid_and_keeps_the_class_token(model: CLIP, tmp_path: Path):
    model.save(tmp_path)
    larger = load(tmp_path, image_size=96)
    assert larger.architecture.image_size == 96 and larger.fingerprint != model.fingerprint
    before, after = (getattr(m.image, "attention_pool", m.image).positional_embedding for m in (model, larger))
    assert torch.equal(before[0], after[0])
    old, new = round((len(before) - 1) ** 0.5), round((len(after) - 1) ** 0.5)
    assert new * (model.architecture.image_size // old) == 96
    assert features(larger)[0].shape == (2, 32)
    larger.save(tmp_path / "larger")
    assert_same(larger, load(tmp_path / "larger"))
    with torch.no_grad():  # a constant grid stays what it is: bicubic weights sum to one
        getattr(model.image, "attention_pool", model.image).positional_embedding[1:] = 0.25
    model.resize_images(96)
    assert model.fingerprint is None
    resized = getattr(model.image, "attention_pool", model.image).positional_embedding[1:]
    assert torch.allclose(resized, torch.tensor(0.25), atol=1e-6)


def test_a_size_that_does_not_divide_is_refused(model: CLIP):
    with pytest.raises(ConfigError, match=r"must be a multiple of (8|32) pixels"):
        model.resize_images(100)


def test_bfloat16_weights_halve_the_memory_and_keep_the_direction(model: CLIP, tmp_path: Path):
    model.save(tmp_path)
    half = load(tmp_path, precision="bf16")
    assert half.fingerprint != model.fingerprint  # other features, other name
    with pytest.raises((ConfigError, TypeCheckError), match="fp16"):
        load(tmp_path, precision="fp16")  # type: ignore[arg-type]
    assert half.image.dtype == torch.bfloat16 and half.log_logit_scale.dtype == torch.float32
    for a, b in zip(features(model), features(half), strict=True):
        assert b.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(a, b).min() > 0.999  # 3 decimal digits a number, in random models


def test_of_a_tensor_in_two_files_the_one_that_the_index_names_is_read(tmp_path: Path):
    write_tensors(tmp_path / "1.safetensors", {"a": torch.zeros(2), "b": torch.ones(2)})
    write_tensors(tmp_path / "2.safetensors", {"a": torch.full((2,), 7.0), "c": torch.ones(2)})
    names = {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"}
    (tmp_path / "index.json").write_text(json.dumps({"weight_map": names}))
    assert {name: float(tensor[0]) for name, tensor in read_tensors(tmp_path / "index.json").items()} == {
        "a": 0.0,
        "b": 1.0,
        "c": 1.0,
    }


@pytest.mark.parametrize("value", [1000.0, float("-inf")])
def test_a_logit_scale_that_is_none_is_not_loaded(tmp_path: Path, value: float):
    model = create("RN-nano")
    with torch.no_grad():
        next(parameter for name, parameter in model.named_parameters() if "logit_scale" in name).fill_(value)
    save(model, tmp_path / "model")
    with pytest.raises(ModelError, match=r"must be finite numbers\. Got NaN or infinity in .*logit_scale"):
        load(tmp_path / "model")
    assert not next(check for check in examine(str(tmp_path / "model")) if check.what == "weights").fine
