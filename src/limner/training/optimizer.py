"""The optimizer of a model, its learning rate at each step, and the average of its weights.

AdamW with decoupled weight decay on everything but gains and biases; warm-up, then cosine to zero (paper section 2.5).
"""

import math

import torch
from torch import Tensor, nn

from limner.config import OptimConfig, Plan
from limner.model.clip import CLIP, trainable
from limner.training.half_adamw import HalfAdamW
from limner.training.world import local

NORMS = (nn.LayerNorm, nn.modules.batchnorm._BatchNorm)


# --- a model's optimizer ---------------------------------------------------------------------------------------------


def make_optimizer(model: CLIP, config: OptimConfig, *, seed: int = 0) -> "torch.optim.AdamW | HalfAdamW":
    """AdamW for `model`; the learning rate is set in each group before each step, `seed` is the rounding's.

    torch's fused AdamW where all is float32, `HalfAdamW` where moments or weights are bfloat16. Both leave a step out
    when the attribute `found_inf` is a tensor float32[] of one on the parameters' device, and no host waits for it.
    beta2 and eps that are not set are the paper's for the kind of image encoder.
    """
    config = config.for_encoder(model.architecture.image)
    assert config.beta2 is not None and config.eps is not None
    free = gains_and_biases(model)
    named = list(trainable(model).items())
    groups = [
        {"params": [parameter for name, parameter in named if name not in free], "weight_decay": config.weight_decay},
        {"params": [parameter for name, parameter in named if name in free], "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    if config.moments == "fp32" and all(parameter.dtype == torch.float32 for _, parameter in named):
        return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=True)
    moments = {"fp32": torch.float32, "bf16": torch.bfloat16}[config.moments]
    return HalfAdamW(groups, lr=config.lr, betas=betas, eps=config.eps, moments=moments, seed=seed)


def gains_and_biases(model: nn.Module) -> set[str]:
    """Names of the parameters that do not decay: the norms', biases and the logit scale.

    The others are "all weights that are not gains or biases" (paper section 2.5): matrices, kernels, and the embeddings
    of tokens, positions and the class.
    """
    return {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        for name, _ in module.named_parameters(recurse=False)
        if isinstance(module, NORMS) or name.endswith("bias") or name == "log_logit_scale"
    }


def halve_weights(model: CLIP, towers: tuple[str, ...]) -> None:
    """Make the matrices, kernels and token embeddings of `towers` ("image", "text") bfloat16, rounded to the nearest.

    Biases, norms and the embeddings of positions and the class stay float32: they are few. The parameters stay the same
    objects; the optimizer is made afterwards.
    """
    for tower in towers:
        for module in getattr(model, tower).modules():
            if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
                module.weight.data = module.weight.data.bfloat16()


# --- its learning rate, and the average ------------------------------------------------------------------------------


def lr_share(step: int, plan: Plan) -> float:
    """The share of the peak learning rate at `step`, counted from 0; it reaches 1 at the end of the warm-up."""
    if step < plan.warmup_steps:
        return (step + 1) / plan.warmup_steps
    progress = (step - plan.warmup_steps) / max(1, plan.steps - plan.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


class Average:
    """An exponential moving average of the weights (Polyak and Juditsky 1992), in float32 whatever these are in.

    average <- decay x average + (1 - decay) x weights, after each step. BatchNorm's statistics are the model's.
    """

    def __init__(self, model: CLIP, decay: float) -> None:
        self.decay = decay
        self._parameters = trainable(model)
        self.weights: dict[str, Tensor] = {
            name: parameter.detach().float().clone() for name, parameter in self._parameters.items()
        }

    @torch.no_grad()
    def update(self, left_out: Tensor) -> None:
        """After an optimizer step; one that was left out (1, else 0) does not count."""
        weight = (1 - self.decay) * (1 - left_out)
        for average, parameter in zip(self.weights.values(), self._parameters.values(), strict=True):
            local(average).lerp_(local(parameter).float(), weight)
