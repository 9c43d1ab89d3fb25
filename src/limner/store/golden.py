"""Golden vectors: inputs that travel with a model, and the features that they gave when it was saved.

`limner doctor` replays them and says whether this machine, with its versions of everything, gives the same.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from limner.model.clip import CLIP

SENTENCES = ("a photo of a cat.", "Ein Käse, zwei Brote", "☕ & 🍰 at 5 o'clock", "word " * 100)
FEATURE_TOLERANCE = 1e-4
"""Largest difference of one number of a float32 feature between machines; another order of sums gives about 1e-6."""


@dataclass(frozen=True)
class Comparison:
    """One line of `limner doctor`."""

    what: str
    wanted: str
    got: str
    fine: bool


def golden_image() -> np.ndarray:
    """uint8[150 200 3]: slopes, stripes and edges, the same everywhere."""
    y, x = np.mgrid[:150, :200]
    channels = [(3 * x + 5 * y) % 256, (x * y // 7) % 256, np.where((x // 20 + y // 30) % 2, 230, 20)]
    return np.stack(channels, axis=-1).astype(np.uint8)


@torch.no_grad()
def golden_vectors(model: CLIP) -> dict[str, Tensor]:
    """A picture, its pixels and features; sentences' token ids and features.

    `model` is on the CPU, in float32 and in inference mode.
    """
    image = golden_image()
    pixels = model.preprocess(Image.fromarray(image))
    tokens = _tokens(model)
    return {
        "picture": torch.from_numpy(image),
        "pixels": pixels,
        "image_features": model.encode_image(pixels),
        "tokens": tokens,
        "text_features": model.encode_text(tokens),
    }


def _tokens(model: CLIP) -> Tensor:
    if model.tokenizer is not None:
        return model.tokenize(SENTENCES)
    text = model.architecture.text  # token ids alone: ends of different lengths
    tokens = torch.arange(4 * text.context_length).view(4, -1) * 7919 % (text.vocab_size - 2)
    last = text.context_length - 1
    for row, end in enumerate((min(2, last), min(7, last), last // 2, last)):
        tokens[row, end:] = 0
        tokens[row, end] = text.vocab_size - 1
    return tokens


@torch.no_grad()
def replay(model: CLIP, golden: dict[str, Tensor]) -> list[Comparison]:
    """Whether `model` gives here what is stored in `golden`, stage by stage."""
    image = Image.fromarray(golden["picture"].numpy())
    pixels = (model.preprocess(image).int() - golden["pixels"].int()).abs()
    tokens = _tokens(model)
    same = int((tokens == golden["tokens"]).all(dim=1).sum()) if tokens.shape == golden["tokens"].shape else 0
    return [
        Comparison("preprocessing", "0 of 255 apart", f"{pixels.max().item()} of 255 apart", pixels.max().item() == 0),
        Comparison("tokens", f"{len(tokens)} sentences equal", f"{same} equal", same == len(tokens)),
        _compared("image features", model.encode_image(golden["pixels"]), golden["image_features"]),
        _compared("text features", model.encode_text(golden["tokens"]), golden["text_features"]),
    ]


def _compared(what: str, features: Tensor, golden: Tensor) -> Comparison:
    apart = (features.cpu() - golden).abs().max().item()
    wanted = f"at most {FEATURE_TOLERANCE:.0e} apart"
    return Comparison(what, wanted, f"{apart:.1e} apart", apart <= FEATURE_TOLERANCE)
