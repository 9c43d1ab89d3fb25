"""The guard against losses and gradients that are not finite: every step, and before the weights are touched.

```
loss, features, norm of each gradient ─> found, 0 or 1, on the device ─> the optimizer leaves everything as it is
                                     └─> read here: at once on a CPU; on a GPU one step later, so nobody waits for it
```
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor

from limner.config import RunConfig
from limner.errors import TrainingError
from limner.model.clip import CLIP
from limner.training.step import Outcome
from limner.training.world import World, local

FACTS = 4
"""Numbers of a record in front of the gradient norms: found, loss, image features finite, text features finite."""


@dataclass(frozen=True)
class Trouble:
    """A step whose update was left out, and where the first number that is not finite stands."""

    step: int
    where: str


class Guard:
    """Measures the gradients of each step and says which step was not finite, and why."""

    def __init__(self, model: CLIP, world: World) -> None:
        self.model, self.world = model, world
        self._names = [name for name, _ in model.named_parameters()]
        self._towers = {
            tower: torch.tensor([i for i, n in enumerate(self._names) if n.startswith(tower)], device=world.device)
            for tower in ("image", "text")
        }
        parameters = list(model.parameters())
        # a sharded gradient's square is the sum over ranks; one that is whole would count once for each
        shares = [1.0 if isinstance(parameter, DTensor) else 1 / world.size for parameter in parameters]
        self._shares = torch.tensor(shares, device=world.device) if min(shares) < max(shares) else None
        self._records: list[tuple[int, Float[Tensor, " numbers"], torch.cuda.Event | None]] = []

    def look(self, outcome: Outcome, step: int) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """(1 if anything is not finite and else 0, the L2 norms of the gradients: of each tower, and of all). Both stay
        on the device."""
        norms = self._gradient_norms()
        finite = torch.stack(
            [outcome.image_finite, outcome.text_finite, outcome.loss.isfinite(), norms.isfinite().all()]
        ).float()
        if self.world.size > 1:  # features are those of this rank
            dist.all_reduce(finite, dist.ReduceOp.MIN)
        found = 1 - finite.min()
        record = torch.cat([found.view(1), outcome.loss.float().view(1), finite[:2], norms])
        arrived = None
        if record.device.type == "cuda":
            record, arrived = record.to("cpu", non_blocking=True), torch.cuda.Event()
            arrived.record()
        self._records.append((step, record, arrived))
        parts = {"all": norms} | {tower: norms[indices] for tower, indices in self._towers.items()}
        return found, {name: part.square().sum().sqrt() for name, part in parts.items()}

    def trouble(self, *, wait: bool = False) -> Trouble | None:
        """The first step not told of yet that was not finite. On a GPU the newest one is looked at with `wait` only."""
        while self._records and (wait or self._records[0][2] is None or len(self._records) > 1):
            step, record, arrived = self._records.pop(0)
            if arrived is not None:
                arrived.synchronize()
            if record[0]:
                return Trouble(step, f"loss {record[1].item():.4g}, {self._blame(record)}")
        return None

    def forget(self) -> None:
        """Go back in time: what was not told of yet never happened."""
        self._records.clear()

    def _gradient_norms(self) -> Float[Tensor, " parameters"]:
        """The L2 norm of each parameter's gradient, in the model's order."""
        gradients = gradients_of(self.model)
        dtype = self.model.log_logit_scale.dtype  # float32, whatever the matrices are kept in
        norms = torch.stack(torch._foreach_norm([*map(local, gradients)], 2, dtype))  # pyright: ignore[reportPrivateImportUsage]
        if self._shares is None:
            return norms
        squares = norms.square() * self._shares
        dist.all_reduce(squares)
        return squares.sqrt()

    def _blame(self, record: Float[Tensor, " numbers"]) -> str:
        """Where the trouble starts: in a weight, else in a tower's features, else in a gradient."""

        def place(name: str) -> str:
            tower = name.split(".")[0]
            return f"the {tower} encoder, {name}" if tower in self._towers else f"the logit scale, {name}"

        for name, parameter in self.model.named_parameters():
            if not local(parameter).isfinite().all():
                return f"first in the weights of {place(name)}"
        for tower, finite in zip(self._towers, record[2:FACTS], strict=True):
            if not finite:
                return f"first in the features of the {tower} encoder"
        for name, norm in zip(self._names, record[FACTS:], strict=True):
            if not norm.isfinite():
                return f"first in the gradient of {place(name)}"
        return "first in the loss itself"


def gradients_of(model: CLIP) -> list[Tensor]:
    """The gradients of all parameters, in the model's order."""
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None for gradient in gradients), "every parameter takes part in every step"
    return [gradient for gradient in gradients if gradient is not None]


def clip_gradients(model: CLIP, norm: Float[Tensor, ""], limit: float) -> None:
    """Scale all gradients, whose global norm is `norm`, down to the norm `limit` if theirs is larger."""
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients_of(model):
        local(gradient).mul_(factor)


TROUBLES = 20
"""A run gives up after so many steps in a row that were not finite, or as many ways back to the same checkpoint."""


def check_policy(trouble: Trouble, troubles: int, config: RunConfig) -> None:
    """Raise `TrainingError` when a step that was not finite ends the run."""
    if config.train.non_finite != "stop" and troubles < TROUBLES:
        return
    again = f", {troubles} times without getting on" if troubles > 1 else ""
    raise TrainingError(
        f"The loss and gradients of step {trouble.step}",
        must="be finite",
        got=trouble.where + again,
        then="Lower --optim.lr, lengthen --optim.warmup-share, set --optim.clip-norm 1 or use --train.precision fp32; "
        f"the last checkpoint stays, so limner train --resume {config.out} starts from there. "
        "--train.non-finite skip or rewind goes on by itself.",
    )
