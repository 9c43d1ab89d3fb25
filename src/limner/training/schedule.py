"""The learning rate at each step: linear warm-up, then cosine to zero (paper section 2.5)."""

import math

from limner.config import Plan


def lr_share(step: int, plan: Plan) -> float:
    """The share of the peak learning rate at `step`, counted from 0; it reaches 1 at the end of the warm-up."""
    if step < plan.warmup_steps:
        return (step + 1) / plan.warmup_steps
    progress = (step - plan.warmup_steps) / max(1, plan.steps - plan.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))
