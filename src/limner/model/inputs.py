"""What people pass to a model, as what the encoders take; anything else is refused in a sentence.

```
paths, encoded bytes, files, Pillow images, uint8 arrays ─> pictures ─> central squares ─> uint8[batch 3 size size]
tensors and arrays [batch 3 size size], a tensor [3 size size] ────────────────────────────> the same, uint8 or float
sentences ─> None, for the tokenizer;  ids in lists, arrays and tensors ───────────────────> int64[batch tokens]
```

One where several may stand is a batch of one.
"""

import os
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor, nn

from limner.architecture import Architecture, TextConfig
from limner.data.decode import (
    DAMAGED,
    MAX_ASPECT,
    TOO_LONG,
    Unreadable,
    centre_crop,
    decode,
    shorter_side,
    shorter_side_fast,
    stack,
    to_rgb,
)
from limner.data.pairs import MAX_IMAGE_BYTES, TOO_LARGE
from limner.data.tokenizer import path_of, several
from limner.errors import ConfigError, DataError, LimnerError, ModelError, named

SPANS = 3
"""How far beyond black and white normalised pixels may lie, in units of what lies between the two: noise may be added
to them, but 0 to 255 is no normalised picture."""


def may_look(tensor: Tensor) -> bool:
    """Whether the numbers in `tensor` can be looked at: they are there, and no graph is being recorded."""
    if torch.jit.is_tracing() or torch.compiler.is_compiling() or tensor.is_meta:  # pyright: ignore[reportPrivateImportUsage]
        return False
    if not isinstance(tensor, nn.Parameter) and type(tensor) is not Tensor:  # a stand-in: FakeTensor, DTensor
        return False
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):  # pyright: ignore  # vmap and grad of torch.func
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())


# --- pictures --------------------------------------------------------------------------------------------------------


def pixels_of(images: Any, size: int) -> Tensor:
    """What `CLIP.encode_image` takes, as a batch: uint8 squares of pictures, or pixels that were passed as they are."""
    is_picture = isinstance(images, Tensor) and images.dtype == torch.uint8 and images.ndim == 3
    if isinstance(images, Tensor) and not (is_picture and images.shape[1:] != (size, size)):
        return images[None] if images.ndim == 3 else images
    if isinstance(images, np.ndarray) and images.dtype.kind in "buif" and images.shape[1:] == (3, size, size):
        return tensor_of(images, "The pixels for encode_image")
    found = one_by_one(images)
    tensors = [image for image in found if isinstance(image, Tensor) and image.is_floating_point()]
    if found and len(tensors) == len(found) and len({tensor.shape for tensor in tensors}) == 1:
        return torch.stack(tensors)
    return squares(found, size)


def tensor_of(array: np.ndarray, what: str) -> Tensor:
    """A copy of an array as a tensor. Raises `ConfigError` for numbers of a kind that torch has not."""
    try:
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    except TypeError as error:
        raise ConfigError(
            what, must="be numbers of a kind that torch has", got=array.dtype, then="Pass x.astype(np.float32)."
        ) from error


def one_by_one(images: Any) -> list[Any]:
    """The pictures among `images`, which may be one. Arrays and tensors of four dimensions are several."""
    if isinstance(images, Tensor) or (isinstance(images, np.ndarray) and images.dtype.kind not in "OUS"):
        return list(images) if images.ndim in (1, 4) else [images]
    if isinstance(images, np.ndarray) and images.ndim == 0:
        images = images.item()
    if isinstance(images, str | bytes | bytearray | memoryview | os.PathLike | Image.Image) or hasattr(images, "read"):
        return [images]
    return list(several(images, "The pictures", one="a path, a Pillow image, an array, bytes or a file"))


def squares(images: list[Any], size: int, *, fast: bool = False) -> UInt8[Tensor, "batch 3 size size"]:
    """The central squares of pictures, resized so that the shorter side fits (bicubic)."""
    found = [centre_crop(_resized(image, size, place, fast=fast), size) for place, image in enumerate(images)]
    return stack(found) if found else torch.empty(0, 3, size, size, dtype=torch.uint8)


