"""An encoder is a config that says everything and a module in one table: a third one, defined here, does all of it."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from helpers.training import ALONE, RESNET, batch_of
from limner.architecture import Activation, Architecture, EncoderConfig, TextConfig, ViTConfig, name_of
from limner.config import RunConfig, TrainConfig, from_json, to_json
from limner.errors import ConfigError, ModelError
from limner.model.clip import CLIP, ENCODERS, create
from limner.model.size import size_of
from limner.model.transformer import Blocks
from limner.objectives.contrastive import Contrastive
from limner.objectives.objective import Trainee
from limner.recipes import digits
from limner.run import RunDirectory
from limner.store.store import load
from limner.training.loop import train
from limner.training.step import backward


@dataclass(frozen=True, kw_only=True)
class PatchConfig(EncoderConfig):
    """The mean of linear patches."""

    kind: ClassVar[str] = "patches"
    title: ClassVar[str] = "Bag of patches"
    beta2: ClassVar[float] = 0.95
    eps: ClassVar[float] = 1e-7

    width: int

    @property
    def stride(self) -> int:
        return 8

    def openai_names(self) -> dict[str, str]:
        return {
            name: name.replace("image.", "visual.")
            for name in (
                "image.first.weight",
                "image.first.bias",
                "image.blocks.0.weight",
                "image.blocks.0.bias",
                "image.projection.weight",
            )
        }

    def hf_names(self) -> None: ...

    def hf_vision(self) -> None: ...

    def open_clip_vision(self) -> None: ...

    @classmethod
    def from_open_clip(cls, vision: dict[str, Any]) -> "PatchConfig | None": ...

    @classmethod
    def from_openai(cls, shapes: Any) -> "tuple[PatchConfig, int] | None": ...


class PatchEncoder(nn.Module):
    def __init__(self, config: PatchConfig, embed_dim: int, image_size: int, activation: Activation) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, config.width, 8, stride=8)
        self.blocks = Blocks(nn.Linear(config.width, config.width))
        self.projection = nn.Linear(config.width, embed_dim, bias=False)

    @property
    def dtype(self) -> torch.dtype:
        return self.projection.weight.dtype

    def resize_grid(self, old: int, new: int) -> None:
        """There are no positions."""

    def forward(self, pixels: Tensor) -> Tensor:
        return self.projection(self.blocks(self.first(pixels).flatten(2).mean(dim=2)).relu())

    encode_whole = forward


@pytest.fixture
def shape(monkeypatch: pytest.MonkeyPatch) -> Architecture:
    monkeypatch.setitem(ENCODERS, "patches", PatchEncoder)
    text = TextConfig(layers=1, width=64, heads=2, vocab_size=49_408, context_length=16)
    return Architecture(image=PatchConfig(width=32), text=text, embed_dim=32, image_size=32)


def test_a_third_encoder_trains_is_saved_and_loaded(shape: Architecture, folder_of_pairs: Path, tmp_path: Path):
    config = dataclasses.replace(
        digits(),
        data=str(folder_of_pairs),
        test=str(folder_of_pairs),
        out=tmp_path / "run",
        model=shape,
        train=TrainConfig(batch_size=20, epochs=2.0, precision="fp32", recompute_blocks=True),
        optim=dataclasses.replace(digits().optim, beta2=None, eps=None),
    )
    run = RunDirectory(train(config))
    read = run.read_config()
    assert isinstance(read.model, Architecture) and read.model == shape
    assert (read.optim.beta2, read.optim.eps) == (0.95, 1e-7), "Adam's settings are the encoder's"
    model = load(run.path)
    assert model.architecture.image == shape.image and "Bag of patches" in (run.model / "README.md").read_text()
    assert not (run.model / "open_clip_config.json").exists(), "open_clip has no such encoder"
    assert model.architecture.text.context_length == 16, "the context is the architecture's"
    resized = load(run.path, image_size=64)
    assert resized.encode_image(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape == (1, 32)
    assert size_of(shape).image_parameters == sum(p.numel() for p in model.image.parameters())
    assert name_of(shape) == "Bag of patches, embedding of 32"


def test_an_encoder_that_leaves_something_out_fails_loudly(shape: Architecture, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match="say its title, beta2, eps"):

        class Half(EncoderConfig):
            kind = "half"

    @dataclass(frozen=True, kw_only=True)
    class Silent(EncoderConfig):
        kind: ClassVar[str] = "silent"
        title: ClassVar[str] = "Silent"
        beta2: ClassVar[float] = 0.9
        eps: ClassVar[float] = 1e-8

    with pytest.raises(ConfigError, match="have a kind of its own"):

        class Other(EncoderConfig):
            kind, title, beta2, eps = "vit", "Other", 0.9, 1e-8

    with pytest.raises(ConfigError, match="no value of its own"):

        class Heir(ViTConfig):
            """It would silently take the place of its parent."""

    with pytest.raises(TypeError, match="stride"):
        Silent()  # type: ignore[abstract]
    monkeypatch.delitem(EncoderConfig.kinds, "silent")
    with pytest.raises(ConfigError, match="'silent' is no kind of encoder"):
        from_json({**to_json(shape), "image": {"kind": "silent"}}, Architecture, where="x")
    monkeypatch.setitem(ENCODERS, "patches", lambda *_: nn.Identity())
    with pytest.raises(ModelError, match="no encode_whole, blocks, projection, dtype, resize_grid"):
        CLIP(shape)
    monkeypatch.delitem(ENCODERS, "patches")
    with pytest.raises(ModelError, match=r"Add it to limner\.model\.clip\.ENCODERS"):
        CLIP(shape)


def test_a_run_of_before_is_read():
    """config.json of schema 1, as it was written before a run's file held its whole architecture."""
    values = json.loads((Path(__file__).parents[2] / "golden" / "schema-1.json").read_text())
    assert values["schema"] == 1 and values["model"] == "RN-mini"
    config = from_json(values, RunConfig, where="schema-1.json")
    assert config.model == "RN-mini" and config.train.objective == "contrastive"
    assert config.optim.beta2 == 0.98 and config.train.batch_size == 256


