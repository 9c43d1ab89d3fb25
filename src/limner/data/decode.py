"""Encoded bytes to pixels: `bytes -> decode -> uint8[height width 3] -> crop -> uint8[size size 3]`.

Any format becomes 8-bit RGB: EXIF orientation applied, transparency laid on white, CMYK and palettes converted, of
animations and several pages the first; ICC profiles are left alone. Metadata that is broken costs nothing (bare.py).
The header is checked before anything is decoded. Then the shorter side is resized by a bicubic filter and the central
square kept, as OpenAI's and open_clip's preprocessing does.

Grey pictures of more than 8 bits would be black where their numbers are small, so the largest of them says what they
are: up to 255 the picture has 8 bits in a wider file and stays as it is, up to 4,095 it has 12, up to 65,535 it has 16;
of floats, up to 1 that is white, from 16 to 255 they stay as they are. Other numbers (negative, larger, infinite) are
measurements and no picture: `Unreadable`, and so are colours of 16 bits so dark that they cannot be told from 8 in a
wider file.

A picture that is not whole is damaged, also where its decoder would not say so (whole.py), and where the program that
uses limner lets Pillow load half pictures (`ImageFile.LOAD_TRUNCATED_IMAGES`): nothing of Pillow's is changed for that
program, and a Pillow image that it hands in is read as it says.
"""

import io
import re
import threading
from collections.abc import Callable
from contextlib import nullcontext
from types import FunctionType
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from torch import Tensor

from limner.data.bare import ORIENTATION, bare, exif_orientation
from limner.data.whole import END_OF_JPEG, damage, hole, jpeg_pixels, rows_are_missing, scans_are_missing
from limner.errors import DataError
from limner.files import LFS_POINTER

