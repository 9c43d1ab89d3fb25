"""limner: contrastive language-image pre-training, whole.

The public names are loaded when they are first used, so that `import limner` is instant and does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from limner.version import __version__ as __version__

if TYPE_CHECKING:
    from limner.data.pairs import Pair, Source
    from limner.data.sources.read import read_pairs
    from limner.data.tokenizer import Tokenizer
    from limner.errors import (
        ConfigError,
        DataError,
        LimnerError,
        MissingExtra,
        ModelError,
        ReproductionError,
        StorageError,
        TrainingError,
    )
    from limner.evaluation.estimator import LinearProbe
    from limner.evaluation.suite import evaluate
    from limner.evaluation.zero_shot import ZeroShotClassifier
    from limner.model.clip import CLIP, create
    from limner.objectives.contrastive import contrastive_loss
    from limner.objectives.sigmoid import sigmoid_loss
    from limner.store.store import load, save
    from limner.training.loop import train

_HOME = {
    "CLIP": "limner.model.clip",
    "ConfigError": "limner.errors",
    "DataError": "limner.errors",
    "LimnerError": "limner.errors",
    "LinearProbe": "limner.evaluation.estimator",
    "MissingExtra": "limner.errors",
    "ModelError": "limner.errors",
    "Pair": "limner.data.pairs",
    "ReproductionError": "limner.errors",
    "Source": "limner.data.pairs",
    "StorageError": "limner.errors",
    "Tokenizer": "limner.data.tokenizer",
    "TrainingError": "limner.errors",
    "ZeroShotClassifier": "limner.evaluation.zero_shot",
    "contrastive_loss": "limner.objectives.contrastive",
    "create": "limner.model.clip",
    "evaluate": "limner.evaluation.suite",
    "load": "limner.store.store",
    "read_pairs": "limner.data.sources.read",
    "save": "limner.store.store",
    "sigmoid_loss": "limner.objectives.sigmoid",
    "train": "limner.training.loop",
}

__all__ = [
    "CLIP",
    "ConfigError",
    "DataError",
    "LimnerError",
    "LinearProbe",
    "MissingExtra",
    "ModelError",
    "Pair",
    "ReproductionError",
    "Source",
    "StorageError",
    "Tokenizer",
    "TrainingError",
    "ZeroShotClassifier",
    "contrastive_loss",
    "create",
    "evaluate",
    "load",
    "read_pairs",
    "save",
    "sigmoid_loss",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'limner' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
