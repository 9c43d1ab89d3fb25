"""Encoded bytes to pixels: `bytes -> decode -> uint8[height width 3] -> crop -> uint8[size size 3]`.

Any format becomes 8-bit RGB: EXIF orientation applied, transparency laid on white, 16-bit scaled down, CMYK and
palettes converted. The header is checked before anything is decoded. Then the shorter side is resized by Pillow's
bicubic filter and the central square kept, as OpenAI's and open_clip's preprocessing does.
"""

import io
import warnings

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from limn.errors import DataError

MAX_PIXELS = 100_000_000
MAX_ASPECT = 16
"""A longer strip would be blown up to many times the size of other pictures."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")

Image.init()  # `formats` knows only the plugins that are loaded
ImageFile.LOAD_TRUNCATED_IMAGES = False  # half a picture is not a picture
warnings.filterwarnings("ignore", module="PIL")  # odd metadata; what matters raises


def decode(content: bytes, resize: int, *, name: str = "picture", draft: bool = False) -> np.ndarray:
    """The picture in `content` as uint8[height width 3], its shorter side `resize` pixels long (bicubic).

    `draft` decodes JPEGs of more than twice that size at a fraction of it: faster, and some values differ a little.
    Raises `DataError` if it cannot be decoded.
    """
    return np.asarray(shorter_side(open_rgb(content, draft=2 * resize if draft else None, name=name), resize))


def open_rgb(content: bytes, *, draft: int | None, name: str = "picture") -> Image.Image:
    """The picture in `content`, upright, opaque, in RGB; with `draft` a JPEG's sides may be as small as that."""
    try:
        picture = Image.open(io.BytesIO(content), formats=FORMATS)
        short, long = sorted(picture.size)
        if short * long > MAX_PIXELS:
            raise _unreadable(name, f"{picture.width} x {picture.height} pixels, over {MAX_PIXELS:,}")
        if long > MAX_ASPECT * short:
            raise _unreadable(name, f"{picture.width} x {picture.height} pixels, longer than {MAX_ASPECT} to 1")
        if draft is not None:
            picture.draft("RGB", (draft, draft))
        return to_rgb(picture)
    except DataError:
        raise
    except Exception as error:  # on damaged files Pillow's readers raise whatever the damage leads to
        raise _unreadable(name, _reason(content, error)) from error


def _unreadable(name: str, got: str) -> DataError:
    return DataError(
        name,
        must=f"be a readable picture ({', '.join(FORMATS)})",
        got=got,
        then="Leave it out or save it again with an image program.",
    )


def _reason(content: bytes, error: Exception) -> str:
    if not content:
        return "an empty file"
    if isinstance(error, UnidentifiedImageError):
        return f"{len(content):,} bytes of another format"
    return str(error)


def to_rgb(picture: Image.Image) -> Image.Image:
    """`picture` upright, opaque and in 8-bit RGB."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16") or picture.mode == "I":
        picture = Image.fromarray((np.asarray(picture).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        white.alpha_composite(picture)
        picture = white
    return picture.convert("RGB")


def shorter_side(picture: Image.Image, length: int) -> Image.Image:
    """`picture` with its shorter side `length` pixels long, the longer one rounded down as OpenAI's preprocessing."""
    size = _shorter(picture, length)
    return picture if picture.size == size else picture.resize(size, Image.Resampling.BICUBIC)


def shorter_side_fast(picture: Image.Image, length: int) -> np.ndarray:
    """`shorter_side` with torch's vectorised filter where it shrinks: several times faster, at most 1 of 255 apart.

    Two of 255 on white noise, and where it would enlarge, which is quick anyway and left to Pillow.
    """
    import torch  # decoding alone does not need it

    size = _shorter(picture, length)
    if min(picture.size) <= length:
        return np.asarray(shorter_side(picture, length))
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]  # channels last, as the fast kernel wants them
    resized = torch.nn.functional.interpolate(pixels, size[::-1], mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def _shorter(picture: Image.Image, length: int) -> tuple[int, int]:
    width, height = picture.size
    return (length, length * height // width) if width <= height else (length * width // height, length)


def centre_crop(pixels: np.ndarray, size: int) -> np.ndarray:
    """The central square of uint8[height width 3], resized to `size`."""
    height, width, _ = pixels.shape
    side = min(height, width)
    return _square(pixels, left=round((width - side) / 2), top=round((height - side) / 2), side=side, size=size)


def random_crop(pixels: np.ndarray, size: int, *, min_area: float, draws: tuple[float, float, float]) -> np.ndarray:
    """A random square of uint8[height width 3], resized to `size`: the paper's only augmentation (section 2.4).

    `draws` are three uniform numbers in [0, 1): for the square's area, in [`min_area`, 1] of the largest one, and for
    its place across and down.
    """
    height, width, _ = pixels.shape
    largest = min(height, width)
    side = max(1, round(largest * (min_area + (1 - min_area) * draws[0]) ** 0.5))
    left, top = int(draws[1] * (width - side + 1)), int(draws[2] * (height - side + 1))
    return _square(pixels, left=left, top=top, side=side, size=size)


def _square(pixels: np.ndarray, *, left: int, top: int, side: int, size: int) -> np.ndarray:
    square = pixels[top : top + side, left : left + side]
    if side == size:
        return square
    return np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.BICUBIC))
