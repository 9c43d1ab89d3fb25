"""Architectures by name, as data, and `create`, which builds one with random weights."""

from dataclasses import replace

import torch

from limn.config import Architecture, ResNetConfig, TextConfig, ViTConfig
from limn.data.tokenizer import Tokenizer
from limn.errors import ConfigError, did_you_mean
from limn.model.clip import CLIP
from limn.run import seed_for

VOCABULARY = 49408
"""Of OpenAI's tokenizer; `create` takes the size of the tokenizer that it is given."""

ZOO: dict[str, Architecture] = {
    "RN-nano": Architecture(  # handwritten digits, tests
        image=ResNetConfig(layers=(1, 1), width=16, heads=4),
        text=TextConfig(layers=1, width=64, heads=2, vocab_size=VOCABULARY),
        embed_dim=64,
        image_size=32,
    ),
    "RN-mini": Architecture(  # emoji, logos, icons
        image=ResNetConfig(layers=(1, 1, 2), width=32, heads=16),
        text=TextConfig(layers=2, width=128, heads=4, vocab_size=VOCABULARY),
        embed_dim=128,
        image_size=48,
    ),
    "ViT-mini": Architecture(
        image=ViTConfig(layers=6, width=192, heads=6, patch_size=8),
        text=TextConfig(layers=2, width=128, heads=4, vocab_size=VOCABULARY),
        embed_dim=128,
        image_size=48,
    ),
    "RN-small": Architecture(  # photographs, some ten thousand pairs
        image=ResNetConfig(layers=(1, 2, 2, 1), width=32, heads=16),
        text=TextConfig(layers=4, width=256, heads=4, vocab_size=VOCABULARY),
        embed_dim=256,
        image_size=96,
    ),
    "ViT-small": Architecture(
        image=ViTConfig(layers=8, width=256, heads=8, patch_size=12),
        text=TextConfig(layers=4, width=256, heads=4, vocab_size=VOCABULARY),
        embed_dim=256,
        image_size=96,
    ),
}


def architecture(name: str) -> Architecture:
    """The architecture called `name`."""
    if name not in ZOO:
        raise ConfigError(
            "The model name",
            must=f"be one of {', '.join(ZOO)}",
            got=repr(name),
            then=did_you_mean(name, ZOO, "limn.model.zoo lists them."),
        )
    return ZOO[name]


def create(name: str, *, tokenizer: Tokenizer | None = None, seed: int = 0) -> CLIP:
    """The architecture called `name` with random weights by the paper's initialisation.

    The model is in inference mode: call `model.train()` before training it. With a `tokenizer` the text encoder has its
    vocabulary and the model reads sentences. The same seed gives the same weights; torch's global random state is left
    alone.
    """
    shape = architecture(name)
    if tokenizer is not None:
        text = replace(shape.text, vocab_size=tokenizer.vocab_size, context_length=tokenizer.context_length)
        shape = replace(shape, text=text)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for("init", seed))
        return CLIP(shape, tokenizer).eval()
