"""CLIP: two encoders into one space, and the learned scale of their similarities (paper section 2.3).

```
pixels uint8[batch 3 height width] ─> normalise ─> image encoder ─> embedding ─> / L2 norm ─> features f32[batch embed]
tokens int64[batch context]        ─────────────> text encoder  ─> embedding ─> / L2 norm ─> features f32[batch embed]
```
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from limn.config import Architecture, ResNetConfig
from limn.data.decode import centre_crop, decode, shorter_side, to_rgb
from limn.data.loader import stack
from limn.data.sources import MAX_PICTURE_BYTES
from limn.data.tokenizer import Tokenizer
from limn.errors import DataError, ModelError
from limn.model.resnet import ResNet
from limn.model.text import TextEncoder
from limn.model.vit import ViT

MAX_LOGIT_SCALE = 100.0
INITIAL_LOGIT_SCALE = 1 / 0.07

Picture = str | Path | Image.Image


class CLIP(nn.Module):
    """An image encoder, a text encoder and the logarithm of the logit scale.

    `tokenizer` is needed for strings only; `fingerprint` names the weights that were loaded or saved last.
    """

    def __init__(self, architecture: Architecture, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        image = architecture.image
        self.architecture, self.tokenizer = architecture, tokenizer
        self.fingerprint: str | None = None
        self.image: ResNet | ViT = (
            ResNet(image, architecture.embed_dim, architecture.image_size)
            if isinstance(image, ResNetConfig)
            else ViT(image, architecture.embed_dim, architecture.image_size, architecture.activation)
        )
        self.text = TextEncoder(architecture.text, architecture.embed_dim, architecture.activation)
        self.log_logit_scale = nn.Parameter(torch.tensor(math.log(INITIAL_LOGIT_SCALE)))
        self._mean: Tensor
        self._std: Tensor
        self.register_buffer("_mean", torch.tensor(architecture.image_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(architecture.image_std).view(3, 1, 1), persistent=False)

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        """What similarities are multiplied with before the softmax; at most 100."""
        return self.log_logit_scale.exp()

    def clip_logit_scale(self) -> None:
        """Keep the logit scale at 100 or below (paper section 2.5), after each optimizer step."""
        with torch.no_grad():
            self.log_logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))

    def forward(
        self, pixels: Tensor, tokens: Int[Tensor, "batch context"]
    ) -> tuple[Float[Tensor, "batch embed"], Float[Tensor, "batch embed"], Float[Tensor, ""]]:
        """(image features, text features, logit scale) of a batch of pairs."""
        return self.encode_image(pixels), self.encode_text(tokens), self.logit_scale

    def encode_image(
        self, images: Tensor | Picture | Sequence[Picture], *, normalize: bool = True
    ) -> Float[Tensor, "batch embed"]:
        """Features of pictures: paths, PIL images, uint8 pixels [batch 3 height width] (normalised here) or float
        pixels (taken as already normalised). `normalize=False` returns the raw embedding. float32 either way.
        """
        pixels = images if isinstance(images, Tensor) else self.preprocess(images)
        size = self.architecture.image_size
        if pixels.ndim != 4 or pixels.shape[1:] != (3, size, size):
            raise ModelError(
                "The pixels for encode_image",
                must=f"have the shape [batch, 3, {size}, {size}]",
                got=list(pixels.shape),
                then="Pass pictures or paths and they are resized and cropped here.",
            )
        device = self.log_logit_scale.device
        pixels = pixels.to(device, non_blocking=True)
        if pixels.dtype == torch.uint8:
            pixels = (pixels.float() / 255 - self._mean) / self._std
        embedding = self.image(pixels).float()
        return F.normalize(embedding, dim=-1) if normalize else embedding

    def encode_text(
        self, texts: str | Sequence[str] | Int[Tensor, "batch context"], *, normalize: bool = True
    ) -> Float[Tensor, "batch embed"]:
        """Features of sentences or of token ids; `normalize=False` returns the raw embedding. float32 either way."""
        tokens = texts if isinstance(texts, Tensor) else self.tokenize([texts] if isinstance(texts, str) else texts)
        embedding = self.text(tokens.to(self.log_logit_scale.device, non_blocking=True)).float()
        return F.normalize(embedding, dim=-1) if normalize else embedding

    def preprocess(self, pictures: Picture | Sequence[Picture]) -> Tensor:
        """uint8[batch 3 size size]: resized so that the shorter side fits (bicubic), the central square kept."""
        if isinstance(pictures, str | Path | Image.Image):
            pictures = [pictures]
        size = self.architecture.image_size
        return stack([centre_crop(_pixels(picture, size), size) for picture in pictures])

    def tokenize(self, texts: Sequence[str]) -> Int[Tensor, "batch context"]:
        """Token ids of sentences."""
        if self.tokenizer is None:
            raise ModelError(
                "The model",
                must="have a tokenizer to read sentences",
                got="none",
                then="Pass token ids, or set model.tokenizer = limn.Tokenizer.load(path).",
            )
        return torch.from_numpy(self.tokenizer(texts))

    def save(self, folder: str | Path, **card: Any) -> None:
        """Write the model directory that `limn.load` reads; `card` are facts for its README."""
        from limn.model.store import save

        save(self, Path(folder), card)


def _pixels(picture: Picture, size: int) -> np.ndarray:
    if isinstance(picture, Image.Image):
        return np.asarray(shorter_side(to_rgb(picture), size))
    path = Path(picture)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_PICTURE_BYTES)
    except OSError as error:
        raise DataError(
            f"The picture {path}", must="be a file", got=error.strerror or error, then="Check the path."
        ) from error
    return decode(content, size, name=f"The picture {path}")
