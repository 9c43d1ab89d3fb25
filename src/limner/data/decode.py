"""Encoded bytes to pixels: `bytes -> decode -> uint8[height width 3] -> crop -> uint8[size size 3]`.

Any format becomes 8-bit RGB: EXIF orientation applied, transparency laid on white, 16-bit scaled down, CMYK and
palettes converted, of animations the first frame; ICC profiles are left alone. The header is checked before anything is
decoded. Then the shorter side is resized by a bicubic filter and the central square kept, as OpenAI's and open_clip's
preprocessing does.
"""

import io
import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import simplejpeg
import torch
from jaxtyping import UInt8
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from limner.errors import DataError

MAX_PIXELS = 100_000_000
LARGE_PIXELS = 2**24
"""Larger pictures are decoded one at a time: one of 100 million with transparency needs 1.7 GB."""
MAX_ASPECT = 16
"""A longer strip would be blown up to many times the size of other pictures."""
MAX_SCANS = 100
"""Scans of a progressive JPEG, at most; it usually has ten, and each goes over all of its pixels."""
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF")
NO_IMAGE, DAMAGED, TOO_MANY_PIXELS, TOO_LONG = (
    "not a picture",
    "damaged picture",
    f"over {MAX_PIXELS // 10**6} million pixels",
    f"longer than {MAX_ASPECT} to 1",
)
"""Why a picture cannot be used."""
JPEGS = ("JPEG", "MPO")
ORIENTATION = 0x0112
_one_large = threading.Lock()

Image.init()  # `formats` knows only the plugins that are loaded
ImageFile.LOAD_TRUNCATED_IMAGES = False  # half a picture is not a picture
warnings.filterwarnings("ignore", module="PIL")  # odd metadata; what matters raises


class Unreadable(DataError):
    """A picture that cannot be used, for one of few reasons."""

    def __init__(self, name: str, reason: str, got: object) -> None:
        super().__init__(
            name,
            must=f"be a readable picture ({', '.join(FORMATS)})",
            got=got,
            then="Leave it out or save it again with an image program.",
        )
        self.reason = reason