def test_an_architecture_of_before_has_the_json_of_before():
    """The JSON is part of a model's fingerprint: what is new is written only where it is used."""
    vit = create("ViT-mini").architecture
    assert to_json(vit).keys() == {
        *("schema", "image", "text", "embed_dim", "image_size", "activation", "image_mean", "image_std")
    }
    assert to_json(vit)["schema"] == 1 and to_json(vit)["image"] == {
        **{"kind": "vit", "layers": 6, "width": 192, "heads": 6, "patch_size": 8}
    }
    other = dataclasses.replace(vit, objective="sigmoid", initial_logit_bias=-10.0)
    assert from_json(to_json(other), Architecture, where="x") == other


# --- what trains -----------------------------------------------------------------------------------------------------


def test_a_locked_tower_stays_as_it_is_batch_norm_included():
    batch = batch_of(9, 32)
    model = create(RESNET).train()
    model.lock("image")
    assert not any(module.training for module in model.image.modules()) and model.text.training
    before = {name: tensor.clone() for name, tensor in model.image.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=generator)
    features = model.train().encode_image(pixels)
    assert not features.requires_grad
    assert all(torch.equal(before[name], tensor) for name, tensor in model.image.state_dict().items())
    for pieces in (1, 3):
        outcome = backward(Trainee(model, Contrastive()), batch, pieces=pieces, dtype=torch.float32, world=ALONE)
        outcome.statistics.advance(ALONE, torch.tensor(0.0))
        assert all(torch.equal(before[name], tensor) for name, tensor in model.image.state_dict().items())
        assert all(parameter.grad is None for parameter in model.image.parameters())
    model.lock()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.train().image.modules())
    assert isinstance(model.architecture.image, EncoderConfig) and not isinstance(model.architecture.image, ViTConfig)
