"""CLIP: two encoders into one space, and the learned scale of their similarities (paper section 2.3).

```
pixels uint8[batch 3 height width] ─> normalise ─> image encoder ─> embedding ─> / L2 norm ─> features f32[batch embed]
tokens int64[batch context]        ─────────────> text encoder  ─> embedding ─> / L2 norm ─> features f32[batch embed]
```
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from limner.architecture import OPENAI_VOCABULARY, Architecture, architecture
from limner.data.decode import centre_crop, decode, shorter_side, shorter_side_fast, stack, to_rgb
from limner.data.pairs import MAX_IMAGE_BYTES
from limner.data.tokenizer import Tokenizer
from limner.errors import DataError, ModelError
from limner.model.resnet import ResNet
from limner.model.text import TextEncoder
from limner.model.vit import ViT
from limner.seeds import seed_for

MAX_LOGIT_SCALE = 100.0

ImageLike = str | Path | Image.Image
ENCODERS: dict[str, Callable[..., nn.Module]] = {"resnet": ResNet, "vit": ViT}
"""The module of each kind of image encoder: called with (config, embed_dim, image_size, activation). It gives the
embedding of normalised pixels by `forward` and, readably, by `encode_whole`; it has `blocks`, says the `dtype` of its
weights, and takes images of another size after `resize_grid`."""


class CLIP(nn.Module):
    """An image encoder, a text encoder and the logarithm of the logit scale.

    `tokenizer` is needed for strings only; `fingerprint` names the weights that were loaded or saved last.
    """

    def __init__(self, architecture: Architecture, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        text = architecture.text
        if tokenizer is not None and (
            (tokenizer.vocab_size, tokenizer.context_length) != (text.vocab_size, text.context_length)
        ):
            raise ModelError(
                "The tokenizer",
                must=f"have the text encoder's {text.vocab_size} tokens and context of {text.context_length}",
                got=f"{tokenizer.vocab_size} tokens and a context of {tokenizer.context_length}",
                then="Load the tokenizer that the model was trained with.",
            )
        self.architecture, self.tokenizer = architecture, tokenizer
        self.fingerprint: str | None = None
        self.locked: tuple[str, ...] = ()
        self.image: Any = _image_encoder(architecture)
        self.text = TextEncoder(text, architecture.embed_dim, architecture.activation)
        self.log_logit_scale = nn.Parameter(torch.tensor(math.log(architecture.initial_logit_scale)))
        bias = architecture.initial_logit_bias
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(bias))
        self._mean: Tensor
        self._std: Tensor
        for name, values in (("_mean", architecture.image_mean), ("_std", architecture.image_std)):
            # on the CPU even where the rest is on the meta device: no file fills these
            self.register_buffer(name, torch.tensor(values, device="cpu").view(3, 1, 1), persistent=False)

    @property
    def logit_scale(self) -> Float[Tensor, ""]:
        """What similarities are multiplied with before the softmax; at most 100."""
        return self.log_logit_scale.exp()

    def clip_logit_scale(self) -> None:
        """Keep the logit scale at 100 or below (paper section 2.5), after each optimizer step."""
        with torch.no_grad():
            self.log_logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))

    def lock(self, *towers: Literal["image", "text"]) -> None:
        """Keep these towers as they are: no gradients, and inference mode, whatever `train` says of the rest.

        So a BatchNorm in them neither counts nor uses the batch's statistics. `lock()` unlocks all.
        """
        unknown = [tower for tower in towers if tower not in ("image", "text")]
        if unknown:
            raise ModelError("The towers to lock", must="be image and text, or one", got=unknown[0], then="Name those.")
        self.locked = towers
        for name in ("image", "text"):
            getattr(self, name).requires_grad_(name not in towers)
        self.train(self.training)

    def train(self, mode: bool = True) -> "CLIP":
        """torch's, but that locked towers stay in inference mode."""
        super().train(mode)
        for name in self.locked:
            getattr(self, name).eval()
        return self

    def recompute_blocks(self, on: bool = True) -> None:
        """Whether the blocks of both encoders keep their inputs alone for the gradient, and are run again for it.

        A third more arithmetic for a fraction of the memory; gradients and running statistics stay the same.
        """
        for encoder in (self.image, self.text):
            encoder.blocks.recompute = on

    def forward(
        self, pixels: Tensor, tokens: Int[Tensor, "batch context"]
    ) -> tuple[Float[Tensor, "batch embed"], Float[Tensor, "batch embed"], Float[Tensor, ""]]:
        """(image features, text features, logit scale) of a batch of pairs."""
        return self.encode_image(pixels), self.encode_text(tokens), self.logit_scale

    def encode_image(
        self, images: Tensor | ImageLike | Sequence[ImageLike], *, normalize: bool = True
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
        if pixels.dtype != torch.uint8 and not pixels.is_floating_point():
            raise ModelError(
                "The pixels for encode_image",
                must="be uint8, or floats that are already normalised",
                got=pixels.dtype,
                then="Pass pixels.to(torch.uint8) for values from 0 to 255.",
            )
        device = self.log_logit_scale.device
        pixels = pixels.to(device, non_blocking=True)
        if pixels.dtype == torch.uint8:
            pixels = (pixels.float() / 255 - self._mean) / self._std
        return finish(self.image(pixels.to(self.image.dtype)), normalize)

    def encode_text(
        self, texts: str | Sequence[str] | Int[Tensor, "batch context"], *, normalize: bool = True
    ) -> Float[Tensor, "batch embed"]:
        """Features of sentences or of token ids; `normalize=False` returns the raw embedding. float32 either way."""
        tokens = texts if isinstance(texts, Tensor) else self.tokenize([texts] if isinstance(texts, str) else texts)
        text = self.architecture.text
        if tokens.ndim != 2 or not 1 <= tokens.shape[1] <= text.context_length:
            raise ModelError(
                "The token ids for encode_text",
                must=f"have the shape [batch, {text.context_length}], or be narrower",
                got=list(tokens.shape),
                then="Pass sentences and they are cut here, or tokenise for this model's context.",
            )
        if tokens.device.type == "cpu" and tokens.numel() and int(tokens.max()) >= text.vocab_size:
            raise ModelError(
                "The token ids for encode_text",
                must=f"be below the vocabulary's {text.vocab_size}",
                got=int(tokens.max()),
                then="Tokenise with the tokenizer that the model was trained with.",
            )
        return finish(self.text(tokens), normalize)

    def resize_images(self, size: int) -> None:
        """Take pictures of another size from now on: position embeddings are resized, the rest stays.

        Bicubic over the grid, the class token's (a ResNet's: the mean's) kept. So does the paper's extra epoch at 336
        pixels start (section 2.5).
        """
        resized_architecture = replace(self.architecture, image_size=size)
        stride = self.architecture.image.stride
        self.image.resize_grid(self.architecture.image_size // stride, size // stride)
        self.architecture, self.fingerprint = resized_architecture, None

    def preprocess(self, images: ImageLike | Sequence[ImageLike], *, fast: bool = False) -> Tensor:
        """uint8[batch 3 size size]: resized so that the shorter side fits (bicubic), the central square kept.

        Equal to Pillow's resize to the bit; `fast` shrinks with torch's instead (at most 1 of 255 apart) and decodes
        large JPEG files at a fraction of their size (a few of 255).
        """
        if isinstance(images, str | Path | Image.Image):
            images = [images]
        size = self.architecture.image_size
        return stack([centre_crop(_pixels(image, size, fast=fast), size) for image in images])

    def tokenize(self, texts: Sequence[str]) -> Int[Tensor, "batch context"]:
        """Token ids of sentences."""
        if self.tokenizer is None:
            raise ModelError(
                "The model",
                must="have a tokenizer to read sentences",
                got="none",
                then="Pass token ids, or set model.tokenizer = limner.Tokenizer.load(path, context_length="
                f"{self.architecture.text.context_length}).",
            )
        return torch.from_numpy(self.tokenizer(texts))

    def save(self, folder: str | Path, **card: Any) -> None:
        """`limner.save`: write the model directory that `limner.load` reads; `card` are facts for its README."""
        import limner  # the front door, which finds it: a model is mathematics and knows no disk

        limner.save(self, folder, **card)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name, in the model's order: what the optimizer, the guard and the average go by."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _image_encoder(shape: Architecture) -> nn.Module:
    kind = shape.image.kind
    if kind not in ENCODERS:
        raise ModelError(
            f"The image encoder {kind!r}",
            must=f"have a module: {', '.join(ENCODERS)} do",
            got="none",
            then="Add it to limner.model.clip.ENCODERS.",
        )
    encoder = ENCODERS[kind](shape.image, shape.embed_dim, shape.image_size, shape.activation)
    missing = [name for name in ("encode_whole", "blocks", "dtype", "resize_grid") if not hasattr(encoder, name)]
    if missing:
        raise ModelError(
            f"The image encoder {type(encoder).__name__}",
            must="have all that limner.model.clip.ENCODERS asks for",
            got=f"no {', '.join(missing)}",
            then="Add it to the module.",
        )
    return encoder


def finish(embedding: Float[Tensor, "batch embed"], normalize: bool) -> Float[Tensor, "batch embed"]:
    """Embeddings as they leave a tower, and features: float32, in tests of exactness float64."""
    embedding = embedding if embedding.dtype == torch.float64 else embedding.float()
    return F.normalize(embedding, dim=-1) if normalize else embedding


def _pixels(image: ImageLike, size: int, *, fast: bool) -> np.ndarray:
    if isinstance(image, Image.Image):
        rgb = to_rgb(image)
        return shorter_side_fast(np.array(rgb), size) if fast else np.asarray(shorter_side(rgb, size))
    path = Path(image)
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for, a device read without end
            raise OSError("a folder, a pipe or a device")
        with path.open("rb") as file:
            content = file.read(MAX_IMAGE_BYTES)
    except OSError as error:
        raise DataError(
            f"The picture {path}", must="be a file", got=error.strerror or error, then="Check the path."
        ) from error
    return decode(content, size, name=f"The picture {path}", fast=fast)


def create(name: str | Architecture, *, tokenizer: Tokenizer | None = None, seed: int = 0) -> CLIP:
    """The architecture called `name`, or one of your own, with random weights by the paper's initialisation.

    The model is in inference mode: call `model.train()` before training it. With a `tokenizer` the text encoder has its
    vocabulary; without one the model reads sentences with the paper's. The same seed gives the same weights;
    torch's global random state is left alone.
    """
    shape = name if isinstance(name, Architecture) else architecture(name)
    if tokenizer is None and shape.text.vocab_size == OPENAI_VOCABULARY:
        tokenizer = Tokenizer.openai(context_length=shape.text.context_length)
    if tokenizer is not None:
        text = replace(shape.text, vocab_size=tokenizer.vocab_size, context_length=tokenizer.context_length)
        shape = replace(shape, text=text)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_for("init", seed))  # torch.manual_seed would seed the GPUs as well
        return CLIP(shape, tokenizer).eval()