def decode(
    content: bytes,
    resize: int,
    *,
    name: str = "picture",
    fast: bool = False,
    begun: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """The picture in `content` as uint8[height width 3], its shorter side `resize` pixels long (bicubic).

    `fast`: several times faster, at most 1 of 255 apart (two on white noise); JPEGs of four times that size or more are
    decoded at a fraction of it, where values differ more. `begun` is called when it has its turn: large pictures wait
    for each other. Raises `Unreadable`.
    """
    try:
        image = opened(content, name)
        is_draft = fast and drafted(image, resize)
        with _one_large if image.width * image.height > LARGE_PIXELS else nullcontext():
            begun()
            if not fast:
                return np.asarray(shorter_side(to_rgb(image), resize))
            return shorter_side_fast(rgb_fast(image, content, is_draft=is_draft), resize)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # on damaged files Pillow's readers raise whatever the damage leads to
        raise Unreadable(name, DAMAGED, str(error) or type(error).__name__) from error


def opened(content: bytes, name: str = "picture") -> Image.Image:
    """The picture in `content` with its header read and checked, its pixels not yet. Raises `Unreadable`."""
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        got = f"{len(content):,} bytes of another format" if content else "an empty file"
        raise Unreadable(name, NO_IMAGE, got) from None
    except Image.DecompressionBombError as error:
        raise Unreadable(name, TOO_MANY_PIXELS, error) from None
    short, long = sorted(image.size)
    if short * long > MAX_PIXELS:
        got = f"{image.width} x {image.height} pixels, over {MAX_PIXELS:,}"
        raise Unreadable(name, TOO_MANY_PIXELS, got)
    if long > MAX_ASPECT * short:
        got = f"{image.width} x {image.height} pixels, longer than {MAX_ASPECT} to 1"
        raise Unreadable(name, TOO_LONG, got)
    if content.startswith(b"\xff\xd8") and _has_scans(content) and content.count(b"\xff\xda") > MAX_SCANS:
        raise Unreadable(name, DAMAGED, f"a JPEG of more than {MAX_SCANS} scans")
    return image


def _has_scans(content: bytes) -> bool:
    """Whether a JPEG's first scan leaves something to others: it is progressive, or has its colours one by one."""
    at, colours = 2, 0
    while content[at : at + 1] == b"\xff" and at + 10 < len(content):
        kind, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # the frame: SOF0, SOF1, ...
            if kind > 0xC1:
                return True
            colours = content[at + 9]
        elif kind == 0xDA:
            return content[at + 4] < colours
        at += 2 + length
    return True  # padding between segments, or nothing that is known: to be on the safe side


def drafted(image: Image.Image, resize: int) -> bool:
    """Have a JPEG of four times `resize` or more decoded at a fraction of its size; whether it is one."""
    if image.format not in JPEGS or min(image.size) < 4 * resize:
        return False
    image.draft("RGB", (2 * resize, 2 * resize))
    return True


def rgb_fast(image: Image.Image, content: bytes, *, is_draft: bool) -> np.ndarray:
    """The opened picture as `to_rgb` makes it, as uint8[height width 3]."""
    is_plain = image.format in JPEGS and image.mode in ("RGB", "L") and not is_draft
    if is_plain and image.getexif().get(ORIENTATION, 1) == 1:
        try:
            return simplejpeg.decode_jpeg(content, "RGB")  # the same values, without a copy
        except ValueError:
            pass  # damaged, or odd in a way that Pillow knows
    return np.array(to_rgb(image))


def to_rgb(image: Image.Image) -> Image.Image:
    """`image` upright, opaque and in 8-bit RGB."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        image = white
    return image.convert("RGB")


def shorter_side(image: Image.Image, length: int) -> Image.Image:
    """`image` with its shorter side `length` pixels long, the longer one rounded down as OpenAI's preprocessing."""
    size = _shorter(image.size, length)
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


def shorter_side_fast(pixels: np.ndarray, length: int) -> np.ndarray:
    """`shorter_side` of uint8[height width 3] with torch's vectorised filter where it shrinks: several times faster, at
    most 1 of 255 apart.

    Two of 255 on white noise, and where it would enlarge, which is quick anyway and left to Pillow.
    """
    if min(pixels.shape[:2]) <= length:
        return np.array(shorter_side(Image.fromarray(pixels), length))
    return _resized(pixels, _shorter((pixels.shape[1], pixels.shape[0]), length))


def _resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8[height width 3] at another size (width, height), by torch's bicubic filter."""
    channels_last = torch.from_numpy(pixels).permute(2, 0, 1)[None]  # as the fast kernel wants them
    resized = torch.nn.functional.interpolate(channels_last, size[::-1], mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def _shorter(size: tuple[int, int], length: int) -> tuple[int, int]:
    width, height = size
    return (length, length * height // width) if width <= height else (length * width // height, length)


def centre_crop(pixels: np.ndarray, size: int) -> np.ndarray:
    """The central square of uint8[height width 3], resized to `size`."""
    height, width, _ = pixels.shape
    side = min(height, width)
    left, top = round((width - side) / 2), round((height - side) / 2)
    square = pixels[top : top + side, left : left + side]
    if side == size:
        return square
    return np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.BICUBIC))


def random_crop(pixels: np.ndarray, size: int, *, min_area: float, draws: tuple[float, float, float]) -> np.ndarray:
    """A random square of uint8[height width 3], resized to `size`: the paper's only augmentation (section 2.4).

    `draws` are three uniform numbers in [0, 1): for the square's area, in [`min_area`, 1] of the largest one, and for
    its place across and down.
    """
    height, width, _ = pixels.shape
    largest = min(height, width)
    side = max(1, round(largest * (min_area + (1 - min_area) * draws[0]) ** 0.5))
    left, top = int(draws[1] * (width - side + 1)), int(draws[2] * (height - side + 1))
    square = pixels[top : top + side, left : left + side]
    return square if side == size else _resized(np.ascontiguousarray(square), (size, size))


def stack(images: list[np.ndarray]) -> UInt8[Tensor, "batch 3 height width"]:
    """Pictures uint8[height width 3] as one tensor, channels first in shape and last in memory."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
