"""The gradient of one batch, however large: `pairs -> features -> loss -> gradient of every weight`.

What fits in memory goes through at once. Otherwise the gradient is cached (Gao et al. 2021, GradCache), which is exact:

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
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limner.data.loader import Batch
from limner.model.clip import CLIP
from limner.training.world import World, average_gradients, local_gradients

LossAndAccuracy = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(image features, text features, logit scale) -> (loss, accuracy), both of the global batch."""


@dataclass(frozen=True)
class Outcome:
    """What a batch gave, as tensors on the device: reading one waits for the device."""

    loss: Tensor
    accuracy: Tensor
    logit_scale: Tensor
    image_finite: Tensor
    """Whether every image feature of this rank is finite."""
    text_finite: Tensor
    statistics: "RunningStatistics"
    """BatchNorm's, which advance once it is known that the step counts."""


def backward(
    replica: nn.Module,
    batch: Batch,
    loss: LossAndAccuracy,
    *,
    pieces: int,
    dtype: torch.dtype,
    world: World,
    step: int = 0,
) -> Outcome:
    """Add the gradient of `loss` on `batch` to the parameters' `.grad`, computing `pieces` micro-batches in turn.

    `replica` is the model, or its DDP wrapper; `dtype` is what the encoders compute in. `pieces` is the same on all
    ranks, and gradients are averaged over them.
    """
    model = replica.module if isinstance(replica, nn.parallel.DistributedDataParallel) else replica
    assert isinstance(model, CLIP)
    device = model.log_logit_scale.device
    pixels = batch.pixels.tensor_split(min(pieces, len(batch.pixels)))
    tokens = batch.tokens.tensor_split(len(pixels))
    statistics = RunningStatistics(model)

    def encode(piece: int, stage: str = "encoding") -> tuple[Tensor, Tensor, Tensor]:
        world.at(step, stage)
        with statistics.of_a_piece(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return replica(pixels[piece], tokens[piece])

    if pieces == 1:
        image, text, scale = encode(0)
        world.at(step, "loss")
        value, accuracy = loss(image, text, scale)
        world.at(step, "backward")
        value.backward()
    else:
        random_states, features = [], []
        for piece in range(len(pixels)):
            random_states.append(random_state(device))
            with torch.no_grad():
                features.append(encode(piece))
        image, text = (torch.cat(part).requires_grad_() for part in list(zip(*features, strict=True))[:2])
        scale = features[0][2].detach().requires_grad_()
        del features
        world.at(step, "loss")
        value, accuracy = loss(image, text, scale)
        value.backward()
        assert image.grad is not None and text.grad is not None
        image_grads, text_grads = image.grad.tensor_split(len(pixels)), text.grad.tensor_split(len(pixels))
        accumulate_in_float32(model)
        for piece in range(len(pixels)):
            with local_gradients(replica), replayed(random_states[piece], device):
                image_part, text_part, _ = encode(piece, "backward")
                torch.autograd.backward((image_part, text_part), (image_grads[piece], text_grads[piece]))
        model.logit_scale.backward(scale.grad)
    if model is replica or pieces > 1:  # else DDP has averaged them
        average_gradients(model, world)
    return Outcome(
        loss=value.detach(),
        accuracy=accuracy,
        logit_scale=scale.detach(),
        image_finite=image.detach().isfinite().all(),
        text_finite=text.detach().isfinite().all(),
        statistics=statistics,
    )


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
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
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
    """Of torch's global generators: the CPU's and the device's."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


@contextmanager
def replayed(state: tuple[Tensor, Any], device: torch.device) -> Iterator[None]:
    """Draw again what was drawn after `state` was taken; afterwards the generators go on from where they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.set_rng_state(state[0])
        if device.type == "cuda":
            torch.cuda.set_rng_state(state[1], device)
        yield
