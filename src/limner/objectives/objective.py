"""What a model learns from a batch: `batch -> encode -> tensors -> loss`.

An objective is a class in a file of its own, and one line in `objectives/table.py`. The step, the guard, the log and
the report never ask which one they have: they ask it for the facts below, and go by the names of what it returns.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from limner.architecture import Architecture
from limner.data.loader import Batch
from limner.errors import require
from limner.model.clip import CLIP
from limner.objectives.ranks import Ranks


@dataclass(frozen=True)
class Objective(ABC):
    """What every objective has to say. One that leaves something out cannot be defined or made."""

    name: ClassVar[str]
    """As in `OBJECTIVES`; a model's architecture keeps it."""
    couples_pairs: ClassVar[bool]
    """Whether a pair's loss depends on the other pairs of the batch. Then a batch that is larger than memory has its
    features cached; otherwise the gradients of its parts are added up."""

    duplicates: Literal["negatives", "positives"] = "negatives"
    """What other pairs of the batch with the same caption or the same image count as."""

    def __init_subclass__(cls) -> None:
        missing = [fact for fact in ("name", "couples_pairs") if fact not in vars(cls)]
        what = f"The objective {cls.__name__}"
        require(not missing, what, f"say its {' and '.join(missing)}", "no value of its own", "Set it in the class.")

    @abstractmethod
    def adapt(self, architecture: Architecture) -> Architecture:
        """The architecture with what this objective adds to a model."""

    @abstractmethod
    def encode(self, model: CLIP, batch: Batch) -> dict[str, Tensor]:
        """What the loss is made of, by name: tensors with a row for each pair, and numbers of the model."""

    @abstractmethod
    def loss(self, tensors: dict[str, Tensor], batch: Batch, ranks: Ranks) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and what else is worth a line in the log, by name; all of them float[] without dimensions.

        `tensors` are those of `encode`. An objective that couples pairs gives the loss of the global batch, which lies
        on `ranks`; on W of them its backward gives each rank W times its part of the gradient (`objectives/ranks.py`).
        Another gives the mean over the pairs of `batch`, and the step does the rest.
        """

    @abstractmethod
    def probabilities(self, model: CLIP, similarities: Tensor) -> Tensor:
        """The zero-shot rule: how likely each class is, from cosine similarities float[batch classes]."""


class Trainee(nn.Module):
    """A model and what it is trained for, as one module to be called: what DDP and FSDP go around."""

    def __init__(self, model: CLIP, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`objective.encode`."""
        return self.objective.encode(self.model, batch)
