"""An exponential moving average of the weights (Polyak and Juditsky 1992), in float32 whatever the weights are in."""

import torch
from torch import Tensor

from limner.model.clip import CLIP
from limner.training.distributed import local


class Average:
    """average <- decay x average + (1 - decay) x weights, after each step. BatchNorm's statistics are the model's."""

    def __init__(self, model: CLIP, decay: float) -> None:
        self.decay = decay
        self._parameters = list(model.parameters())
        self.weights: dict[str, Tensor] = {
            name: parameter.detach().float().clone() for name, parameter in model.named_parameters()
        }

    @torch.no_grad()
    def update(self, left_out: Tensor) -> None:
        """After an optimizer step; one that was left out (1, else 0) does not count."""
        weight = (1 - self.decay) * (1 - left_out)
        for average, parameter in zip(self.weights.values(), self._parameters, strict=True):
            local(average).lerp_(local(parameter).float(), weight)
