"""The guard against losses and gradients that are not finite: every step, and before the weights are touched.

```
loss, its tensors, norm of each gradient ─> found, 0 or 1, on the device ─> the optimizer leaves everything as it is
                                     └─> read here: at once on a CPU; on a GPU one step later, so nobody waits for it
```
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor

from limner.config import RunConfig
from limner.errors import TrainingError
from limner.model.clip import CLIP, trainable
from limner.training.world import World, local


@dataclass(frozen=True)
class Trouble:
    """A step whose update was left out, and where the first number that is not finite stands."""

    step: int
    where: str


@dataclass(frozen=True)
class Record:
    """The numbers of a step, on their way to the host: found, loss, the flags of `tensors`, the norms of gradients."""

    step: int
    numbers: Float[Tensor, " numbers"]
    tensors: tuple[str, ...]
    """Names of the tensors that the loss is made of."""
    arrived: torch.cuda.Event | None


class Guard:
    """Measures the gradients of each step and says which step was not finite, and why."""

    def __init__(self, model: CLIP, world: World) -> None:
        self.model, self.world = model, world
        parameters = trainable(model)
        self._names = list(parameters)
        self._towers = {
            tower: torch.tensor(
                [i for i, name in enumerate(self._names) if name.startswith(tower)],
                dtype=torch.int64,
                device=world.device,
            )
            for tower in ("image", "text")
        }
        # a sharded gradient's square is the sum over ranks; one that is whole would count once for each
        shares = [1.0 if isinstance(parameter, DTensor) else 1 / world.size for parameter in parameters.values()]
        self._shares = torch.tensor(shares, device=world.device) if min(shares) < max(shares) else None
        self._records: list[Record] = []

    def look(
        self, loss: Tensor, finite: dict[str, Tensor], step: int
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """(1 if anything is not finite and else 0; the L2 norms of the gradients, of all and of each tower).

        `finite` says of each tensor that the loss is made of whether it is. All stay on the device.
        """
        norms = self._gradient_norms()
        flags = torch.stack([*finite.values(), loss.isfinite(), norms.isfinite().all()]).float()
        if self.world.size > 1:  # the tensors are those of this rank
            dist.all_reduce(flags, dist.ReduceOp.MIN)
        found = 1 - flags.min()
        numbers = torch.cat([found.view(1), loss.float().view(1), flags[: len(finite)], norms])
        arrived = None
        if numbers.device.type == "cuda":
            numbers, arrived = numbers.to("cpu", non_blocking=True), torch.cuda.Event()
            arrived.record()
        self._records.append(Record(step, numbers, tuple(finite), arrived))
        parts = {"grad_norm": norms}
        parts |= {f"grad_norm_{tower}": norms[indices] for tower, indices in self._towers.items()}
        return found, {name: part.square().sum().sqrt() for name, part in parts.items()}

    def trouble(self, *, wait: bool = False) -> Trouble | None:
        """The first step not reported yet that was not finite. On a GPU the newest is looked at with `wait` only."""
        while self._records and (wait or self._records[0].arrived is None or len(self._records) > 1):
            record = self._records.pop(0)
            if record.arrived is not None:
                record.arrived.synchronize()
            if record.numbers[0]:
                return Trouble(record.step, f"loss {record.numbers[1].item():.4g}, {self._blame(record)}")
        return None

    def forget(self) -> None:
        """Go back in time: what was not reported yet never happened."""
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

    def _blame(self, record: Record) -> str:
        """Where the trouble starts: in a weight, else in a tensor of the loss, else in a gradient."""

        def place(name: str) -> str:
            tower, _, inside = name.partition(".")
            return f"the {tower} encoder, {name}" if inside else f"the {name.replace('_', ' ')}"

        for name, parameter in self.model.named_parameters():
            if not local(parameter).isfinite().all():
                return f"first in the weights of {place(name)}"
        _, _, *rest = record.numbers
        for name, finite in zip(record.tensors, rest, strict=False):
            if not finite:
                return f"first in the {name.replace('_', ' ')}"
        for name, norm in zip(self._names, rest[len(record.tensors) :], strict=True):
            if not norm.isfinite():
                return f"first in the gradient of {place(name)}"
        return "first in the loss itself"


def gradients_of(model: CLIP) -> list[Tensor]:
    """The gradients of all parameters that train, in the model's order.

    Raises `TrainingError` if one has none: it would stay as it is without a word.
    """
    parameters = trainable(model)
    gradients = [parameter.grad for parameter in parameters.values() if parameter.grad is not None]
    if len(gradients) < len(parameters):
        without = [name for name, parameter in parameters.items() if parameter.grad is None]
        raise TrainingError(
            "Every weight that trains",
            must="take part in the loss",
            got=f"{len(without)} that do not, such as {without[0]}",
            then="Lock them (CLIP.lock, or requires_grad_(False)), or let the objective use them.",
        )
    return gradients


def clip_gradients(model: CLIP, norm: Float[Tensor, ""], limit: float) -> None:
    """Scale all gradients, whose global norm is `norm`, down to the norm `limit` if theirs is larger."""
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients_of(model):
        local(gradient).mul_(factor)


TROUBLES = 20
"""A run gives up after so many steps in a row that were not finite, or as many ways back to the same checkpoint."""


class Patience:
    """How many steps that were not finite a run puts up with (train.non_finite)."""

    def __init__(self, config: RunConfig) -> None:
        self.config, self.troubles = config, 0

    def spend(self, trouble: Trouble) -> None:
        """One more. Raises `TrainingError` when it ends the run."""
        self.troubles += 1
        if self.config.train.non_finite != "stop" and self.troubles < TROUBLES:
            return
        again = f", {self.troubles} times without getting on" if self.troubles > 1 else ""
        raise TrainingError(
            f"The loss and gradients of step {trouble.step}",
            must="be finite",
            got=trouble.where + again,
            then="Lower --optim.lr, lengthen --optim.warmup-share, set --optim.clip-norm 1 or use --train.precision "
            f"fp32; the last checkpoint stays, so limner resume {self.config.out} starts from there. "
            "--train.non-finite skip or rewind goes on by itself.",
        )

    def renew(self, after: Literal["skip", "rewind"]) -> None:
        """The run got on: by a finite step where such steps are skipped, by a checkpoint where it goes back to one."""
        if self.config.train.non_finite == after:
            self.troubles = 0
