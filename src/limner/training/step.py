"""The gradient of one batch, however large: `pairs -> features -> loss -> gradient of every weight`.

What fits in memory goes through at once. Otherwise, if the objective does not couple the pairs of a batch, gradients of
its parts are added up; if it does, the gradient is cached (Gao et al. 2021, GradCache), which is exact:

```
1. for each micro-batch, without a graph:  pairs ─> features                         all features, N x embed, are kept
2. once, over the whole batch:             features ─> loss ─> gradient of the features, of the logit scale
3. for each micro-batch, with a graph:     pairs ─> the same features ─> backward from their part of that gradient
```

Steps 1 and 3 must compute the same function. Random draws inside the encoders are replayed. BatchNorm takes its
statistics over each micro-batch in both, so a ResNet's gradient is the exact one of the model that normalises each
micro-batch on its own; its running statistics advance once a step, by the mean over micro-batches and ranks, whatever
ran twice. For models without BatchNorm the result is that of the whole batch at once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from limner.config import OptimConfig, Plan
from limner.data.loader import Batch
from limner.errors import require
from limner.objectives.objective import Trainee
from limner.objectives.ranks import Ranks
from limner.training.guard import Guard, clip_gradients
from limner.training.optimizer import lr_share
from limner.training.watch import STAGES
from limner.training.world import World, average_gradients, local_gradients

# --- a step ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of training, made once for a run: `batch -> gradient -> update`.

    The weights stay as they are when the loss or a gradient is not finite; the guard knows.
    """

    replica: nn.Module
    """The trainee, or DDP around it."""
    optimizer: torch.optim.Optimizer
    guard: Guard
    optim: OptimConfig
    plan: Plan
    dtype: torch.dtype
    """What the encoders compute in."""
    pieces: int
    """Micro-batches of each rank's share."""
    world: World

    def __call__(self, batch: Batch, step: int) -> dict[str, float | Tensor]:
        """Train on `batch`. Returns what is worth a line in the log, by name, still on the device."""
        lr = self.optim.lr * lr_share(step, self.plan)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        outcome = backward(self.replica, batch, pieces=self.pieces, dtype=self.dtype, world=self.world, step=step)
        self.world.at(step, "update")
        found, norms = self.guard.look(outcome.loss, outcome.finite, step)
        if self.optim.clip_norm is not None:
            clip_gradients(self.guard.model, norms["grad_norm"], self.optim.clip_norm)
        # what torch's GradScaler sets: the optimizers look at it on the device and leave everything as it is
        self.optimizer.found_inf, self.optimizer.grad_scale = found, None  # type: ignore[attr-defined]
        self.optimizer.step()
        outcome.statistics.advance(self.world, found)
        self.guard.model.clip_logit_scale()
        own = {"loss": outcome.loss, **norms, "lr": lr, "batch": len(batch.pixels), "skipped": found}
        named = {**outcome.metrics, **outcome.scalars}
        taken = own.keys() & named.keys() | outcome.metrics.keys() & outcome.scalars.keys()
        what = "The names of what an objective measures"
        require(not taken, what, "be its own", ", ".join(sorted(taken)), "Call them otherwise: the log has these.")
        return {"loss": outcome.loss, **outcome.metrics, **norms, **outcome.scalars, **own}


# --- the gradient ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What a batch gave, as tensors on the device: reading one waits for the device."""

    loss: Tensor
    """The global batch's."""
    metrics: dict[str, Tensor]
    """What else the objective measured."""
    scalars: dict[str, Tensor]
    """The model's own numbers in the loss, such as the logit scale."""
    finite: dict[str, Tensor]
    """For each tensor that the loss is made of, whether all of this rank's numbers are finite."""
    statistics: "RunningStatistics"
    """BatchNorm's, which advance once it is known that the step counts."""


Encode = Callable[[Batch, str], dict[str, Tensor]]
"""(part of a batch, stage for the watch) -> what the objective's loss is made of."""


