"""The objectives by name."""

from typing import Literal

from limner.errors import ConfigError, did_you_mean
from limner.objectives.contrastive import Contrastive
from limner.objectives.objective import Objective
from limner.objectives.sigmoid import Sigmoid

OBJECTIVES: dict[str, type[Objective]] = {objective.name: objective for objective in (Contrastive, Sigmoid)}


def objective(name: str, duplicates: Literal["negatives", "positives"] = "negatives") -> Objective:
    """The objective called `name`. Raises `ConfigError` if there is none."""
    if name not in OBJECTIVES:
        raise ConfigError(
            "The objective",
            must=f"be one of {', '.join(OBJECTIVES)}",
            got=repr(name),
            then=did_you_mean(name, OBJECTIVES, "One of your own has to be added to OBJECTIVES first."),
        )
    return OBJECTIVES[name](duplicates)
