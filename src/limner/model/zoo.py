"""Architectures by name, as data, and `create`, which builds one with random weights.

The paper's nine (section 2.4, tables 19 and 20) and the small ones of the recipes. All of the nine have a text encoder
of 12 layers whose width grows with the image encoder's, heads of 64, and QuickGELU.
"""

import math
from dataclasses import replace

import torch

from limner.config import Architecture, ResNetConfig, TextConfig, ViTConfig
from limner.data.tokenizer import OPENAI_VOCABULARY, Tokenizer
from limner.errors import ConfigError, did_you_mean
from limner.model.clip import CLIP
from limner.run import seed_for

SCALED_STAGES = {4: (4, 6, 10, 6), 16: (6, 8, 18, 8), 64: (3, 15, 36, 10)}
"""Blocks in each stage of the paper's scaled ResNets. The totals follow the rule; how they are spread over the stages
does not: the further, the more of them the paper puts into the third stage."""


def _text(width: int) -> TextConfig:
    return TextConfig(layers=12, width=width, heads=width // 64, vocab_size=OPENAI_VOCABULARY)


def _vit(*, layers: int, width: int, patch_size: int, text_width: int, image_size: int = 224) -> Architecture:
    return Architecture(
        image=ViTConfig(layers=layers, width=width, heads=width // 64, patch_size=patch_size),
        text=_text(text_width),
        embed_dim=text_width,
        image_size=image_size,
    )


def _resnet(*, layers: tuple[int, ...], width: int, embed_dim: int, image_size: int, text_width: int) -> Architecture:
    return Architecture(
        image=ResNetConfig(layers=layers, width=width, heads=width // 2),
        text=_text(text_width),
        embed_dim=embed_dim,
        image_size=image_size,
    )


def scale_resnet(compute: int) -> Architecture:
    """RN50 scaled to about `compute` times its compute (paper section 2.4): equally in width, depth and resolution.

    A network's compute is proportional to its depth and to the squares of its width and resolution, so depth grows by
    compute^(1/3), width and resolution by compute^(1/6). (About: RN50x64 takes 45 times the FLOPs of RN50, for stem and
    pooling do not grow in depth.) Widths are rounded to multiples of 16, resolutions up to multiples of 32; the text
    encoder grows in width alone, and so does the embedding with it. 4, 16 and 64 are the paper's RN50x4, x16 and x64,
    whose blocks are spread by `SCALED_STAGES`; for another number every stage grows by the same factor.
    """
    if compute < 1:
        raise ConfigError("compute of scale_resnet", must="be at least 1", got=compute, then="The paper: 4, 16, 64.")
    factor = compute ** (1 / 3)
    width = 16 * round(64 * factor**0.5 / 16)
    return _resnet(
        layers=SCALED_STAGES.get(compute) or tuple(round(factor * blocks) for blocks in (3, 4, 6, 3)),
        width=width,
        embed_dim=8 * width,
        image_size=32 * math.ceil(round(224 * factor**0.5 / 32, 6)),
        text_width=8 * width,
    )


ZOO: dict[str, Architecture] = {
    "RN50": _resnet(layers=(3, 4, 6, 3), width=64, embed_dim=1024, image_size=224, text_width=512),
    "RN101": _resnet(layers=(3, 4, 23, 3), width=64, embed_dim=512, image_size=224, text_width=512),
    "RN50x4": scale_resnet(4),
    "RN50x16": scale_resnet(16),
    "RN50x64": scale_resnet(64),
    "ViT-B/32": _vit(layers=12, width=768, patch_size=32, text_width=512),
    "ViT-B/16": _vit(layers=12, width=768, patch_size=16, text_width=512),
    "ViT-L/14": _vit(layers=24, width=1024, patch_size=14, text_width=768),
    "ViT-L/14@336px": _vit(layers=24, width=1024, patch_size=14, text_width=768, image_size=336),
    "RN-nano": Architecture(  # handwritten digits, tests
        image=ResNetConfig(layers=(1, 1), width=16, heads=4),
        text=TextConfig(layers=1, width=64, heads=2, vocab_size=OPENAI_VOCABULARY),
        embed_dim=64,
        image_size=32,
    ),
    "RN-mini": Architecture(  # emoji, logos, icons
        image=ResNetConfig(layers=(1, 1, 2), width=32, heads=16),
        text=TextConfig(layers=2, width=128, heads=4, vocab_size=OPENAI_VOCABULARY),
        embed_dim=128,
        image_size=48,
    ),
    "ViT-mini": Architecture(
        image=ViTConfig(layers=6, width=192, heads=6, patch_size=8),
        text=TextConfig(layers=2, width=128, heads=4, vocab_size=OPENAI_VOCABULARY),
        embed_dim=128,
        image_size=48,
    ),
    "RN-small": Architecture(  # photographs, some ten thousand pairs
        image=ResNetConfig(layers=(1, 2, 2, 1), width=32, heads=16),
        text=TextConfig(layers=4, width=256, heads=4, vocab_size=OPENAI_VOCABULARY),
        embed_dim=256,
        image_size=96,
    ),
    "ViT-small": Architecture(
        image=ViTConfig(layers=8, width=256, heads=8, patch_size=12),
        text=TextConfig(layers=4, width=256, heads=4, vocab_size=OPENAI_VOCABULARY),
        embed_dim=256,
        image_size=96,
    ),
}

PAPER = tuple(ZOO)[:9]
"""The paper's nine, in its order."""


def architecture(name: str) -> Architecture:
    """The architecture called `name`."""
    if name not in ZOO:
        raise ConfigError(
            "The model name",
            must=f"be one of {', '.join(ZOO)}",
            got=repr(name),
            then=did_you_mean(name, ZOO, "limner models lists them."),
        )
    return ZOO[name]


def create(name: str | Architecture, *, tokenizer: Tokenizer | None = None, seed: int = 0) -> CLIP:
    """The architecture called `name`, or one of your own, with random weights by the paper's initialisation.

    The model is in inference mode: call `model.train()` before training it. With a `tokenizer` the text encoder has its
    vocabulary; without one the model reads sentences with the paper's. The same seed gives the same weights;
    torch's global random state is left alone.
    """
    shape = name if isinstance(name, Architecture) else architecture(name)
    if tokenizer is None and shape.text.vocab_size == OPENAI_VOCABULARY:
        tokenizer = Tokenizer.openai(context_length=shape.text.context_length)
    if tokenizer is not None:
        text = replace(shape.text, vocab_size=tokenizer.vocab_size, context_length=tokenizer.context_length)
        shape = replace(shape, text=text)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_for("init", seed))  # torch.manual_seed would seed the GPUs as well
        return CLIP(shape, tokenizer).eval()
