"""AdamW with decoupled weight decay on everything but gains and biases (paper section 2.5)."""

import torch
from torch import nn

from limn.config import OptimConfig


def decays(parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to matrices, kernels and embeddings; not to gains, biases and the logit scale."""
    return parameter.ndim > 1


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW for `model`; the learning rate is set before each step."""
    parameters = list(model.parameters())
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if decays(p)], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if not decays(p)], "weight_decay": 0.0},
        ],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )
