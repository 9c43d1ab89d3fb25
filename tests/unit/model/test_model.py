import dataclasses
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from PIL import Image
from torch import nn

from limner.architecture import PAPER, ZOO, ViTConfig
from limner.data.tokenizer import Tokenizer
from limner.errors import ConfigError, ModelError
from limner.model.clip import CLIP, create
from limner.model.resnet import AttentionPool
from limner.model.text import TextEncoder
from limner.model.transformer import attention, attention_reference
from limner.model.vit import ViT
from limner.store.store import load

Encode = Callable[[torch.Tensor], torch.Tensor]


@pytest.fixture
def model(tokenizer: Tokenizer) -> CLIP:
    return create("RN-nano", tokenizer=tokenizer).eval()


def pixels(number: int, size: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 256, (number, 3, size, size), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", [name for name in ZOO if name not in PAPER])
def test_features_of_every_architecture(name: str, tokenizer: Tokenizer, generator: torch.Generator):
    model = create(name, tokenizer=tokenizer).eval()
    image, text, scale = model(pixels(3, ZOO[name].image_size, generator), model.tokenize(["a dog", "", "x " * 100]))
    for features in (image, text):
        assert features.shape == (3, ZOO[name].embed_dim) and features.dtype == torch.float32
        assert torch.allclose(features.norm(dim=1), torch.ones(3), atol=1e-6)
    assert math.isclose(scale.item(), 1 / 0.07, rel_tol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_fused_attention_equals_the_reference_in_value_and_gradient(causal: bool, generator: torch.Generator):
    query, key, value = (
        torch.randn(2, 3, 7, 8, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(3)
    )
    fused = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
    plain = attention_reference(query, key, value, causal=causal)
    assert torch.allclose(fused, plain, atol=1e-12)
    weights = torch.randn(plain.shape, generator=generator, dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad(fused, (query, key, value), weights),
        torch.autograd.grad(plain, (query, key, value), weights),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-12)
    with torch.no_grad():
        assert torch.allclose(attention(query, key, value, causal=causal), plain, atol=1e-12)


def test_captions_in_groups_equal_captions_whole_in_value_and_gradient(
    tokenizer: Tokenizer, generator: torch.Generator
):
    shape = ZOO["RN-nano"]
    text = dataclasses.replace(shape.text, vocab_size=tokenizer.vocab_size, layers=2)
    with torch.random.fork_rng():
        encoder = TextEncoder(text, 16, "gelu").double()
    words = ["a dog", "on", "picture number 12, drawn by hand", "", "the digit three " * 9]
    tokens = torch.from_numpy(tokenizer([words[i % 5] + " a" * (i % 7) for i in range(50)]))
    weights = torch.randn(50, 16, generator=generator, dtype=torch.float64)
    values, gradients = [], []
    for encode in (encoder.forward, encoder.encode_whole):
        encoder.zero_grad()
        out = encode(tokens)
        (out * weights).sum().backward()
        values.append(out.detach())
        gradients.append([p.grad.clone() for p in encoder.parameters() if p.grad is not None])
    # float64: what differs is the order of sums, some 1e-16 a term
    assert torch.allclose(*values, atol=1e-12)
    assert all(torch.allclose(a, b, atol=1e-11) for a, b in zip(*gradients, strict=True))


def assert_equal_in_value_and_gradient(module: nn.Module, fast: Encode, whole: Encode, x: torch.Tensor) -> None:
    """In float64, where what differs is the order of sums, some 1e-16 a term."""
    values = [encode(x) for encode in (fast, whole)]
    weights = torch.randn(values[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = [torch.autograd.grad((value * weights).sum(), [x, *module.parameters()]) for value in values]
    assert torch.allclose(*values, atol=1e-12)
    assert all(torch.allclose(a, b, atol=1e-11) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_the_vit_without_what_nobody_reads_equals_the_whole_one_in_value_and_gradient(
    activation: Literal["gelu", "quick_gelu"], generator: torch.Generator
):
    with torch.random.fork_rng():
        encoder = ViT(ViTConfig(layers=3, width=32, heads=4, patch_size=4), 16, 12, activation).double()
    x = torch.randn(5, 3, 12, 12, generator=generator, dtype=torch.float64, requires_grad=True)
    assert_equal_in_value_and_gradient(encoder, encoder.forward, encoder.encode_whole, x)


def test_the_attention_pool_of_one_query_equals_that_of_all_in_value_and_gradient(generator: torch.Generator):
    with torch.random.fork_rng():
        pool = AttentionPool(9, 32, 4, 16).double()
    x = torch.randn(5, 32, 3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    assert_equal_in_value_and_gradient(pool, pool.forward, pool.attend_whole, x)


def test_channels_last_is_a_layout_not_another_result(tokenizer: Tokenizer, generator: torch.Generator):
    model = create("RN-nano", tokenizer=tokenizer).double()
    x = torch.randn(3, 3, 32, 32, generator=generator, dtype=torch.float64)
    one = model.image(x)
    model.image.to(memory_format=torch.contiguous_format)
    assert torch.allclose(one, model.image(x), atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-mini", "RN-nano"])
def test_compiled_encoders_give_the_same_features(name: str):
    if shutil.which("g++") is None and shutil.which("c++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    # in a process of its own: the checks of shapes that the tests install cannot be compiled
    code = f"""
import torch, limner
model = limner.create("{name}")
pixels = torch.randint(0, 256, (3, 3, *[model.architecture.image_size] * 2), dtype=torch.uint8)
with torch.no_grad():
    plain = model.encode_image(pixels)
    model.image.compile()
    apart = (model.encode_image(pixels) - plain).abs().max().item()
assert apart < 1e-6, apart
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@given(position=st.integers(1, 20), token=st.integers(0, 500))
@settings(max_examples=20)
def test_what_follows_the_end_does_not_matter(tokenizer: Tokenizer, position: int, token: int):
    encoder = create("RN-nano", tokenizer=tokenizer).text.eval()
    tokens = torch.from_numpy(tokenizer(["a dog on a table"]))
    changed = tokens.clone()
    changed[0, int(tokens.argmax()) + position] = token
    with torch.no_grad():
        assert torch.equal(encoder.encode_whole(tokens), encoder.encode_whole(changed))


def test_the_logit_scale_is_clipped_at_100(model: CLIP):
    with torch.no_grad():
        model.log_logit_scale.fill_(7.0)
    model.clip_logit_scale()
    assert model.logit_scale.item() == pytest.approx(100)


def test_the_same_seed_gives_the_same_weights(tokenizer: Tokenizer):
    one, two, other = (create("ViT-mini", tokenizer=tokenizer, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["text.projection.weight"], other["text.projection.weight"])


def test_pictures_paths_and_pixels_give_the_same_features(model: CLIP, picture: Callable[..., bytes], tmp_path: Path):
    path = tmp_path / "picture.png"
    path.write_bytes(picture(50, 40))
    with torch.no_grad():
        by_path = model.encode_image(str(path))
        by_picture = model.encode_image([Image.open(path)])
        uint8 = model.preprocess(path)
        normalised = (uint8.float() / 255 - model._mean) / model._std
        assert torch.equal(by_path, by_picture) and torch.equal(by_path, model.encode_image(uint8))
        assert torch.equal(by_path, model.encode_image(normalised))
        raw = model.encode_image(uint8, normalize=False)
        assert torch.allclose(raw / raw.norm(), by_path, atol=1e-6)


def test_wrong_pixels_and_a_missing_tokenizer_are_explained(model: CLIP):
    with pytest.raises(ModelError, match=r"\[batch, 3, 32, 32\]"):
        model.encode_image(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ModelError, match="uint8, or floats"):
        model.encode_image(torch.zeros(1, 3, 32, 32, dtype=torch.long))
    with pytest.raises(ModelError, match=r"have the shape \[batch, 77\]"):
        model.encode_text(torch.zeros(1, 78, dtype=torch.long))
    with pytest.raises(ModelError, match=r"be below the vocabulary's"):
        model.encode_text(torch.full((1, 5), model.architecture.text.vocab_size))
    model.tokenizer = None
    with pytest.raises(ModelError, match=r"limner\.Tokenizer\.load"):
        model.encode_text("a dog")


def test_no_captions_have_no_features(model: CLIP):
    assert model.encode_text(torch.zeros(0, 77, dtype=torch.long)).shape == (0, 64)


def test_a_tokenizer_of_another_size_is_refused(tokenizer: Tokenizer):
    with pytest.raises(ModelError, match="have the text encoder's 49408 tokens"):
        CLIP(ZOO["RN-nano"], tokenizer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 33}, "multiple of 8 pixels"),
        ({"activation": "quickgelu"}, "be one of gelu, quick_gelu"),
    ],
)
def test_an_architecture_that_cannot_be_is_refused(change: dict[str, object], message: str):
    with pytest.raises((ConfigError, TypeCheckError), match=message if "image_size" in change else None):
        dataclasses.replace(ZOO["RN-nano"], **change)
    with pytest.raises(ConfigError, match="divide its width 64"):
        dataclasses.replace(ZOO["RN-nano"].text, heads=5)


def test_an_unknown_architecture_suggests_the_near_one():
    with pytest.raises(ConfigError, match=r"Did you mean RN-mini\?"):
        create("RN-mimi")


def test_saved_and_loaded_it_is_the_same(model: CLIP, tmp_path: Path, generator: torch.Generator):
    x = pixels(2, 32, generator)
    with torch.no_grad():
        before = model.encode_image(x), model.encode_text(["a dog", "☕"])
        model.save(tmp_path / "model", pairs_seen="12")
        again = load(tmp_path / "model")
        assert torch.equal(before[0], again.encode_image(x)) and torch.equal(
            before[1], again.encode_text(["a dog", "☕"])
        )
    assert again.fingerprint == model.fingerprint and again.architecture == model.architecture
    assert not again.training
    assert "pairs seen: 12" in (tmp_path / "model" / "README.md").read_text()


def test_a_checkpoint_of_another_architecture_lists_what_does_not_fit(
    model: CLIP, tokenizer: Tokenizer, tmp_path: Path
):
    model.save(tmp_path / "nano")
    create("ViT-mini", tokenizer=tokenizer).save(tmp_path / "vit")
    (tmp_path / "nano" / "model.safetensors").write_bytes((tmp_path / "vit" / "model.safetensors").read_bytes())
    with pytest.raises(ModelError) as caught:
        load(tmp_path / "nano")
    for fault in (
        "image.conv1.weight is missing",
        "vision_model.embeddings.class_embedding is unknown",
        "text.norm.weight is missing",
    ):
        assert fault in str(caught.value.got)


def test_changed_files_are_noticed(model: CLIP, tmp_path: Path):
    model.save(tmp_path / "model")
    weights = bytearray((tmp_path / "model" / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "model" / "model.safetensors").write_bytes(weights)
    with pytest.raises(ModelError, match="fingerprint"):
        load(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(weights[:100])
    with pytest.raises(ModelError, match="whole safetensors"):
        load(tmp_path / "model")


def test_what_is_not_a_model(tmp_path: Path):
    with pytest.raises(ModelError, match="no such directory"):
        load(tmp_path / "none")
    with pytest.raises(ModelError, match="a directory without one"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="must hold an object"):
        load(tmp_path)
