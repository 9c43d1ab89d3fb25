"""Models on disk: what limn writes, and what it reads of others'. Parity with the others is in tests/parity."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import limn
from limn.config import Architecture, ResNetConfig, TextConfig, ViTConfig
from limn.data.tokenizer import Tokenizer
from limn.errors import ConfigError, ModelError
from limn.model import convert
from limn.model.clip import CLIP
from limn.model.pickles import OPENAI_FILES
from limn.model.store import load

TEXT = TextConfig(layers=2, width=128, heads=2, vocab_size=602, context_length=20)
VIT = Architecture(image=ViTConfig(layers=2, width=64, heads=1, patch_size=8), text=TEXT, embed_dim=32, image_size=32)
RESNET = replace(VIT, image=ResNetConfig(layers=(1, 2, 1, 1), width=8, heads=4), image_size=64)


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
    model.save(tmp_path / "limn")
    write_open_clip(tmp_path / "open_clip", model)
    assert load(tmp_path / "open_clip").fingerprint == model.fingerprint
    with torch.no_grad():
        model.log_logit_scale += 1e-6
    model.save(tmp_path / "other")
    assert load(tmp_path / "other").fingerprint != load(tmp_path / "limn").fingerprint


def test_an_open_clip_directory(model: CLIP, tmp_path: Path):
    write_open_clip(tmp_path, model)
    assert_same(model, load(tmp_path))
    assert_same(model, load(tmp_path / "open_clip_model.safetensors"))  # the config beside it is used


def test_the_activation_is_part_of_the_checkpoint(model: CLIP, tmp_path: Path):
    write_open_clip(tmp_path, model)
    path = tmp_path / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["quick_gelu"] = False
    path.write_text(json.dumps(config))
    assert load(tmp_path).architecture.activation == "gelu"
    path.unlink()
    with pytest.raises(ModelError, match="must be known: weights do not say it"):
        load(tmp_path / "open_clip_model.safetensors")
    assert_same(model, load(tmp_path / "open_clip_model.safetensors", activation="quick_gelu"))


def test_settings_that_limn_does_not_have_are_all_named(tmp_path: Path):
    config = convert.open_clip_config(VIT, own_tokenizer=False)
    assert config is not None
    config["model_cfg"]["vision_cfg"] |= {"ls_init_value": 1e-5, "patch_dropout": 0.5, "attentional_pool": False}
    config["model_cfg"]["text_cfg"]["hf_model_name"] = "bert"
    config["preprocess_cfg"]["resize_mode"] = "squash"
    with pytest.raises(ModelError) as caught:
        convert.architecture_from_open_clip(config, where="x")
    assert caught.value.got.startswith("4 that limn's encoders do not have")
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
    assert shape == limn.model.zoo.ZOO["ViT-B/32"]


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
    monkeypatch.setitem(OPENAI_FILES, limn.files.sha256_of(archive), "ViT-B/32")
    assert_same(model, load(archive))
    damaged = bytearray(archive.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    archive.write_bytes(damaged)
    with pytest.raises(ModelError, match="one of the nine that OpenAI published"):
        load(archive)


def test_a_damaged_archive_is_explained(archive: Path):
    content = archive.read_bytes()
    archive.write_bytes(
        content.replace(b"constants.pkl", b"constants.pkl")[:-200] + content[-200:].replace(b"\0", b"\1")
    )
    with pytest.raises(ModelError):
        load(archive, trust=True, activation="gelu", allow_pickle=True)


def test_pickles_need_a_word_and_run_nothing(model: CLIP, tmp_path: Path):
    write_open_clip(tmp_path, model, "open_clip_pytorch_model.bin")
    with pytest.raises(ModelError, match="only the pickle"):
        load(tmp_path)
    assert_same(model, load(tmp_path, allow_pickle=True))
    checkpoint = {"state_dict": {f"module.{k}": v for k, v in load_file_or_pickle(tmp_path).items()}, "epoch": 3}
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


def load_file_or_pickle(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "open_clip_pytorch_model.bin", weights_only=True)


# --- directories of transformers -------------------------------------------------------------------------------------


@pytest.fixture
def hf_folder(tmp_path: Path) -> Path:
    """A ViT as transformers writes it: no word of limn's."""
    with torch.random.fork_rng():
        model = CLIP(VIT).eval()
    model.save(tmp_path / "hf")
    for name in ("open_clip_config.json", "open_clip_model.safetensors", "golden.safetensors"):
        (tmp_path / "hf" / name).unlink()
    edit(tmp_path / "hf" / "config.json", lambda config: config.pop("limn"))
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
    with pytest.raises(ModelError, match="a clip config without weights"):
        load(hf_folder)
    edit(hf_folder / "config.json", lambda config: config.update(model_type="bert"))
    with pytest.raises(ModelError, match="another kind of model, bert"):
        load(hf_folder)


def test_the_hub_is_asked_only_by_its_name(hf_folder: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **kw: asked.append((name, kw)) or hf_folder)
    assert load("hf-hub:org/name").architecture == VIT
    (name, options), *rest = asked
    assert name == "org/name" and not rest
    assert not any(pattern.endswith((".bin", ".py", ".pt")) for pattern in options["allow_patterns"])

    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(ModelError, match="hf-hub:org/name must be on the hub"):
        load("hf-hub:org/name")


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
    model.resize_pictures(96)
    resized = getattr(model.image, "attention_pool", model.image).positional_embedding[1:]
    assert torch.allclose(resized, torch.tensor(0.25), atol=1e-6)


def test_a_size_that_does_not_divide_is_refused(model: CLIP):
    with pytest.raises(ConfigError, match=r"must be a multiple of (8|32) pixels"):
        model.resize_pictures(100)


def test_bfloat16_weights_halve_the_memory_and_keep_the_direction(model: CLIP, tmp_path: Path):
    model.save(tmp_path)
    half = load(tmp_path, precision="bf16")
    assert half.image.dtype == torch.bfloat16 and half.log_logit_scale.dtype == torch.float32
    for a, b in zip(features(model), features(half), strict=True):
        assert b.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(a, b).min() > 0.999  # 3 decimal digits a number, in random models