def _resized(image: Any, size: int, place: int, *, fast: bool) -> np.ndarray:
    """A picture as uint8[height width 3], its shorter side `size` pixels long."""
    name = f"The picture at place {place}"
    if isinstance(image, str | os.PathLike):
        path = path_of(image, name)
        return decode(_content(path), size, name=f"The picture {path}", fast=fast)
    if isinstance(image, bytes | bytearray | memoryview):
        return decode(bytes(image), size, name=name, fast=fast)
    if hasattr(image, "read"):
        return decode(_read(image, name), size, name=name, fast=fast)
    image = _pillow(image, name)
    short, long = sorted(image.size)
    if long and not long <= MAX_ASPECT * short:
        raise Unreadable(name, TOO_LONG, f"{image.width} x {image.height} pixels, longer than {MAX_ASPECT} to 1")
    try:
        rgb = to_rgb(image, name)
        return shorter_side_fast(np.array(rgb), size) if fast else np.asarray(shorter_side(rgb, size))
    except (DataError, MemoryError):
        raise
    except Exception as error:  # Pillow decodes only now: closed files, damage, modes that it cannot convert
        raise Unreadable(name, DAMAGED, str(error) or type(error).__name__) from error


def _content(path: Any) -> bytes:
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for, a device read without end
            raise OSError("a folder, a pipe or a device")
        with path.open("rb") as file:
            return _whole(file.read(MAX_IMAGE_BYTES + 1), f"The picture {path}")
    except OSError as error:
        raise DataError(
            f"The picture {path}", must="be a file", got=error.strerror or error, then="Check the path."
        ) from error


def _read(file: Any, name: str) -> bytes:
    """What an open file holds; from its beginning, as Pillow reads, where it can be wound back."""
    try:
        if hasattr(file, "seekable") and file.seekable():
            file.seek(0)
        content = bytearray()
        while len(content) <= MAX_IMAGE_BYTES and (piece := file.read(MAX_IMAGE_BYTES + 1 - len(content))):
            if not isinstance(piece, bytes | bytearray | memoryview):
                raise ConfigError(name, must="be a file of bytes", got=named(piece), then='Open it with "rb".')
            content += piece
    except LimnerError:
        raise
    except Exception as error:  # closed, not open for reading, or whatever a file of somebody else's raises
        got = str(error).rstrip(".") or type(error).__name__
        raise DataError(name, must="be readable", got=got, then="Open the file again.") from error
    return _whole(bytes(content), name)


def _whole(content: bytes, name: str) -> bytes:
    if len(content) > MAX_IMAGE_BYTES:
        raise Unreadable(name, TOO_LARGE, TOO_LARGE)
    return content


def _pillow(image: Any, name: str) -> Image.Image:
    """A picture that is decoded already, as Pillow has them."""
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, Tensor) and image.ndim == 3:
        image = image.detach().permute(1, 2, 0).cpu().numpy() if image.dtype == torch.uint8 else image
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.size:
        grey = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
        if grey.ndim == 2 or (grey.ndim == 3 and grey.shape[2] in (3, 4)):
            return Image.fromarray(np.ascontiguousarray(grey))
    if isinstance(image, np.ndarray | Tensor):
        raise ConfigError(
            name,
            must="be uint8, 0 to 255: an array [height width], [height width 3 or 4] or a tensor [3 height width]",
            got=f"{image.dtype} of the shape {list(image.shape)}",
            then="Pass (x * 255).round().astype(np.uint8) for values from 0 to 1, torch.from_numpy(x) for channels "
            "that come first.",
        )
    raise ConfigError(
        name,
        must="be a path, a Pillow image, an array, bytes or a file",
        got=named(image),
        then="Pass one of those, or a list of them.",
    )


def check_pixels(pixels: Tensor, shape: Architecture) -> None:
    """Raise `ModelError` unless `pixels` have the shape and the dtype that the image encoder takes."""
    size = shape.image_size
    if pixels.ndim != 4 or pixels.shape[1:] != (3, size, size):
        last = pixels.ndim == 4 and pixels.shape[1:] == (size, size, 3)
        raise ModelError(
            "The pixels for encode_image",
            must=f"have the shape [batch, 3, {size}, {size}]",
            got=list(pixels.shape),
            then="Pass pixels.permute(0, 3, 1, 2)."
            if last
            else "Pass pictures or paths and they are resized and cropped here, as by model.preprocess.",
        )
    if pixels.dtype != torch.uint8 and not pixels.is_floating_point():
        raise ModelError(
            "The pixels for encode_image",
            must="be uint8, or floats that are already normalised",
            got=pixels.dtype,
            then="Pass pixels.to(torch.uint8) for values from 0 to 255.",
        )


