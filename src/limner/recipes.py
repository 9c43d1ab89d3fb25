"""Named runs: functions that return a config. Each says its command, how long it takes and what it reaches.

A recipe is derived from another with `dataclasses.replace`; the command line overrides single fields.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from limner.config import ImageConfig, OptimConfig, RunConfig, TrainConfig


def demo() -> RunConfig:
    """Emoji, for an art style never seen: `limner train demo`. 5 to 20 minutes on two cores, 35 % top-1 of 1,906."""
    return RunConfig(
        data="data/demo/train",
        test="data/demo/test",
        model="RN-mini",
        vocab_size=2048,
        images=ImageConfig(resize=64, crop_min_area=0.65),
        train=TrainConfig(batch_size=256, epochs=40.0, duplicates="positives"),
        optim=OptimConfig(lr=1e-3, beta2=0.98, eps=1e-6),
    )


def digits() -> RunConfig:
    """Handwritten digits without a network: `limner train digits`. Seconds on two cores, 98 % top-1 of 10."""
    return RunConfig(
        data="data/digits/train",
        test="data/digits/test",
        model="RN-nano",
        vocab_size=600,
        images=ImageConfig(resize=32),
        train=TrainConfig(batch_size=128, epochs=8.0, duplicates="positives"),
        optim=OptimConfig(lr=2e-3, beta2=0.98, eps=1e-6),
    )


def small() -> RunConfig:
    """Your own pairs, some thousands of them or more: `limner train small --data FOLDER`. 250 pairs/s on two cores."""
    return RunConfig(
        model="RN-small",
        vocab_size=8192,
        images=ImageConfig(resize=112, crop_min_area=0.5),
        train=TrainConfig(batch_size=256, epochs=30.0),
        optim=OptimConfig(lr=1e-3, beta2=0.98, eps=1e-6),
    )


def paper(model: str, *, lr: float, pixels: int = 224) -> RunConfig:
    """What the paper's nine have in common (tables 18 to 20): 32 epochs of batches of 32,768 pairs.

    Its memory (section 2.5) too: blocks recomputed, Adam's moments and the text encoder's matrices in half precision.
    A micro-batch of 1,024 only matters where a rank has more pairs than that.
    """
    return RunConfig(
        model=model,
        tokenizer="openai",
        images=ImageConfig(resize=pixels),
        train=TrainConfig(batch_size=32768, epochs=32.0, micro_batch=1024, recompute_blocks=True),
        optim=OptimConfig(lr=lr, warmup_steps=2000, moments="bf16", bf16_weights=("text",)),
    )


def rn50() -> RunConfig:
    """The paper's RN50: `limner train rn50 --data SHARDS`. The paper: 59.6 % of ImageNet zero-shot from 400 M pairs."""
    return paper("RN50", lr=5e-4)


def rn101() -> RunConfig:
    """The paper's RN101: `limner train rn101 --data SHARDS`. The paper: 62.2 % of ImageNet zero-shot."""
    return paper("RN101", lr=5e-4)


def rn50x4() -> RunConfig:
    """The paper's RN50x4: `limner train rn50x4 --data SHARDS`. The paper: 65.8 % of ImageNet zero-shot."""
    return paper("RN50x4", lr=5e-4, pixels=288)


def rn50x16() -> RunConfig:
    """The paper's RN50x16: `limner train rn50x16 --data SHARDS`. The paper: 70.5 % of ImageNet zero-shot."""
    return paper("RN50x16", lr=4e-4, pixels=384)


def rn50x64() -> RunConfig:
    """The paper's RN50x64: `limner train rn50x64 --data SHARDS`. The paper: 73.6 % zero-shot; 18 days on 592 V100."""
    return paper("RN50x64", lr=3.6e-4, pixels=448)


def vit_b32() -> RunConfig:
    """The paper's ViT-B/32: `limner train vit_b32 --data SHARDS`. The paper: 63.2 % of ImageNet zero-shot."""
    return paper("ViT-B/32", lr=5e-4)


def vit_b16() -> RunConfig:
    """The paper's ViT-B/16: `limner train vit_b16 --data SHARDS`. The paper: 68.6 % of ImageNet zero-shot."""
    return paper("ViT-B/16", lr=5e-4)


def vit_l14() -> RunConfig:
    """The paper's ViT-L/14: `limner train vit_l14 --data SHARDS`. The paper: 75.3 % zero-shot; 12 days on 256 V100."""
    return paper("ViT-L/14", lr=4e-4)


def vit_l14_336() -> RunConfig:
    """One more epoch for runs/vit_l14, at 336 pixels: `limner train vit_l14_336 --data SHARDS`. The paper: 76.2 %."""
    run = paper("ViT-L/14@336px", lr=2e-5, pixels=336)
    return replace(run, init=Path("runs/vit_l14/model"), train=replace(run.train, epochs=1.0))


PAPER = (rn50, rn101, rn50x4, rn50x16, rn50x64, vit_b32, vit_b16, vit_l14, vit_l14_336)
"""The paper's nine."""

RECIPES: dict[str, Callable[[], RunConfig]] = {recipe.__name__: recipe for recipe in (demo, digits, small, *PAPER)}
