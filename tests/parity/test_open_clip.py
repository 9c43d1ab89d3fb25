"""The same weights in open_clip and in limner give the same features, for all nine of the paper's models.

open_clip does not install beside every build of torch, so that its outputs are stored: `open_clip.safetensors`, with
the versions that made them. Where it can be imported (make parity) the two are compared directly, both ways.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import limner
from helpers.made import filled, made_batch, made_clip
from limner.architecture import PAPER, ZOO, Architecture, ResNetConfig, TextConfig, ViTConfig
from limner.data.tokenizer import Tokenizer
from limner.files import write_json
from limner.model.clip import CLIP
from limner.objectives.sigmoid import Sigmoid
from limner.store import convert

STORED = Path(__file__).with_name("open_clip.safetensors")
TEXT = TextConfig(layers=2, width=32, heads=4, vocab_size=600, context_length=20)
TINY = Architecture(image=ViTConfig(layers=3, width=48, heads=4, patch_size=8), text=TEXT, embed_dim=24, image_size=40)
SHAPES = {
    "tiny ViT": TINY,
    "tiny ViT, gelu": replace(TINY, activation="gelu"),
    "tiny ResNet": replace(TINY, image=ResNetConfig(layers=(1, 2, 1, 1), width=8, heads=8), image_size=64),
    **{name: ZOO[name] for name in PAPER},
}
live = pytest.mark.skipif(
    importlib.util.find_spec("open_clip") is None, reason="open_clip is not installed here: make parity"
)


@torch.inference_mode()
def our_outputs(model: CLIP, pixels: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
    image, text, scale = model(pixels, tokens)
    return image, text, scale * image @ text.T


@torch.inference_mode()
def their_outputs(model: Any, pixels: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
    image, text, scale = model(pixels, tokens)
    return image, text, scale * image @ text.T


def theirs_of(shape: Architecture) -> Any:
    import open_clip

    config = convert.open_clip_config(shape, own_tokenizer=False)
    assert config is not None
    model = config["model_cfg"]
    with torch.device("meta"):
        theirs = open_clip.CLIP(model["embed_dim"], model["vision_cfg"], model["text_cfg"], model["quick_gelu"])
    theirs.attn_mask = torch.full((shape.text.context_length,) * 2, float("-inf")).triu(1)
    return filled(theirs)


@live
def test_store_the_outputs(request: pytest.FixtureRequest):
    if not request.config.getoption("--update-snapshots"):
        pytest.skip("writes open_clip.safetensors anew, with --update-snapshots")
    import open_clip

    stored = {}
    for name, shape in SHAPES.items():
        outputs = their_outputs(theirs_of(shape), *made_batch(shape))
        stored |= {
            f"{name}/{what}": out.contiguous() for what, out in zip(("image", "text", "logits"), outputs, strict=True)
        }
    save_file(
        stored,
        STORED,
        metadata={
            "open_clip": open_clip.__version__,
            "torch": torch.__version__,
            "command": "make parity UPDATE=--update-snapshots",
        },
    )


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in ("RN50x64", "ViT-L/14@336px") else n for n in SHAPES]
)
def test_stored_outputs(name: str, compare: Callable[..., None]):
    stored = load_file(STORED)
    theirs = tuple(stored[f"{name}/{what}"] for what in ("image", "text", "logits"))
    with safe_open(STORED, "pt") as file:
        peer = f"open_clip {file.metadata()['open_clip']}, stored"
    ours = our_outputs(made_clip(SHAPES[name]), *made_batch(SHAPES[name]))
    compare(name, peer, "theirs loaded here", ours, theirs)


@live
@pytest.mark.parametrize("name", SHAPES)
def test_theirs_loaded_here(name: str, tmp_path: Path, compare: Callable[..., None]):
    shape = SHAPES[name]
    theirs = theirs_of(shape)
    save_file(theirs.state_dict(), tmp_path / "open_clip_model.safetensors")
    write_json(tmp_path / "open_clip_config.json", convert.open_clip_config(shape, own_tokenizer=False))
    ours = limner.load(tmp_path)
    assert ours.architecture == shape
    batch = made_batch(shape)
    compare(name, "open_clip", "theirs loaded here", our_outputs(ours, *batch), their_outputs(theirs, *batch))


@live
@pytest.mark.parametrize("name", SHAPES)
def test_ours_loaded_there(name: str, tmp_path: Path, compare: Callable[..., None]):
    import open_clip

    ours = made_clip(SHAPES[name])
    ours.save(tmp_path)
    with torch.random.fork_rng():  # open_clip draws weights before it reads them
        theirs = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    batch = made_batch(SHAPES[name])
    compare(name, "open_clip", "ours loaded there", our_outputs(ours, *batch), their_outputs(theirs, *batch))


@live
def test_another_resolution_is_theirs(tmp_path: Path, compare: Callable[..., None]):
    import open_clip  # it cannot resize the positions of a ResNet's pool

    made_clip(TINY).save(tmp_path)
    ours = limner.load(tmp_path, image_size=96)
    with torch.random.fork_rng():
        theirs = open_clip.create_model(f"local-dir:{tmp_path}", force_image_size=96).eval()
    batch = made_batch(ours.architecture)
    compare(
        "tiny ViT at 96 px", "open_clip", "ours loaded there", our_outputs(ours, *batch), their_outputs(theirs, *batch)
    )


@live
def test_their_tokenizer_reads_ours(tmp_path: Path, tokenizer: Tokenizer):
    import open_clip

    for own in (tokenizer, Tokenizer.openai()):
        limner.create("ViT-mini", tokenizer=own).save(tmp_path)
        texts = ["a dog on a table", "picture number 12, drawn by hand", "a"]
        theirs = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(texts)
        ours = torch.from_numpy(own(texts))
        assert torch.equal(theirs.argmax(1), ours.argmax(1))  # what follows the first end is padding, which differs
        for row, end in enumerate(ours.argmax(1)):
            assert torch.equal(theirs[row, : end + 1], ours[row, : end + 1])


@live
def test_a_sigmoid_models_bias_goes_there_and_back(tmp_path: Path, compare: Callable[..., None]):
    import open_clip

    ours = made_clip(Sigmoid().adapt(TINY))
    ours.save(tmp_path / "ours")
    with torch.random.fork_rng():
        theirs = open_clip.create_model(f"local-dir:{tmp_path / 'ours'}").eval()
    assert theirs.logit_bias.item() == ours.logit_bias.item() == -9.5
    pixels, tokens = made_batch(TINY)
    with torch.inference_mode():
        image, text, scale, bias = theirs(pixels, tokens)
        logits = scale * image @ text.T + bias
        own_image, own_text, own_scale = ours(pixels, tokens)
        own_logits = own_scale * own_image @ own_text.T + ours.logit_bias
    compare(
        "tiny ViT, sigmoid", "open_clip", "ours loaded there", (own_image, own_text, own_logits), (image, text, logits)
    )

    save_file(theirs.state_dict(), tmp_path / "open_clip_model.safetensors")
    config = convert.open_clip_config(ours.architecture, own_tokenizer=False)
    write_json(tmp_path / "open_clip_config.json", config)
    back = limner.load(tmp_path)
    assert back.architecture == ours.architecture and back.fingerprint == limner.load(tmp_path / "ours").fingerprint
