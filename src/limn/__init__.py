"""limn: contrastive language-image pre-training, whole.

The public names are loaded when they are first used, so that `import limn` is instant and does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from limn.data.pairs import Pair, Source
    from limn.data.sources import read_pairs
    from limn.data.tokenizer import Tokenizer
    from limn.errors import (
        ConfigError,
        DataError,
        LimnError,
        MissingExtra,
        ModelError,
        ReproductionError,
        StorageError,
        TrainingError,
    )
    from limn.evaluation.suite import evaluate
    from limn.evaluation.zero_shot import ZeroShotClassifier
    from limn.model.clip import CLIP
    from limn.model.store import load
    from limn.model.zoo import create
    from limn.objectives.contrastive import contrastive_loss
    from limn.objectives.sigmoid import sigmoid_loss
    from limn.training.loop import train

_HOME = {
    "CLIP": "limn.model.clip",
    "ConfigError": "limn.errors",
    "DataError": "limn.errors",
    "LimnError": "limn.errors",
    "MissingExtra": "limn.errors",
    "ModelError": "limn.errors",
    "Pair": "limn.data.pairs",
    "ReproductionError": "limn.errors",
    "Source": "limn.data.pairs",
    "StorageError": "limn.errors",
    "Tokenizer": "limn.data.tokenizer",
    "TrainingError": "limn.errors",
    "ZeroShotClassifier": "limn.evaluation.zero_shot",
    "contrastive_loss": "limn.objectives.contrastive",
    "create": "limn.model.zoo",
    "evaluate": "limn.evaluation.suite",
    "load": "limn.model.store",
    "read_pairs": "limn.data.sources",
    "sigmoid_loss": "limn.objectives.sigmoid",
    "train": "limn.training.loop",
}

__all__ = [
    "CLIP",
    "ConfigError",
    "DataError",
    "LimnError",
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
    "sigmoid_loss",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'limn' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