MAX_PIXELS = 100_000_000
LARGE_PIXELS = 2**24
"""Larger pictures are decoded one at a time: one of 100 million with transparency needs 1.7 GB."""
MAX_ASPECT = 16
"""A longer strip would be blown up to many times the size of other pictures."""
MAX_SCANS = 100
"""Scans of a progressive JPEG, at most; it usually has ten, and each goes over all of its pixels."""
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM")
NO_IMAGE, DAMAGED, TOO_MANY_PIXELS, TOO_LONG, NO_COLOURS = (
    "not a picture",
    "damaged picture",
    f"over {MAX_PIXELS // 10**6} million pixels",
    f"longer than {MAX_ASPECT} to 1",
    "numbers that are no colours",
)
"""Why a picture cannot be used."""
TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How a picture becomes upright, by its orientation."""
DEEP = re.compile(r";16|'ppm\w*'.*'RGB', (?!255\))\d{3}")
"""Colours of more than 8 bits, in what Pillow calls the way in which pixels lie in a file."""
EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0%c\0\0\0\0\0\0"
"""EXIF data of an orientation and nothing else."""
_one_large = threading.Lock()


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
    resampling: Image.Resampling = Image.Resampling.BICUBIC,
    begun: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """The picture in `content` as uint8[height width 3], its shorter side `resize` pixels long, by `resampling`.

    `fast`: several times faster, at most 1 of 255 apart (two on white noise); JPEGs of four times that size or more are
    decoded at a fraction of it, where values differ more. `begun` is called when it has its turn: large pictures wait
    for each other. Raises `Unreadable`.
    """
    try:
        image = opened(content, name)
        with _one_large if image.width * image.height > LARGE_PIXELS else nullcontext():
            begun()
            if not fast:
                return np.asarray(shorter_side(Image.fromarray(rgb_of(image, name=name)), resize, resampling))
            return shorter_side_fast(rgb_of(image, least=2 * resize, name=name), resize)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # on damaged files Pillow's readers raise whatever the damage leads to
        raise Unreadable(name, DAMAGED, str(error) or type(error).__name__) from error


def opened(content: bytes, name: str = "picture") -> Image.Image:
    """The picture in `content`, less its metadata, with its header read and checked, its pixels not yet.

    Its orientation is in its EXIF data, as Pillow has it. Raises `Unreadable`.
    """
    try:
        found = bare(content)
        if found is None:
            got = f"{len(content):,} bytes of another format" if content else "an empty file"
            if content.startswith(LFS_POINTER):
                got = "what Git LFS leaves in a file's place: git lfs pull fetches the picture"
            raise Unreadable(name, NO_IMAGE, got)
        image: Image.Image = READERS[found.format](io.BytesIO(found.content))
    except (DataError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise Unreadable(name, TOO_MANY_PIXELS, error) from None
    except Exception as error:  # on damaged files Pillow's readers raise whatever the damage leads to
        raise Unreadable(name, DAMAGED, str(error) or type(error).__name__) from error
    if found.orientation != 1:
        image.info["exif"] = EXIF % found.orientation
    short, long = sorted(image.size)
    if short * long > MAX_PIXELS:
        got = f"{image.width} x {image.height} pixels, over {MAX_PIXELS:,}"
        raise Unreadable(name, TOO_MANY_PIXELS, got)
    if long > MAX_ASPECT * short:
        got = f"{image.width} x {image.height} pixels, longer than {MAX_ASPECT} to 1"
        raise Unreadable(name, TOO_LONG, got)
    if found.format == "JPEG" and _has_scans(found.content):
        if found.content.count(b"\xff\xda") > MAX_SCANS:
            raise Unreadable(name, DAMAGED, f"a JPEG of more than {MAX_SCANS} scans")
        if scans_are_missing(found.content):
            raise Unreadable(name, DAMAGED, "a JPEG that ends before its last scan")
    if fault := damage(found.format, found.content, short * long):
        raise Unreadable(name, DAMAGED, fault)
    if found.format == "TIFF":
        if odd := _misread(image):
            raise Unreadable(name, NO_COLOURS, odd)
        if fault := _hole(image, found.content):
            raise Unreadable(name, DAMAGED, fault)
    return image


def _misread(tiff: Any) -> str | None:
    """What a TIFF is, in words, if it is one of the kinds that Pillow reads as other numbers; None if it is not."""
    tags = tiff.tag_v2
    bits, palette = max(tags.get(258, (1,))), tags.get(320, ())
    if bits == 16 and tags.get(262) == 0:
        return "a TIFF of 16 bits in which white is 0"
    if bits == 16 and tags.get(284) == 2 and tags.get(277, 1) > 1:
        return "a TIFF of 16 bits with its colours one by one"
    if bits == 8 and 2 in tags.get(339, ()):
        return "a TIFF of numbers below 0"
    return "a TIFF with a palette of 8 bits in 16" if palette and 0 < max(palette) < 256 else None


def _hole(tiff: Any, content: bytes) -> str | None:
    """Where a strip or tile of packed pixels is zeros for longer than such pixels are, in words; None: nowhere."""
    tags = tiff.tag_v2
    if tags.get(259, 1) == 1:  # as they are
        return None
    places = zip(tags.get(273, tags.get(324, ())), tags.get(279, tags.get(325, ())), strict=False)
    found = (hole("TIFF", content[start : start + size], tiff.width * tiff.height) for start, size in places)
    return next(filter(None, found), None)


class _Strict(ImageFile.ImageFile):
    """A picture that loads whole or not at all, whatever `LOAD_TRUNCATED_IMAGES` says to the rest of the program.

    That is a global of Pillow's module, which its `load` looks at: here it has one of its own.
    """

    load: Any = FunctionType(
        ImageFile.ImageFile.load.__code__, {**vars(ImageFile), "LOAD_TRUNCATED_IMAGES": False}, "load"
    )


class _StrictJpeg(JpegImagePlugin.JpegImageFile, _Strict):
    def content(self) -> bytes:
        """The file, while it is not loaded."""
        return self.fp.getvalue()  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]

    is_whole = False

    def load(self) -> Any:
        if self.tile:
            pixels = jpeg_pixels(self.content(), "CMYK" if self.mode == "CMYK" else "RGB")  # raises if it is not whole
            self.is_whole = pixels is not None
        return super().load()

    def load_read(self, read_bytes: int) -> bytes:
        """The next bytes. Pillow's own adds an end where there is none, whatever is missing."""
        return (self.fp.read(read_bytes) if self.fp else b"") or END_OF_JPEG * self.is_whole


class _StrictPng(PngImagePlugin.PngImageFile, _Strict):
    def load(self) -> Any:
        png = self.fp.getvalue() if self.tile and self.fp else b""  # pyright: ignore[reportAttributeAccessIssue]
        pixels = super().load()
        if png and (png[28] or self._ends_black()) and rows_are_missing(png):
            raise OSError("rows are missing at its end")
        return pixels

    def _ends_black(self) -> bool:
        """Whether the last row is all zeros, as rows are that the decoder did not come to."""
        return not np.asarray(self.crop((0, self.height - 1, self.width, self.height))).any()


READERS: dict[str, Any] = {"JPEG": _StrictJpeg, "PNG": _StrictPng} | {
    str(plugin.format): type(plugin.__name__, (plugin, _Strict), {})
    for plugin in (
        WebPImagePlugin.WebPImageFile,
        AvifImagePlugin.AvifImageFile,
        BmpImagePlugin.BmpImageFile,
        GifImagePlugin.GifImageFile,
        TiffImagePlugin.TiffImageFile,
        PpmImagePlugin.PpmImageFile,
    )
}
"""What opens each of `FORMATS`. `Image.open` would warn of large pictures, and load readers for all of its formats."""


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


