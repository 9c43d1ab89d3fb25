import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limn.config import OptimConfig, Plan
from limn.data.tokenizer import Tokenizer
from limn.model.zoo import create
from limn.training.optimizer import make_optimizer
from limn.training.schedule import lr_share


@given(steps=st.integers(2, 400), share=st.floats(0, 0.9))
def test_warm_up_rises_to_the_peak_and_the_cosine_falls_to_nothing(steps: int, share: float):
    plan = Plan(steps=steps, warmup_steps=round(share * steps), total_pairs=1)
    rates = [lr_share(step, plan) for step in range(steps)]
    warm = plan.warmup_steps
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[:warm] == sorted(rates[:warm]) and rates[warm:] == sorted(rates[warm:], reverse=True)
    if warm < steps:
        assert rates[warm] == 1.0
        assert rates[-1] == pytest.approx(0.5 * (1 - math.cos(math.pi / (steps - warm))), abs=1e-9)


def test_gains_biases_and_the_logit_scale_do_not_decay(tokenizer: Tokenizer):
    model = create("RN-nano", tokenizer=tokenizer)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decaying, free = make_optimizer(model, OptimConfig(lr=1e-3, weight_decay=0.3)).param_groups
    assert decaying["weight_decay"] == 0.3 and free["weight_decay"] == 0.0
    assert len(decaying["params"]) + len(free["params"]) == len(names)
    for parameter in decaying["params"]:
        assert names[id(parameter)].endswith(("weight", "positional_embedding"))
    left_out = {names[id(parameter)] for parameter in free["params"]}
    assert "log_logit_scale" in left_out and "image.bn1.weight" in left_out and "text.norm.bias" in left_out


def test_the_decay_is_decoupled(tokenizer: Tokenizer):
    model = create("RN-nano", tokenizer=tokenizer)
    optimizer = make_optimizer(model, OptimConfig(lr=0.1, weight_decay=0.5))
    weight = model.text.projection.weight
    before = weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(weight, before * (1 - 0.1 * 0.5))
