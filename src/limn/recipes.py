"""Named runs: functions that return a config. Each says its command, how long it takes and what it reaches.

A recipe is derived from another with `dataclasses.replace`; the command line overrides single fields.
"""

from collections.abc import Callable
from pathlib import Path

from limn.config import ImageConfig, OptimConfig, RunConfig, TrainConfig


def demo() -> RunConfig:
    """Emoji, for an art style never seen: `limn train demo`. Five minutes on two cores, 35 % top-1 of 1,906."""
    return RunConfig(
        data=Path("data/demo/train"),
        test=Path("data/demo/test"),
        model="RN-mini",
        vocab_size=2048,
        images=ImageConfig(resize=64, crop_min_area=0.65),
        train=TrainConfig(batch_size=256, epochs=40.0),
        optim=OptimConfig(lr=1e-3),
    )


def digits() -> RunConfig:
    """Handwritten digits without a network: `limn train digits`. Seconds on two cores, 98 % top-1 of 10."""
    return RunConfig(
        data=Path("data/digits/train"),
        test=Path("data/digits/test"),
        model="RN-nano",
        vocab_size=600,
        images=ImageConfig(resize=32),
        train=TrainConfig(batch_size=128, epochs=8.0),
        optim=OptimConfig(lr=2e-3),
    )


def small() -> RunConfig:
    """Your own pairs, some thousands of them or more: `limn train small --data FOLDER`. 250 pairs/s on two cores."""
    return RunConfig(
        model="RN-small",
        vocab_size=8192,
        images=ImageConfig(resize=112, crop_min_area=0.5),
        train=TrainConfig(batch_size=256, epochs=30.0),
        optim=OptimConfig(lr=1e-3),
    )


RECIPES: dict[str, Callable[[], RunConfig]] = {recipe.__name__: recipe for recipe in (demo, digits, small)}
