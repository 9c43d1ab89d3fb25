"""The paper's architectures: shapes, exact sizes, the scaling rule, the initialisation."""

from dataclasses import replace

import pytest
import torch

from limner.architecture import PAPER, ZOO, ResNetConfig, ViTConfig, scale_resnet
from limner.data.tokenizer import Tokenizer
from limner.errors import ConfigError
from limner.model.clip import CLIP, create
from limner.model.resnet import ResNet
from limner.model.size import size_of
from limner.model.transformer import Transformer
from limner.model.vit import ViT

# Parameters as published for ViT-B/32 and as counted in OpenAI's other files; GFLOPs derived on paper, 2 x MAC.
SIZES = {
    "RN50": (102_007_137, 11.59, 5.96),
    "RN101": (119_688_033, 19.01, 5.96),
    "RN50x4": (178_300_601, 41.16, 9.27),
    "RN50x16": (290_979_217, 145.74, 13.30),
    "RN50x64": (623_258_305, 520.25, 23.55),
    "ViT-B/32": (151_277_313, 8.82, 5.96),
    "ViT-B/16": (149_620_737, 35.13, 5.96),
    "ViT-L/14": (427_616_513, 162.03, 13.30),
    "ViT-L/14@336px": (427_944_193, 381.92, 13.30),
}


@pytest.mark.parametrize("name", PAPER)
def test_sizes(name: str):
    size = size_of(ZOO[name])
    parameters, image, text = SIZES[name]
    assert size.parameters == parameters
    assert (size.image_gflops, size.text_gflops) == pytest.approx((image, text), abs=0.005)


def test_the_scaling_rule_gives_the_papers_resnets():
    published = {  # tables 19 and 20: blocks, width, resolution, embedding, text width
        4: ((4, 6, 10, 6), 80, 288, 640, 640),
        16: ((6, 8, 18, 8), 96, 384, 768, 768),
        64: ((3, 15, 36, 10), 128, 448, 1024, 1024),
    }
    for compute, (layers, width, image_size, embed_dim, text_width) in published.items():
        shape = scale_resnet(compute)
        assert shape == ZOO[f"RN50x{compute}"]
        assert isinstance(shape.image, ResNetConfig)
        assert (shape.image.layers, shape.image.width, shape.image_size) == (layers, width, image_size)
        assert (shape.embed_dim, shape.text.width, shape.text.layers) == (embed_dim, text_width, 12)
        assert abs(sum(layers) - 16 * compute ** (1 / 3)) < 1  # the depth follows the rule, its spread does not


@pytest.mark.parametrize("compute", [1, 2, 8, 32, pytest.param(128, marks=pytest.mark.slow)])
def test_the_scaling_rule_spends_about_the_compute_that_was_asked_for(compute: int):
    spent = size_of(scale_resnet(compute)).image_gflops / size_of(ZOO["RN50"]).image_gflops
    assert compute / 1.5 < spent < compute * 1.5  # the paper's RN50x64: 45 times


def test_no_network_is_smaller_than_none():
    with pytest.raises(ConfigError, match="must be at least 1"):
        scale_resnet(0)


def check(tensors: dict[str, tuple[torch.Tensor, float]]) -> None:
    for name, (tensor, std) in tensors.items():
        # the standard error of a deviation over n numbers is 1 / sqrt(2 n) of it; five of them, and 1 % of slack
        slack = 0.01 + 5 * (2 * tensor.numel()) ** -0.5
        assert tensor.std().item() == pytest.approx(std, rel=slack), name


def blocks_of(blocks: Transformer, hidden: int, layers: int, *, paper: bool) -> dict[str, tuple[torch.Tensor, float]]:
    """Text blocks start as the paper says; the ViT's as torch does, which is what OpenAI's released code runs."""
    out = (2 * layers * hidden) ** -0.5
    stds = (
        (hidden**-0.5, out, (2 * hidden) ** -0.5, out)
        if paper
        else ((2 / (4 * hidden)) ** 0.5, (3 * hidden) ** -0.5, (3 * hidden) ** -0.5, (12 * hidden) ** -0.5)
    )
    first = blocks[0]
    weights = (first.attention.in_proj, first.attention.out_proj, first.mlp.inwards, first.mlp.outwards)  # type: ignore[union-attr]
    names = ("into attention", "out of attention", "into the MLP", "out of the MLP")
    return {name: (linear.weight, std) for name, linear, std in zip(names, weights, stds, strict=True)}


def test_initialisation_of_the_text_encoder_and_the_vit(tokenizer: Tokenizer):
    model = create("ViT-small", tokenizer=tokenizer)
    assert isinstance(model.image, ViT)
    check(
        {
            "token embedding": (model.text.token_embedding.weight, 0.02),
            "positions of text": (model.text.positional_embedding, 0.01),
            "text projection": (model.text.projection.weight, 256**-0.5),
            **blocks_of(model.text.blocks, 256, 4, paper=True),
        }
    )
    check(
        {
            "class": (model.image.class_embedding, 256**-0.5),
            "positions": (model.image.positional_embedding, 256**-0.5),
            "projection": (model.image.projection.weight, 256**-0.5),
            "patches": (model.image.patch_embedding.weight, (3 * 3 * 12 * 12) ** -0.5),
            **blocks_of(model.image.blocks, 256, 8, paper=False),
        }
    )
    for blocks in (model.text.blocks, model.image.blocks):
        for block in blocks:
            assert (block.norm_1.weight == 1).all() and (block.norm_1.bias == 0).all()  # type: ignore[union-attr]
    assert model.log_logit_scale.item() == pytest.approx(2.6593, abs=1e-4)


def test_initialisation_of_the_resnet(tokenizer: Tokenizer):
    model: CLIP = create("RN-small", tokenizer=tokenizer)
    assert isinstance(model.image, ResNet)
    pool = model.image.attention_pool
    std = pool.q_proj.in_features**-0.5
    linears = (pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj)
    check({f"pool {i}": (linear.weight, std) for i, linear in enumerate(linears)})
    check(
        {
            "positions": (pool.positional_embedding, std),
            "a convolution": (model.image.blocks[0].conv2.weight, (3 * 9 * 32) ** -0.5),  # type: ignore[union-attr]
        }
    )
    assert all((block.bn3.weight == 0).all() for block in model.image.blocks)  # type: ignore[union-attr]


def test_every_vit_has_heads_of_64_and_the_text_grows_in_width_only():
    for name in PAPER:
        shape = ZOO[name]
        assert shape.text.width == 64 * shape.text.heads and shape.text.layers == 12
        assert shape.activation == "quick_gelu" and shape.text.context_length == 77
        if isinstance(shape.image, ViTConfig):
            assert shape.image.width == 64 * shape.image.heads


@pytest.mark.parametrize("values", [(0.5, 0.5, float("nan")), (1.0, 1.0, float("inf")), (0.0, 1.0, 1.0)])
def test_pixels_are_normalised_by_three_numbers(values: tuple[float, float, float]):
    with pytest.raises(ConfigError, match=r"The deviation of the pixels must be three finite numbers"):
        replace(ZOO["RN50"], image_std=values)


@pytest.mark.parametrize("mean", [float("nan"), 1e300, float("-inf")])
def test_means_that_are_no_colours_are_a_sentence(mean: float):
    with pytest.raises(ConfigError, match="The mean of the pixels must be three finite numbers"):
        replace(ZOO["ViT-B/32"], image_mean=(0.0, mean, 0.0))