def rgb_of(image: Image.Image, *, least: int = 0, name: str = "picture") -> np.ndarray:
    """The opened picture as `to_rgb` makes it, as uint8[height width 3].

    With `least`, a JPEG that is large enough is decoded at a half, a quarter or an eighth of its size, both of whose
    sides have that many pixels. Raises what `to_rgb` does, and `ValueError` for a JPEG that is not whole.
    """
    if isinstance(image, _StrictJpeg) and image.mode in ("RGB", "L"):
        least = least if min(image.size) >= 2 * least else 0
        pixels = jpeg_pixels(image.content(), "RGB", least)  # the same values as Pillow's, without a copy
        turn = TURNED.get(_orientation(image))
        if pixels is not None:
            return pixels if turn is None else np.array(Image.fromarray(pixels).transpose(turn))
    return np.array(to_rgb(image, name))


# --- to RGB ----------------------------------------------------------------------------------------------------------


def to_rgb(image: Image.Image, name: str = "picture") -> Image.Image:
    """`image`, of any mode, upright, opaque and in 8-bit RGB.

    Raises `Unreadable` for one whose numbers are no colours, or that is not whole, if it is a file that is not loaded
    yet; of one that `opened` opened, what Pillow raises.
    """
    is_deep = image.mode in ("RGB", "RGBA", "CMYK") and DEEP.search(str(getattr(image, "tile", [])[:1])) is not None
    image = _loaded(image, name)
    if 0 in image.size:
        raise Unreadable(name, NO_IMAGE, f"{image.width} x {image.height} pixels")
    turn = TURNED.get(_orientation(image))
    if turn is not None:  # to flip from left to right is number 0
        image = image.transpose(turn)
    if image.mode.startswith("I") or image.mode == "F":
        image = _grey(image, name)
    elif image.mode == "LAB":
        image = _from_lab(image)
    elif image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        image = _on_white(image)
    colours = image if image.mode == "CMYK" else image.convert("RGB")
    image = image.convert("RGB")
    if is_deep and max(most for _, most in colours.getextrema()) < 16:  # pyright: ignore[reportGeneralTypeIssues, reportUnknownArgumentType]
        raise Unreadable(name, NO_COLOURS, "16-bit colours that are all but black, or 8 bits in a 16-bit file")
    return image


def _loaded(image: Image.Image, name: str) -> Image.Image:
    """`image` with its pixels read. A file of somebody else's is read again, without its metadata, where that fails."""
    if isinstance(image, _Strict):
        image.load()
        return image
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise whatever damage leads to, that of metadata included
        file = getattr(image, "fp", None)
        try:
            if file is None or getattr(image, "tell", int)() != 0:
                raise error
            file.seek(0)
            image = opened(file.read(), name)
            image.load()
        except (DataError, MemoryError):
            raise
        except Exception as damage:
            raise Unreadable(name, DAMAGED, str(damage) or type(damage).__name__) from damage
    return image


def _orientation(image: Image.Image) -> int:
    """The orientation by EXIF or XMP data, 1 to 8; 1 where that is broken or tells none."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # whatever the damage leads to
        exif = image.info.get("exif")
        found = exif_orientation(exif) if isinstance(exif, bytes) else 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _grey(image: Image.Image, name: str) -> Image.Image:
    """Numbers of more than 8 bits as an 8-bit picture; the module's docstring says how."""
    numbers = np.asarray(image)
    least, most, is_float = numbers.min(), numbers.max(), image.mode == "F"
    if is_float and least >= 0 and most <= 1:
        grey = np.rint(numbers * 255)
    elif least >= 0 and most <= 255 and not (is_float and most < 16):
        grey = np.rint(numbers) if is_float else numbers
    elif least >= 0 and most < 2**16 and not is_float:
        grey = numbers >> (4 if most < 2**12 else 8)
    else:
        raise Unreadable(name, NO_COLOURS, f"{'floats' if is_float else 'numbers'} from {least} to {most}")
    grey = grey.astype(np.uint8)
    if isinstance(transparent := image.info.get("transparency"), int):
        grey[numbers == transparent] = 255  # on white
    return Image.fromarray(grey)


def _from_lab(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
    return image if converted is None else converted


def _on_white(image: Image.Image) -> Image.Image:
    try:
        image = image.convert("RGBA")
    except (ValueError, TypeError, IndexError):  # what it says about transparency does not fit it
        image = image.copy()
        image.info.pop("transparency", None)
        return image
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    return white


# --- sizes -----------------------------------------------------------------------------------------------------------


def shorter_side(
    image: Image.Image, length: int, resampling: Image.Resampling = Image.Resampling.BICUBIC
) -> Image.Image:
    """`image` with its shorter side `length` pixels long, the longer one rounded down as OpenAI's preprocessing."""
    size = _shorter(image.size, length)
    return image if image.size == size else image.resize(size, resampling)


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