def check_normalised(pixels: Tensor, shape: Architecture) -> None:
    """Raise `ModelError` for float pixels that are no normalised picture: not finite, or far from black and white."""
    black = min(-mean / std for mean, std in zip(shape.image_mean, shape.image_std, strict=True))
    white = max((1 - mean) / std for mean, std in zip(shape.image_mean, shape.image_std, strict=True))
    lowest, highest = black - SPANS * (white - black), white + SPANS * (white - black)
    fine = ((pixels.detach() >= lowest) & (pixels.detach() <= highest)).flatten(1).all(dim=1)  # nan is neither
    if bool(fine.all()):
        return
    wrong = (~fine).nonzero().flatten().tolist()
    least, most = (float(end) for end in pixels.detach()[wrong[0]].float().aminmax())
    raise ModelError(
        "Float pixels for encode_image",
        must=f"be finite and normalised: black is about {black:.1f} and white {white:.1f}",
        got=f"numbers from {least:.4g} to {most:.4g} in the picture at place {wrong[0]}, {len(wrong)} such pictures",
        then="Pass uint8 from 0 to 255, which is normalised here, or (x / 255 - mean) / std.",
    )


# --- sentences -------------------------------------------------------------------------------------------------------


def ids_of(texts: Any) -> Tensor | None:
    """What `CLIP.encode_text` takes, if it is token ids: a tensor, an array or lists of whole numbers. Else None."""
    if isinstance(texts, Tensor):
        return texts
    if isinstance(texts, list | tuple) and texts:
        rows = [_row(row) for row in texts]
        if any(row is None or row.dtype.kind not in "iu" for row in rows):
            return None
        if len({row.shape for row in rows if row is not None}) > 1:
            raise ModelError(
                "The token ids for encode_text",
                must="be rows of one length",
                got=f"lengths such as {len(rows[0] if rows[0] is not None else [])}",
                then="Fill the shorter rows up with zeros behind their end token.",
            )
        texts = np.stack([row for row in rows if row is not None])
    if not isinstance(texts, np.ndarray) or texts.dtype.kind not in "biufc":
        return None
    whole = texts.astype(np.int64) if texts.dtype.kind in "iu" else texts
    return tensor_of(whole, "The token ids for encode_text")


def _row(row: Any) -> np.ndarray | None:
    """A row of ids, or an id; None for anything else."""
    if not isinstance(row, list | tuple | np.ndarray | Tensor | int | np.integer):
        return None
    try:
        return np.asarray(row.detach().cpu() if isinstance(row, Tensor) else row)
    except (ValueError, TypeError):  # a row whose parts have different lengths, or of bfloat16
        return None


def checked_ids(tokens: Tensor, text: TextConfig, *, look: bool) -> Int[Tensor, "batch tokens"]:
    """Token ids as the text encoder takes them. Raises `ModelError` for shapes, dtypes and, with `look`, ids of others.

    A row alone is a batch of one if it has its end token: so are ids told from numbers that mean something else.
    """
    if tokens.ndim == 1 and tokens.numel() and bool((tokens == text.vocab_size - 1).any()):
        tokens = tokens[None]
    if tokens.ndim != 2 or not 1 <= tokens.shape[1] <= text.context_length:
        raise ModelError(
            "The token ids for encode_text",
            must=f"have the shape [batch, {text.context_length}], or be narrower",
            got=list(tokens.shape),
            then="Pass sentences and they are cut here, or tokenise for this model's context.",
        )
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise ModelError(
            "The token ids for encode_text",
            must="be whole numbers, int64",
            got=tokens.dtype,
            then="Tokenise with the tokenizer that the model was trained with.",
        )
    tokens = tokens.long()
    lowest, highest = (int(end) for end in tokens.aminmax()) if look and tokens.numel() else (0, 0)
    if lowest < 0 or highest >= text.vocab_size:
        raise ModelError(
            "The token ids for encode_text",
            must=f"be below the vocabulary's {text.vocab_size}, and not negative",
            got=lowest if lowest < 0 else highest,
            then="Tokenise with the tokenizer that the model was trained with.",
        )
    ended = (tokens == text.vocab_size - 1).any(dim=1)
    if look and not bool(ended.all()):
        raise ModelError(
            "The token ids for encode_text",
            must=f"have the end token, {text.vocab_size - 1}, in each row: there the text encoder is read",
            got=f"none in row {int((~ended).nonzero()[0])}",
            then="Tokenise with the tokenizer that the model was trained with.",
        )
    return tokens
