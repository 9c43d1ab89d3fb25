import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limner.architecture import ZOO
from limner.config import OptimConfig, Plan
from limner.data.tokenizer import Tokenizer
from limner.model.clip import create
from limner.objectives.sigmoid import Sigmoid
from limner.training.half_adamw import HalfAdamW
from limner.training.optimizer import gains_and_biases, halve_weights, lr_share, make_optimizer


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


BLOCK_GAINS_AND_BIASES = (
    "norm_1.weight",
    "norm_1.bias",
    "attention.in_proj.bias",
    "attention.out_proj.bias",
    "norm_2.weight",
    "norm_2.bias",
    "mlp.inwards.bias",
    "mlp.outwards.bias",
)


def of_blocks(tower: str, layers: int) -> set[str]:
    return {f"{tower}.blocks.{layer}.{name}" for layer in range(layers) for name in BLOCK_GAINS_AND_BIASES}


def test_gains_and_biases_of_a_vit():
    norms = ("image.norm_before", "image.norm_after", "text.norm")
    assert gains_and_biases(create("ViT-mini")) == {
        "log_logit_scale",
        *(f"{norm}.{kind}" for norm in norms for kind in ("weight", "bias")),
        *of_blocks("image", 6),
        *of_blocks("text", 2),
    }


def test_gains_and_biases_of_a_resnet():
    blocks = ("image.blocks.0", "image.blocks.1")
    norms = (
        *(f"image.bn{index}" for index in (1, 2, 3)),
        *(f"{block}.{norm}" for block in blocks for norm in ("bn1", "bn2", "bn3", "shortcut.2")),
        "text.norm",
    )
    assert gains_and_biases(create("RN-nano")) == {
        "log_logit_scale",
        *(f"{norm}.{kind}" for norm in norms for kind in ("weight", "bias")),
        *(f"image.attention_pool.{projection}_proj.bias" for projection in "qkvc"),
        *of_blocks("text", 1),
    }


def test_a_logit_bias_does_not_decay():
    assert "logit_bias" in gains_and_biases(create(Sigmoid().adapt(ZOO["ViT-mini"])))


def test_all_but_gains_and_biases_decays(tokenizer: Tokenizer):
    model = create("ViT-mini", tokenizer=tokenizer)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decaying, free = make_optimizer(model, OptimConfig(lr=1e-3, weight_decay=0.3)).param_groups
    assert decaying["weight_decay"] == 0.3 and free["weight_decay"] == 0.0
    left_out = {names.pop(id(parameter)) for parameter in free["params"]}
    assert left_out == gains_and_biases(model)
    assert {id(parameter) for parameter in decaying["params"]} == names.keys()
    assert {"image.class_embedding", "text.token_embedding.weight"} < set(names.values())


@pytest.mark.parametrize(("name", "beta2", "eps"), [("ViT-mini", 0.98, 1e-6), ("RN-nano", 0.999, 1e-8)])
def test_betas_and_eps_are_of_the_image_encoders_family(name: str, beta2: float, eps: float, tokenizer: Tokenizer):
    model = create(name, tokenizer=tokenizer)
    for moments in ("fp32", "bf16"):
        for group in make_optimizer(model, OptimConfig(lr=1e-3, moments=moments)).param_groups:
            assert (group["betas"], group["eps"]) == ((0.9, beta2), eps)
    group = make_optimizer(model, OptimConfig(lr=1e-3, beta2=0.95, eps=1e-4)).param_groups[0]
    assert (group["betas"], group["eps"]) == ((0.9, 0.95), 1e-4)


def test_halves_are_for_half_adamw(tokenizer: Tokenizer):
    model = create("ViT-mini", tokenizer=tokenizer)
    assert type(make_optimizer(model, OptimConfig(lr=1e-3))) is torch.optim.AdamW
    assert type(make_optimizer(model, OptimConfig(lr=1e-3, moments="bf16"))) is HalfAdamW
    halve_weights(model, ("text",))
    optimizer = make_optimizer(model, OptimConfig(lr=1e-3))
    assert isinstance(optimizer, HalfAdamW) and optimizer.moments == torch.float32


def test_the_decay_is_decoupled(tokenizer: Tokenizer):
    model = create("RN-nano", tokenizer=tokenizer)
    optimizer = make_optimizer(model, OptimConfig(lr=0.1, weight_decay=0.5))
    weight = model.text.projection.weight
    before = weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.allclose(weight, before * (1 - 0.1 * 0.5))