def backward(
    replica: nn.Module, batch: Batch, *, pieces: int, dtype: torch.dtype, world: World, step: int = 0
) -> Outcome:
    """Add the gradient of the objective on `batch` to the parameters' `.grad`, computing `pieces` parts of it in turn.

    `replica` is a trainee, or DDP around it; `dtype` is what the encoders compute in. `pieces` is the same on all
    ranks, and gradients are averaged over them.
    """
    trainee = replica.module if isinstance(replica, nn.parallel.DistributedDataParallel) else replica
    assert isinstance(trainee, Trainee)
    model, objective = trainee.model, trainee.objective
    device = model.log_logit_scale.device
    statistics = RunningStatistics(model)
    reached = STAGES.index("encoding")

    def at(stage: str) -> None:
        """The watch compares ranks by their stages: a part of a batch does not go back to one."""
        nonlocal reached
        reached = max(reached, STAGES.index(stage))
        world.at(step, STAGES[reached])

    @cache
    def ranks() -> Ranks:
        """How the batch lies on the ranks: they meet here, at the loss."""
        return Ranks(len(batch.pixels), world.group, device)

    def encode(part: Batch, stage: str) -> dict[str, Tensor]:
        at(stage)
        with statistics.of_a_piece(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return replica(part)

    def loss_of(tensors: dict[str, Tensor], part: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        at("loss")
        loss, metrics = objective.loss(tensors, part, ranks())
        at("backward")
        return loss, metrics

    local = local_gradients(replica) if pieces > 1 else nullcontext()
    if pieces > 1:
        accumulate_in_float32(model)
    parts = micro_batches(batch, pieces)
    with local:
        if pieces > 1 and objective.couples_pairs:
            loss, metrics, tensors = cached_backward(encode, loss_of, batch, parts, device)
        elif objective.couples_pairs:
            tensors = encode(batch, "encoding")
            loss, metrics = loss_of(tensors, batch)
            loss.backward()
        else:
            loss, metrics, tensors = accumulated_backward(encode, loss_of, parts, ranks)
    if trainee is replica or pieces > 1:  # else DDP has averaged them
        average_gradients(model, world)
    return Outcome(
        loss=loss.detach(),
        metrics=metrics,
        scalars={name: tensor.detach() for name, tensor in tensors.items() if tensor.ndim == 0},
        finite={name: tensor.detach().isfinite().all() for name, tensor in tensors.items() if tensor.ndim},
        statistics=statistics,
    )


def cached_backward(
    encode: Encode, loss_of: Callable[..., Any], batch: Batch, parts: list[Batch], device: torch.device
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """(loss, metrics, tensors) of a batch whose pairs are coupled, by the three steps of the module's docstring."""
    states, encoded = [], []
    for part in parts:
        states.append(random_state(device))
        with torch.no_grad():
            encoded.append(encode(part, "encoding"))
    tensors = {
        name: (torch.cat([each[name] for each in encoded]) if tensor.ndim else tensor).detach()
        for name, tensor in encoded[0].items()
    }
    del encoded
    for tensor in tensors.values():
        tensor.requires_grad_(tensor.is_floating_point())
    loss, metrics = loss_of(tensors, batch)
    loss.backward()
    for number, part in enumerate(parts):
        with replayed(states[number], device):
            outputs, gradients = [], []
            for name, output in encode(part, "backward").items():
                gradient = tensors[name].grad
                # the gradient of a number of the model goes back once, with the last part
                is_due = output.ndim or number == len(parts) - 1
                if gradient is not None and output.requires_grad and is_due:
                    outputs.append(output)
                    gradients.append(gradient.tensor_split(len(parts))[number] if output.ndim else gradient)
            torch.autograd.backward(outputs, gradients)
    return loss, metrics, tensors


def accumulated_backward(
    encode: Encode, loss_of: Callable[..., Any], parts: list[Batch], ranks: Callable[[], Ranks]
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """(loss, metrics, tensors) of a batch whose pairs are not coupled: its parts' gradients are added up.

    A part counts by its pairs. DDP and FSDP take the mean over ranks, which is why each counts as often as there are
    ranks.
    """
    sums: dict[str, Tensor] = {}
    rows: dict[str, list[Tensor]] = {}
    for part in parts:
        tensors = encode(part, "encoding")
        loss, metrics = loss_of(tensors, part)
        weight = len(part.pixels) * ranks().world_size / ranks().global_batch
        loss.backward(torch.full_like(loss, weight))
        for name, number in {"": loss, **metrics}.items():
            share = number.detach() * weight / ranks().world_size
            sums[name] = sums[name] + share if name in sums else share
        for name, tensor in tensors.items():
            rows.setdefault(name, []).append(tensor.detach())
    sums = {name: ranks().sum(total.clone()) for name, total in sums.items()}
    loss = sums.pop("")
    return loss, sums, {name: torch.cat(each) if each[0].ndim else each[0] for name, each in rows.items()}


def micro_batches(batch: Batch, pieces: int) -> list[Batch]:
    """`batch` in `pieces` parts of about the same size; fewer if it has fewer pairs."""
    pixels = batch.pixels.tensor_split(min(pieces, len(batch.pixels)))
    tokens, identities = (tensor.tensor_split(len(pixels)) for tensor in (batch.tokens, batch.identities))
    ends = torch.tensor([len(part) for part in pixels]).cumsum(0).tolist()
    keys = [batch.keys[end - len(part) : end] for part, end in zip(pixels, ends, strict=True)]
    return [Batch(*part) for part in zip(pixels, tokens, keys, identities, strict=True)]


def accumulate_in_float32(model: nn.Module) -> None:
    """Let half-precision parameters have float32 gradients: a sum over many micro-batches would stall in bf16."""
    for parameter in model.parameters():
        if parameter.dtype == torch.bfloat16:
            parameter.grad_dtype = torch.float32


class RunningStatistics:
    """BatchNorm's running statistics in a step that runs its forward passes in pieces, and some of them twice.

    Each forward pass starts from the statistics of before the step; at its end they become the mean over the pieces.
    """

    def __init__(self, model: nn.Module) -> None:
        # those of a locked tower are in inference mode, and stay as they are
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d) and module.training]
        self._now = [b for norm in norms for b in (norm.running_mean, norm.running_var) if b is not None]
        self._counts = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
        self._before = [buffer.clone() for buffer in self._now]
        self._counted = [count.clone() for count in self._counts]
        self._sums = [torch.zeros_like(buffer) for buffer in self._now]
        self._passes = 0

    @contextmanager
    def of_a_piece(self) -> Iterator[None]:
        """Around each forward pass."""
        if not self._now:
            yield
            return
        for now, before in zip(self._now, self._before, strict=True):
            now.copy_(before)
        yield
        for total, now in zip(self._sums, self._now, strict=True):
            total.add_(now)
        self._passes += 1

    @torch.no_grad()
    def advance(self, world: World, left_out: Tensor) -> None:
        """At the end of the step; where it was left out (1, else 0), they are again what they were."""
        if not self._now:
            return
        means = [total / self._passes for total in self._sums]
        world.mean(means)
        for now, before, mean in zip(self._now, self._before, means, strict=True):
            now.copy_(torch.where(left_out > 0, before, mean))
        for count, before in zip(self._counts, self._counted, strict=True):
            count.copy_(before + (left_out == 0))


# --- random draws inside the encoders --------------------------------------------------------------------------------


def random_state(device: torch.device) -> tuple[Tensor, Any]:
    """The states of torch's global generators: the CPU's and the device's."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


@contextmanager
def replayed(state: tuple[Tensor, Any], device: torch.device) -> Iterator[None]:
    """Draw again what was drawn after `state` was taken; afterwards the generators go on from where they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.set_rng_state(state[0])
        if device.type == "cuda":
            torch.cuda.set_rng_state(state[1], device)
        yield
