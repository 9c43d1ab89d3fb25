"""Weights, pixels and tokens that are the same on every machine and cost no time to make, for models of any size."""

import hashlib

import torch
from torch import Tensor

from limner.architecture import Architecture
from limner.model.clip import CLIP
from limner.store import convert
from limner.store.store import load_weights

POOL = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))  # a prime: repeats fall on other places


def tensor(name: str, shape: torch.Size) -> Tensor:
    """A tensor of a CLIP by its name in OpenAI's, Hugging Face's or limner's convention, at a natural scale."""
    if "num_batches" in name:
        return torch.zeros(shape, dtype=torch.long)
    if name.endswith("logit_scale"):
        return torch.full(shape, 2.7)
    if name.endswith("logit_bias"):
        return torch.full(shape, -9.5)
    start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) % len(POOL)
    count = shape.numel()
    values = POOL.roll(-start).repeat(-(-count // len(POOL)))[:count].view(shape)
    if name.endswith("running_var"):
        return 0.5 + values.abs()
    if len(shape) == 1:
        gain = name.endswith("weight")
        return 0.1 * values + gain
    rows = 0 if name in convert.TRANSPOSED else slice(1, None)
    fan_in = torch.tensor(shape)[rows].prod().item()
    # 2: half of a convolution's inputs are zeros, by ReLU
    return values * (fan_in / (2 if len(shape) == 4 else 1)) ** -0.5


def filled(model: torch.nn.Module) -> torch.nn.Module:
    """`model`, from the meta device, with such tensors."""
    state = {name: tensor(name, empty.shape) for name, empty in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    return model.eval()


def made_clip(shape: Architecture) -> CLIP:
    """A CLIP whose tensors have OpenAI's names and such values."""
    with torch.device("meta"):
        model = CLIP(shape)
    theirs = convert.to_openai(model.state_dict(), shape)
    weights = {name: tensor(name, empty.shape) for name, empty in theirs.items()}
    load_weights(model, convert.from_openai(weights, shape), where="the test")
    return model.eval()


def made_batch(shape: Architecture) -> tuple[Tensor, Tensor]:
    """(normalised pixels of two pictures, token ids of a short and of a full-length caption)."""
    size, text = shape.image_size, shape.text
    coarse = 2 * POOL[: 2 * 3 * 8 * 8].view(2, 3, 8, 8)
    pixels = torch.nn.functional.interpolate(coarse, size, mode="bicubic")
    tokens = (torch.arange(2 * text.context_length) * 7919 % (text.vocab_size - 2)).view(2, -1)
    for row, end in enumerate((4, text.context_length - 1)):
        tokens[row, end:] = 0
        tokens[row, end] = text.vocab_size - 1
    return pixels, tokens
