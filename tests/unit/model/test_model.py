import copy
import dataclasses
import io
import math
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from PIL import Image
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import DataLoader

from limner.architecture import PAPER, ZOO, ViTConfig
from limner.data.pairs import MAX_IMAGE_BYTES
from limner.data.tokenizer import EOS, Tokenizer
from limner.errors import ConfigError, DataError, LimnerError, ModelError
from limner.model.clip import CLIP, create
from limner.model.inputs import may_look
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


# --- what is passed --------------------------------------------------------------------------------------------------


@pytest.fixture
def png(picture: Callable[..., bytes]) -> bytes:
    return picture(50, 40)


def as_array(content: bytes, mode: str = "RGB") -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert(mode))


class Place:
    """A path of somebody else's."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


def test_one_picture_may_be_anything_that_holds_one(model: CLIP, png: bytes, tmp_path: Path):
    path = tmp_path / "a.png"
    path.write_bytes(png)
    wanted, used = model.encode_image(path), io.BytesIO(png)
    used.read()  # as by whoever looked at it before
    rgba = np.dstack([as_array(png), np.full((40, 50), 255, np.uint8)])
    with path.open("rb") as opened:
        for one in (
            *(str(path), Place(path), np.str_(path), np.array(str(path)), png, bytearray(png), memoryview(png)),
            *(used, opened, Image.open(path), as_array(png), rgba, as_array(png)[None], as_array(png)[::-1][::-1]),
            torch.from_numpy(model.preprocess(path)[0].numpy()),
        ):
            assert torch.equal(model.encode_image(one), wanted), type(one)
    grey = as_array(png, "L")
    same = model.encode_image(Image.fromarray(grey))
    assert torch.equal(model.encode_image(grey), same) and torch.equal(model.encode_image(grey[:, :, None]), same)


def test_several_pictures_may_be_in_anything_that_has_an_order(model: CLIP, png: bytes):
    array, pixels = as_array(png), model.preprocess(png)
    wanted = model.encode_image([png, png])
    normalised = (pixels.float() / 255 - model._mean) / model._std
    for several in (
        *((png, png), (png for _ in "ab"), {1: png, 2: png}.values(), np.array([png, None], dtype=object)[[0, 0]]),
        *([array, io.BytesIO(png)], np.stack([array, array]), pixels.repeat(2, 1, 1, 1), [pixels[0], pixels[0]]),
        *(pixels.repeat(2, 1, 1, 1).numpy(), [normalised[0]] * 2, normalised.repeat(2, 1, 1, 1).numpy()),
    ):
        assert torch.equal(model.encode_image(several), wanted)
    assert torch.equal(model.preprocess(torch.from_numpy(array.copy()).permute(2, 0, 1)), pixels)
    for none in ([], (), np.array([]), np.empty((0, 40, 50, 3), np.uint8), pixels[:0], normalised[:0]):
        assert model.encode_image(none).shape == (0, 64) and model.encode_image(none).dtype == torch.float32
    assert model.preprocess([]).shape == (0, 3, 32, 32)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (None, "must be a path, .* or several in an order. Got None"),
        (7, "Got int 7"),
        ({"a.png"}, "Got set"),
        ({"a.png": 1}, "Got dict"),
        ([None], "at place 0 must be a path"),
        ([float("nan")], "at place 0 .* Got float nan"),
        ([["a.png"]], "at place 0 .* Got list"),
        (["a\0.png"], "must be a path"),
        ("none.png", "must be a file"),
        (b"no picture", "readable picture"),
        (io.BytesIO(), "an empty file"),
        (io.StringIO("text"), "file of bytes"),
        (np.zeros((40, 50, 3)), r"\(x \* 255\)"),
        (np.zeros((40, 50, 3), np.int64), "must be uint8"),
        (np.zeros((3, 40, 50), np.uint8), r"torch\.from_numpy\(x\) for channels that come first"),
        (np.zeros((0, 5, 3), np.uint8), "must be uint8"),
        (np.zeros((2, 100, 3), np.uint8), "longer than 16 to 1"),
        (np.array([1, 2]), "at place 0 must be a path"),
        (Image.new("F", (4, 4), 5.0), "floats from 5.0 to 5.0"),
        (np.zeros((2, 3, 32, 32), np.longdouble), "of a kind that torch has"),
        (Image.new("RGB", (0, 4)), "readable picture"),
        (torch.zeros(1, 32, 32, 3, dtype=torch.uint8), r"permute\(0, 3, 1, 2\)"),
        (torch.zeros(3, 32, 32, dtype=torch.bool), "be uint8, or floats"),
        (torch.zeros(2, 3, dtype=torch.uint8), r"have the shape \[batch, 3, 32, 32\]"),
        (torch.full((2, 3, 32, 32), float("nan")), "be finite and normalised"),
        (torch.full((2, 3, 32, 32), 255.0), "from 255 to 255 in the picture at place 0, 2 such"),
    ],
)
def test_what_is_no_picture_is_refused_in_a_sentence(model: CLIP, wrong: object, message: str):
    with pytest.raises(LimnerError, match=message):
        model.encode_image(wrong)


def test_a_closed_file_and_a_damaged_picture_are_refused(model: CLIP, png: bytes):
    closed = io.BytesIO(png)
    closed.close()
    with pytest.raises(DataError, match=r"at place 1 must be readable\. Got I/O operation on closed file"):
        model.encode_image([png, closed])
    with pytest.raises(DataError, match="at place 1 must be a readable picture"):
        model.encode_image([png, Image.open(io.BytesIO(png[:-200]))])


def test_noise_on_normalised_pixels_is_fine(model: CLIP, generator: torch.Generator):
    white = ((1 - model._mean) / model._std).expand(4, 3, 32, 32)
    assert model.encode_image(white + torch.randn(4, 3, 32, 32, generator=generator)).shape == (4, 64)


def test_sentences_and_ids_in_any_order_keeping_form(model: CLIP, tokenizer: Tokenizer):
    wanted, ids = model.encode_text(["a dog", "☕"]), tokenizer(["a dog", "☕"])
    for texts in (
        *(
            ("a dog", "☕"),
            (text for text in ["a dog", "☕"]),
            np.array(["a dog", "☕"]),
            {1: "a dog", 2: "☕"}.values(),
        ),
        *(ids, ids.astype(np.int32), ids.tolist(), list(ids), list(torch.from_numpy(ids)), torch.from_numpy(ids).int()),
    ):
        assert torch.equal(model.encode_text(texts), wanted)
    for one in ("a dog", np.str_("a dog"), np.array("a dog"), ids[0], ids[0].tolist(), torch.from_numpy(ids[0])):
        assert torch.equal(model.encode_text(one), model.encode_text(["a dog"]))
    for none in ([], (), np.array([], dtype=str), ids[:0]):
        assert model.encode_text(none).shape == (0, 64)
    assert model.tokenize("a dog").shape == (1, 77) and model.tokenize([]).shape == (0, 77)
    assert model.tokenize([]).dtype == torch.int64


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (None, "Got None"),
        (b"a dog", r"content\.decode\(\)"),
        (Path("a dog"), "must be text"),
        ({"a", "b"}, "Got set"),
        (["a", None], "at place 1, must be text"),
        ([float("nan")], "at place 0, .* Got float nan"),
        ([["a"]], "at place 0, .* Got list"),
        ([[1, 2], [1]], "rows of one length"),
        ([1, 2], r"have the shape \[batch, 77\]"),  # labels, say: no end token
        (np.array([["a"]]), "several in an order"),
        (torch.full((1, 77), -1), "not negative. Got -1"),
        (np.full((1, 77), 10**6), "below the vocabulary's"),
        (torch.zeros(1, 77), "be whole numbers"),
        (np.zeros((1, 77)), "be whole numbers"),
        (torch.zeros(1, 77, dtype=torch.bool), "be whole numbers"),
    ],
)
def test_what_is_no_sentence_is_refused_in_one(model: CLIP, wrong: object, message: str):
    with pytest.raises(LimnerError, match=message):
        model.encode_text(wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": None}, "be the name of an architecture"),
        ({"name": ["RN-nano"]}, "Got list"),
        ({"name": "RN-nano", "tokenizer": "tokenizer.json"}, r"limner\.Tokenizer\.load"),
    ],
)
def test_a_model_is_created_by_name(arguments: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        create(**arguments)


def test_another_resolution_is_a_whole_number(model: CLIP):
    with pytest.raises(ConfigError, match=r"be a whole number\. Got str '64'"):
        model.resize_images("64")


# --- gradients, and numbers that are not finite ----------------------------------------------------------------------


def test_features_have_a_gradient_in_training_or_when_asked(model: CLIP, generator: torch.Generator):
    x, tokens = pixels(2, 32, generator), model.tokenize(["a dog", "a cat"])
    for features in (model.encode_image(x), model.encode_text(tokens)):
        assert not features.requires_grad and features.numpy().shape == (2, 64)
    assert not model.logit_scale.requires_grad  # or a loss of such features would train it alone, and nobody notice
    assert all(part.requires_grad for part in model(x, tokens))
    assert model.encode_image(x, gradient=True).requires_grad and model.encode_text(tokens, gradient=True).requires_grad
    floats = torch.randn(2, 3, 32, 32, generator=generator, requires_grad=True)
    model.encode_image(floats).sum().backward()  # what a picture must become to be more of a dog
    assert floats.grad is not None and floats.grad.any()
    model.train()
    assert model.encode_image(x).requires_grad and model.encode_text(tokens).requires_grad
    assert model.logit_scale.requires_grad
    with torch.no_grad():
        assert not model.encode_image(x, gradient=True).requires_grad


def test_features_that_are_not_finite_are_an_error_that_names_the_weights(model: CLIP, generator: torch.Generator):
    x = pixels(3, 32, generator)
    with torch.no_grad():
        model.image.attention_pool.c_proj.weight[0, 0] = math.nan
    with pytest.raises(ModelError, match=r"image\.attention_pool\.c_proj\.weight \(1 of 8,192\)"):
        model.encode_image(x)
    assert model.encode_text("a dog").isfinite().all()
    assert model.train().encode_image(x).isnan().any()  # training has its own guard, and waits for no look
    model.eval()
    with torch.no_grad():
        model.text.projection.weight.fill_(1e38)  # finite, but not what they are multiplied with
    with pytest.raises(ModelError, match="in 2, the first at place 0, though the weights are finite"):
        model.encode_text(["a dog", "a cat"])


def test_an_embedding_whose_length_overflows_is_no_feature_of_zeros(model: CLIP, generator: torch.Generator):
    with torch.no_grad():
        model.image.attention_pool.c_proj.weight *= 1e25
    with pytest.raises(ModelError, match="features of the pictures must be finite"):
        model.encode_image(pixels(1, 32, generator))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_the_towers_alone_are_rounded(model: CLIP, dtype: torch.dtype, generator: torch.Generator):
    x = pixels(4, 32, generator)
    mean, scale, before = model._mean.clone(), model.logit_scale.item(), model.encode_image(x)
    model.to(dtype)
    assert model.image.dtype == dtype and model.text.positional_embedding.dtype == dtype
    assert torch.equal(model._mean, mean) and model.logit_scale.item() == scale
    # 8 bits of a number in bfloat16, some tens of layers
    assert nn.functional.cosine_similarity(model.encode_image(x), before).min() > 0.99
    assert model.double()._mean.dtype == torch.float64


# --- copies ----------------------------------------------------------------------------------------------------------


def saved_and_loaded(model: CLIP) -> CLIP:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), saved_and_loaded],
    ids=["deepcopy", "pickle", "torch.save"],
)
@pytest.mark.parametrize("name", ["RN-nano", "ViT-mini"])
def test_a_copy_is_the_model(name: str, copied: Callable[[CLIP], CLIP], tokenizer: Tokenizer):
    shape = dataclasses.replace(ZOO[name], objective="sigmoid", initial_logit_bias=-10.0)
    model = create(shape, tokenizer=Tokenizer(tokenizer.vocab, tokenizer.merges))
    model.fingerprint, x = "abc", pixels(2, shape.image_size, torch.Generator().manual_seed(0))
    texts = [f"a {EOS} dog", "a " * 100]
    model.bfloat16().float()  # rounds the towers: a copy is of what the model is, not of what it was
    tokens = model.tokenize(texts)
    model.train().lock("image")
    model.recompute_blocks()
    again = copied(model)
    assert (again.fingerprint, again.locked, again.training, again.image.training) == ("abc", ("image",), True, False)
    assert again.image.blocks.recompute and again.text.blocks.recompute and again.architecture == model.architecture
    assert set(again.state_dict()) == set(model.state_dict()) and "logit_bias" in again.state_dict()
    assert torch.equal(again._mean, model._mean) and torch.equal(again._std, model._std)
    assert not any(p.requires_grad for p in again.image.parameters())
    assert again.tokenizer is not None and again.tokenizer.cut == 1
    assert torch.equal(again.tokenize(texts), tokens)
    assert all(map(torch.equal, model.eval()(x, tokens), again.eval()(x, tokens)))


def test_a_spawned_worker_has_the_model(model: CLIP):
    texts = [f"a {EOS} dog", "a cat"]
    loader = DataLoader(
        texts,  # type: ignore[arg-type]
        batch_size=2,
        collate_fn=model.encode_text,
        num_workers=1,
        multiprocessing_context="spawn",
        generator=torch.Generator(),
    )
    (features,) = loader
    assert torch.allclose(features, model.encode_text(texts), atol=1e-6)  # another number of threads


class Odd:
    """An open file of somebody else's."""

    def __init__(self, content: bytes, most: int = 2**30, kind: type = bytes, error: Exception | None = None) -> None:
        self.content, self.most, self.kind, self.error = content, most, kind, error

    def read(self, count: int) -> object:
        if self.error is not None:
            raise self.error
        piece, self.content = self.content[: min(count, self.most)], self.content[min(count, self.most) :]
        return self.kind(piece)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_file_that_gives_less_than_is_asked_for_is_read_to_its_end(model: CLIP, png: bytes, kind: type):
    assert torch.equal(model.encode_image(Odd(png, most=100, kind=kind)), model.encode_image(png))


