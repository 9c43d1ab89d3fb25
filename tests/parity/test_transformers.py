"""transformers reads what limner writes and limner reads what transformers writes, with the same features.

transformers has no modified ResNet: those are compared with open_clip.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import limner
from helpers.made import filled, made_batch, made_clip
from limner.architecture import PAPER, ZOO, Architecture, TextConfig, ViTConfig
from limner.data.tokenizer import Tokenizer
from limner.model.clip import CLIP

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

TINY = Architecture(
    image=ViTConfig(layers=3, width=48, heads=4, patch_size=8),
    text=TextConfig(layers=2, width=32, heads=4, vocab_size=600, context_length=20),
    embed_dim=24,
    image_size=40,
)
SHAPES = {
    "tiny": TINY,
    "tiny, gelu": replace(TINY, activation="gelu"),
    **{name: ZOO[name] for name in PAPER if name.startswith("ViT")},
}
# half a minute for the one that is ViT-L/14 with more patches: by make parity
CASES = [pytest.param(name, marks=pytest.mark.slow) if name.startswith("ViT-L") else name for name in SHAPES]


def theirs_of(shape: Architecture) -> "transformers.CLIPModel":
    image, text = shape.image, shape.text
    assert isinstance(image, ViTConfig)
    config = transformers.CLIPConfig(
        projection_dim=shape.embed_dim,
        text_config={
            "hidden_size": text.width,
            "intermediate_size": 4 * text.width,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.context_length,
            "hidden_act": shape.activation,
            "bos_token_id": text.vocab_size - 2,
            "eos_token_id": text.vocab_size - 1,
        },
        vision_config={
            "hidden_size": image.width,
            "intermediate_size": 4 * image.width,
            "num_hidden_layers": image.layers,
            "num_attention_heads": image.heads,
            "image_size": shape.image_size,
            "patch_size": image.patch_size,
            "hidden_act": shape.activation,
        },
    )
    with torch.device("meta"):
        model = transformers.CLIPModel(config)
    model.vision_model.embeddings.position_ids = torch.arange((shape.image_size // image.patch_size) ** 2 + 1)[None]
    model.text_model.embeddings.position_ids = torch.arange(text.context_length)[None]
    return filled(model)


@torch.inference_mode()
def our_outputs(model: CLIP, pixels: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
    image, text, scale = model(pixels, tokens)
    return image, text, scale * image @ text.T


@torch.inference_mode()
def their_outputs(
    model: "transformers.CLIPModel", pixels: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    out = model(pixel_values=pixels, input_ids=tokens)
    return out.image_embeds, out.text_embeds, out.logits_per_image


@pytest.mark.parametrize("name", CASES)
def test_theirs_loaded_here(name: str, tmp_path: Path, compare: Callable[..., None]):
    theirs = theirs_of(SHAPES[name])
    theirs.save_pretrained(tmp_path)
    ours = limner.load(tmp_path)
    assert ours.architecture == SHAPES[name]
    batch = made_batch(SHAPES[name])
    compare(name, "transformers", "theirs loaded here", our_outputs(ours, *batch), their_outputs(theirs, *batch))


@pytest.mark.parametrize("name", CASES)
def test_ours_loaded_there(name: str, tmp_path: Path, compare: Callable[..., None]):
    ours = made_clip(SHAPES[name])
    ours.save(tmp_path)
    theirs = transformers.CLIPModel.from_pretrained(tmp_path).eval()
    batch = made_batch(SHAPES[name])
    compare(name, "transformers", "ours loaded there", our_outputs(ours, *batch), their_outputs(theirs, *batch))


def test_their_processor_reads_our_preprocessing_and_tokenizer(tmp_path: Path, tokenizer: Tokenizer):
    for own in (tokenizer, Tokenizer.openai()):
        model = limner.create("ViT-mini", tokenizer=own)
        model.save(tmp_path)
        texts = ["a dog on a table", "picture number 12, drawn by hand", "a"]
        ids = transformers.AutoTokenizer.from_pretrained(tmp_path)(texts)["input_ids"]
        assert ids == [row[: row.argmax() + 1].tolist() for row in own(texts)]
        processor = transformers.CLIPImageProcessor.from_pretrained(tmp_path)
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8))
        theirs = processor(picture, return_tensors="pt")["pixel_values"]
        ours = (model.preprocess(picture).float() / 255 - model._mean) / model._std
        # Theirs resizes by torch or by Pillow, as the version has it: 1 of 255, over a deviation of 0.26.
        assert (theirs - ours).abs().max() <= 1.01 / 255 / 0.26
