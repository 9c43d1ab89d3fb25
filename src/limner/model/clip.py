"""CLIP: two encoders into one space, and the learned scale of their similarities (paper section 2.3).

```
pixels uint8[batch 3 height width] ─> normalise ─> image encoder ─> embedding ─> / L2 norm ─> features f32[batch embed]
tokens int64[batch context]        ─────────────> text encoder  ─> embedding ─> / L2 norm ─> features f32[batch embed]
```
"""

import io
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn

from limner.architecture import OPENAI_VOCABULARY, Architecture, architecture
from limner.data.tokenizer import Tokenizer
from limner.errors import ModelError, named, require
from limner.model.inputs import (
    check_normalised,
    check_pixels,
    checked_ids,
    ids_of,
    may_look,
    one_by_one,
    pixels_of,
    squares,
)
from limner.model.resnet import ResNet
from limner.model.text import TextEncoder
from limner.model.vit import ViT
from limner.seeds import seed_for

MAX_LOGIT_SCALE = 100.0

ImageLike = str | os.PathLike[str] | Image.Image | bytes | bytearray | memoryview | io.IOBase | np.ndarray
"""One picture: a path, a Pillow image, what a file holds, an open file, uint8 [height width 3] (or 4, or grey)."""
ENCODERS: dict[str, Callable[..., nn.Module]] = {"resnet": ResNet, "vit": ViT}
"""The module of each kind of image encoder: called with (config, embed_dim, image_size, activation). It gives the
embedding of normalised pixels by `forward` and, readably, by `encode_whole`; it has `blocks` and `projection`, the
linear layer that comes last, says the `dtype` of its weights, and takes images of another size after `resize_grid`."""


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
        """What similarities are multiplied with before the softmax; at most 100.

        With a gradient in training mode only: beside features that have none, a loss in inference mode would train it
        alone, silently. `forward` gives features and scale with their gradients in any mode.
        """
        with self._graph(wanted=False):
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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "CLIP":
        """torch's own, behind `to`, `half` and the like, but that the towers alone lose precision.

        The logit scale and the mean and deviation of pixels stay float32: a few numbers that everything depends on.
        """

        def exact(tensor: Tensor) -> Tensor:
            changed = fn(tensor)
            return tensor.to(changed.device) if changed.dtype in (torch.float16, torch.bfloat16) else changed

        for tower in self.children() if recurse else ():
            tower._apply(fn)
        super()._apply(exact, recurse=False)
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
        """(image features, text features, logit scale) of a batch of pairs, for a loss: with a gradient in any mode."""
        image, text = self.encode_image(pixels, gradient=True), self.encode_text(tokens, gradient=True)
        return image, text, self.log_logit_scale.exp()

    def encode_image(
        self, images: Any, *, normalize: bool = True, gradient: bool = False
    ) -> Float[Tensor, "batch embed"]:
        """Features of pictures, float32, with a gradient in training mode only.

        Args:
            images: one picture or several, in a list, a generator, a column: paths, Pillow images, encoded bytes, open
                files, uint8 arrays [height width 3] (4 with transparency, none or 1 if grey; [batch height width 3]);
                all are resized and cropped here. Or pixels of the model's own size, [batch 3 size size] or one tensor
                [3 size size]: uint8, or floats, which are taken as normalised. That floats from 0 to 1 are not cannot
                be seen: pass (x - mean) / std.
            normalize: False returns the raw embedding.
            gradient: keep what a gradient needs outside of training mode too, as is done for pixels that require one.

        Raises `ConfigError`, `DataError` or `ModelError` for pictures that cannot be used and, outside of training
        mode, for pixels and features that are not finite.
        """
        pixels = pixels_of(images, self.architecture.image_size)
        check_pixels(pixels, self.architecture)
        if not self.training and pixels.is_floating_point() and may_look(pixels):
            check_normalised(pixels, self.architecture)
        pixels = pixels.to(self._mean.device, non_blocking=True)
        with self._graph(gradient or pixels.requires_grad):
            if len(pixels) == 0:
                return torch.zeros(0, self.architecture.embed_dim, device=pixels.device)
            if pixels.dtype == torch.uint8:
                pixels = (pixels.float() / 255 - self._mean) / self._std
            return self._finished(self.image(pixels.to(self.image.dtype)), "image", normalize)

    def encode_text(
        self, texts: Any, *, normalize: bool = True, gradient: bool = False
    ) -> Float[Tensor, "batch embed"]:
        """Features of sentences, float32, with a gradient in training mode only.

        Args:
            texts: a sentence or several, in a list, a generator, an array, a column; or token ids, int[batch tokens],
                or one row of them with its end token.
            normalize: False returns the raw embedding.
            gradient: keep what a gradient needs outside of training mode too.

        Raises `ConfigError` or `ModelError` for texts and ids that cannot be used and, outside of training mode, for
        features that are not finite.
        """
        ids = ids_of(texts)
        tokens = self.tokenize(texts) if ids is None else ids
        on_cpu = tokens.device.type == "cpu"  # training does not wait for a GPU
        tokens = checked_ids(tokens, self.architecture.text, look=(on_cpu or not self.training) and may_look(tokens))
        with self._graph(gradient):
            return self._finished(self.text(tokens), "text", normalize)

    def _graph(self, wanted: bool) -> torch.set_grad_enabled:
        """Gradients as the caller has them in training mode; outside of it none, unless they are `wanted`."""
        return torch.set_grad_enabled(torch.is_grad_enabled() and (self.training or wanted))

    def _finished(
        self, embedding: Float[Tensor, "batch embed"], tower: str, normalize: bool
    ) -> Float[Tensor, "batch embed"]:
        """`finish`, with a look at the embeddings outside of training mode, where nothing else would."""
        if not self.training and may_look(embedding):
            norms = embedding.detach().float().norm(dim=-1)  # one that overflows would make features of zeros
            if not bool(torch.isfinite(norms).all()):
                self._refuse(tower, torch.isfinite(norms).logical_not().nonzero().flatten().tolist())
        return finish(embedding, normalize)

    def _refuse(self, tower: str, rows: list[int]) -> None:
        """Raise the `ModelError` about embeddings that are not finite. Names the weights to blame, where there are."""
        what, parts = ("pictures", ("image.", "_mean", "_std")) if tower == "image" else ("sentences", ("text.",))
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        blame = nonfinite({name: tensor for name, tensor in tensors.items() if name.startswith(parts)})
        if blame:
            got = f"NaN or infinity, as in the weights {', '.join(blame[:3])}"
            then = "The weights were damaged, or training diverged: take a checkpoint from before."
        else:
            got = f"NaN or infinity in {len(rows)}, the first at place {rows[0]}, though the weights are finite"
            then = "Numbers overflowed on the way: compute in float32, limner.load's default, or train anew."
        raise ModelError(f"The features of the {what}", must="be finite numbers", got=got, then=then)

    def resize_images(self, size: Any) -> None:
        """Take pictures of another size from now on: position embeddings are resized, the rest stays.

        Bicubic over the grid, the class token's (a ResNet's: the mean's) kept. So does the paper's extra epoch at 336
        pixels start (section 2.5).
        """
        whole = isinstance(size, int | np.integer)
        require(whole, "The size of images", "be a whole number", named(size), "Give pixels, as 336.")
        size = int(size)  # of numpy's small ones, quotients would overflow
        resized_architecture = replace(self.architecture, image_size=size)
        stride = self.architecture.image.stride
        self.image.resize_grid(self.architecture.image_size // stride, size // stride)
        self.architecture, self.fingerprint = resized_architecture, None

    def preprocess(self, images: Any, *, fast: bool = False) -> UInt8[Tensor, "batch 3 size size"]:
        """Pictures, one or several as `encode_image` takes them, resized so that the shorter side fits (bicubic), the
        central square kept.

        Equal to Pillow's resize to the bit; `fast` shrinks with torch's instead (at most 1 of 255 apart) and decodes
        large JPEG files at a fraction of their size (a few of 255).
        """
        return squares(one_by_one(images), self.architecture.image_size, fast=fast)

    def tokenize(self, texts: Any) -> Int[Tensor, "batch context"]:
        """Token ids of a sentence or of several."""
        if self.tokenizer is None:
            raise ModelError(
                "The model",
                must="have a tokenizer to read sentences",
                got="none",
                then="Pass token ids, or set model.tokenizer = limner.Tokenizer.load(path, context_length="
                f"{self.architecture.text.context_length}).",
            )
        return torch.from_numpy(self.tokenizer(texts))

    def save(self, folder: Any, **card: Any) -> None:
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
    missing = [
        name for name in ("encode_whole", "blocks", "projection", "dtype", "resize_grid") if not hasattr(encoder, name)
    ]
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


def nonfinite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Which of `tensors` hold NaN or infinity, and how many numbers of each: "image.proj.weight (3 of 4,096)"."""
    bad = {name: int((~torch.isfinite(tensor)).sum()) for name, tensor in tensors.items() if not tensor.is_meta}
    return [f"{name} ({count:,} of {tensors[name].numel():,})" for name, count in bad.items() if count]


def create(name: Any, *, tokenizer: Any = None, seed: int = 0) -> CLIP:
    """The architecture called `name`, or one of your own, with random weights by the paper's initialisation.

    The model is in inference mode: call `model.train()` before training it. With a `tokenizer` the text encoder has its
    vocabulary; without one the model reads sentences with the paper's. The same seed gives the same weights;
    torch's global random state is left alone. Raises `ConfigError` for an unknown name.
    """
    require(
        isinstance(name, str | Architecture),
        "The model to create",
        "be the name of an architecture, or one of your own",
        named(name),
        "List the names with: limner models",
    )
    require(
        isinstance(tokenizer, Tokenizer | None),
        "The tokenizer",
        "be a limner.Tokenizer",
        named(tokenizer),
        "Read a file with limner.Tokenizer.load(path).",
    )
    shape = name if isinstance(name, Architecture) else architecture(name)
    if tokenizer is None and shape.text.vocab_size == OPENAI_VOCABULARY:
        tokenizer = Tokenizer.openai(context_length=shape.text.context_length)
    if tokenizer is not None:
        text = replace(shape.text, vocab_size=tokenizer.vocab_size, context_length=tokenizer.context_length)
        shape = replace(shape, text=text)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_for("init", seed))  # torch.manual_seed would seed the GPUs as well
        return CLIP(shape, tokenizer).eval()