@pytest.mark.parametrize("error", [zipfile.BadZipFile("Bad CRC-32"), EOFError(), TypeError("no"), KeyError("x")])
def test_what_a_file_raises_is_a_sentence(model: CLIP, png: bytes, error: Exception):
    with pytest.raises(DataError, match=f"must be readable. Got {str(error) or type(error).__name__}"):
        model.encode_image(Odd(png, error=error))


def test_a_file_over_the_limit_is_too_large_not_cut(model: CLIP, png: bytes, tmp_path: Path):
    (tmp_path / "large.png").write_bytes(png + bytes(MAX_IMAGE_BYTES))
    for large in (tmp_path / "large.png", Odd(png + bytes(MAX_IMAGE_BYTES))):
        with pytest.raises(DataError, match="Got picture file over 64 MiB"):
            model.encode_image(large)


def test_arrays_of_other_byte_orders_and_tensors_of_any_kind_are_read(model: CLIP, png: bytes):
    pixels = model.preprocess(png)
    wanted = model.encode_image(pixels)
    normalised = (pixels.float() / 255 - model._mean) / model._std
    assert torch.allclose(model.encode_image(normalised.numpy().astype(">f4")), wanted, atol=1e-5)
    greys = Image.new("F", (40, 30), 0.5), Image.new("L", (40, 30), 128)
    assert torch.equal(*map(model.encode_image, greys))
    other = torch.from_numpy(np.array(Image.open(io.BytesIO(png)))).permute(2, 0, 1)
    assert torch.equal(model.encode_image(other), wanted)  # a tensor of another size is a picture, alone as in a list
    ids = model.tokenize(["a dog", "a table"])
    wanted = model.encode_text(ids)
    for same in (ids.numpy().astype(">i8"), list(ids), {"a dog": 1, "a table": 2}.keys()):
        assert torch.equal(model.encode_text(same), wanted)
    for wrong in (ids.to(torch.bfloat16), [ids[0].to(torch.bfloat16)], [[1, 2], [3]], np.zeros((1, 4), np.longdouble)):
        with pytest.raises(LimnerError, match="must be"):
            model.encode_text(wrong)
    assert model.tokenizer is not None
    for wrong in (ids[0].to(torch.bfloat16), ids[0].float().requires_grad_()):
        with pytest.raises(ConfigError, match="whole numbers"):
            model.tokenizer.decode(wrong)


def test_numbers_that_are_not_there_are_not_looked_at():
    numbers, looked = torch.zeros(3), list[bool]()

    def look(one: torch.Tensor) -> torch.Tensor:
        looked.append(may_look(one))
        return one.sum()

    torch.func.vmap(look)(numbers)
    torch.func.grad(look)(numbers)
    with FakeTensorMode() as mode:
        look(mode.from_tensor(numbers))
    assert looked == [False] * 3 and may_look(numbers) and may_look(nn.Parameter(numbers))
