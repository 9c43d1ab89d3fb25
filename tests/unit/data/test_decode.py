import io
import json
import struct
import subprocess
import sys
import tracemalloc
import zlib
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFile, ImageOps

from limner.data import decode as module
from limner.data.decode import (
    NO_COLOURS,
    Unreadable,
    centre_crop,
    decode,
    random_crop,
    shorter_side,
    shorter_side_fast,
    to_rgb,
)
from limner.errors import DataError

GREY = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (48, 1))  # 48 x 64, a ramp


def encoded(picture: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[:, :, None], 3, axis=2)


def test_grey_palette_and_16_bit_mean_the_same_picture():
    picture = Image.fromarray(GREY)
    sixteen = Image.fromarray(GREY.astype(np.uint16) * 257)
    for content in (encoded(picture), encoded(picture.convert("RGB")), encoded(picture.convert("P")), encoded(sixteen)):
        assert np.array_equal(decode(content, 48), rgb(GREY))


def test_cmyk_is_converted():
    content = encoded(Image.fromarray(rgb(GREY)).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(decode(content, 48).astype(int) - rgb(GREY)).mean() < 3


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_white(mode: str):
    picture = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    picture.paste((200, 0, 0, 255), (10, 0, 20, 20))
    pixels = decode(encoded(picture.convert(mode)), 20)
    assert (pixels[:, :10] == 255).all() and (pixels[:, 10:] != 255).any()


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter to the right
    content = encoded(Image.fromarray(rgb(GREY)), "JPEG", exif=exif, quality=95)
    pixels = decode(content, 48)
    assert pixels.shape == (64, 48, 3)
    assert pixels[0].mean() < 20 < 235 < pixels[-1].mean()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_that_of_pillow(format: str, orientation: int):
    image = Image.new("RGB", (64, 32), "white")
    image.paste("red", (0, 0, 16, 8))  # one corner, so that all eight differ
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(image, format, exif=exif, **({"quality": 95} if format in ("JPEG", "WEBP") else {}))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    assert np.abs(decode(content, 32).astype(int) - np.asarray(upright).astype(int)).mean() < 1


@given(width=st.integers(6, 90), height=st.integers(6, 90), resize=st.integers(1, 40))
def test_the_shorter_side_is_exact_and_the_longer_one_in_proportion(width: int, height: int, resize: int):
    pixels = decode(encoded(Image.new("RGB", (width, height))), resize)
    assert min(pixels.shape[:2]) == resize
    assert max(pixels.shape[:2]) == resize * max(width, height) // min(width, height)


@given(
    width=st.integers(8, 40),
    height=st.integers(8, 40),
    min_area=st.floats(0.05, 1),
    draws=st.tuples(*[st.floats(0, 1, exclude_max=True)] * 3),
)
def test_random_crops_stay_inside(width: int, height: int, min_area: float, draws: tuple[float, float, float]):
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    assert random_crop(pixels, 12, min_area=min_area, draws=draws).shape == (12, 12, 3)


def test_a_random_crop_of_the_whole_area_is_a_slice():
    pixels = rgb(GREY)
    crop = random_crop(pixels, 48, min_area=1.0, draws=(0.3, 0.999, 0.5))
    assert np.array_equal(crop, pixels[:, 16:])


def test_the_centre_crop_is_central():
    assert np.array_equal(centre_crop(rgb(GREY), 48), rgb(GREY)[:, 8:56])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "an empty file"),
        (b"<html></html>", "13 bytes of another format"),
        (
            encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)), "JPEG")[
                :900
            ],
            "premature end",
        ),
        (encoded(Image.new("RGB", (64, 64)))[:60], ""),
    ],
)
def test_what_is_not_a_picture_is_an_error_with_a_reason(content: bytes, reason: str):
    with pytest.raises(DataError, match="readable picture") as caught:
        decode(content, 32)
    assert reason in str(caught.value.got)


def test_a_strip_is_refused_before_it_is_blown_up():
    with pytest.raises(DataError, match="longer than 16 to 1"):
        decode(encoded(Image.new("RGB", (4000, 1))), 32)


@given(data=st.data())
def test_damaged_pictures_are_errors_of_limner_or_pictures(data: st.DataObject):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = bytearray(encoded(Image.fromarray(rgb(GREY)), "JPEG", exif=exif))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with suppress(DataError):
        assert decode(bytes(content), 16).shape[2] == 3


def test_a_huge_picture_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MAX_PIXELS", 1000)
    with pytest.raises(DataError, match="40 x 40 pixels, over 1,000"):
        decode(encoded(Image.new("RGB", (40, 40))), 32)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8))


def photo(width: int, height: int) -> Image.Image:
    """Slopes and edges as in a photograph, with its grain."""
    rng = np.random.default_rng(width)
    smooth = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    pixels = np.asarray(smooth) + rng.normal(0, 8, (height, width, 3))
    pixels[height // 3 :, width // 2 :] = 255 - pixels[height // 3 :, width // 2 :]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def quarter_turned() -> Image.Image:
    exif = Image.Exif()
    exif[0x0112] = 6
    return Image.open(io.BytesIO(encoded(photo(300, 200), "JPEG", exif=exif)))


def palette_with_alpha() -> Image.Image:
    picture = photo(90, 120).quantize(64)
    picture.info["transparency"] = 3
    return Image.open(io.BytesIO(encoded(picture)))


IMAGE_ENDINGS = {
    "tall": photo(100, 700),
    "wide": photo(703, 101),
    "large": photo(900, 700),
    "tiny": photo(5, 7),
    "exact": photo(64, 64),
    "grey": photo(130, 90).convert("L"),
    "palette and alpha": palette_with_alpha(),
    "CMYK": photo(130, 90).convert("CMYK"),
    "16 bit": Image.fromarray((np.arange(90 * 70, dtype=np.uint16) * 10).reshape(70, 90)),
    "turned by EXIF": quarter_turned(),
}


def openai_preprocessing(picture: Image.Image, size: int) -> np.ndarray:
    """Resize of the shorter side and central crop, written out from OpenAI's description, on an RGB picture."""
    width, height = picture.size
    short, long = sorted(picture.size)
    other = int(size * long / short)
    picture = picture.resize((size, other) if width <= height else (other, size), Image.Resampling.BICUBIC)
    left, top = round((picture.width - size) / 2), round((picture.height - size) / 2)
    return np.asarray(picture.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("name", IMAGE_ENDINGS)
@pytest.mark.parametrize("size", [32, 64, 225])
def test_preprocessing_equals_pillow_and_the_fast_way_is_within_one(name: str, size: int):
    rgb = to_rgb(IMAGE_ENDINGS[name])
    expected = openai_preprocessing(rgb, size)
    assert np.array_equal(centre_crop(np.asarray(shorter_side(rgb, size)), size), expected)
    fast = centre_crop(shorter_side_fast(np.array(rgb), size), size)
    assert fast.dtype == np.uint8 and np.abs(fast.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("size", [32, 64, 225])
def test_on_white_noise_the_fast_way_is_within_two(size: int):
    rgb = noise(130, 90)  # a difference of one across, and another one down
    fast = centre_crop(shorter_side_fast(np.array(rgb), size), size)
    assert np.abs(fast.astype(int) - openai_preprocessing(rgb, size)).max() <= 2


def test_the_scans_of_a_plain_jpeg_are_not_searched_for():
    plain = photo(64, 48)
    assert not module._has_scans(encoded(plain, "JPEG")) and not module._has_scans(encoded(plain.convert("L"), "JPEG"))
    assert module._has_scans(encoded(plain, "JPEG", progressive=True))
    assert module._has_scans(b"\xff\xd8\xff") and module._has_scans(encoded(plain, "JPEG")[:30])


def test_a_draft_is_another_picture_only_for_large_jpegs():
    smooth = noise(12, 9).resize((1200, 900), Image.Resampling.BICUBIC)
    large = encoded(smooth, "JPEG", quality=90)
    exact, draft = decode(large, 64), decode(large, 64, fast=True)
    assert exact.shape == draft.shape and 0 < np.abs(exact.astype(int) - draft).max() < 20
    for content in (encoded(smooth), encoded(smooth.resize((120, 90)), "JPEG", quality=90)):
        assert np.abs(decode(content, 64).astype(int) - decode(content, 64, fast=True)).max() <= 1


# --- numbers and modes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize("times", [1, 16, 257])
def test_grey_of_8_12_and_16_bits_in_16_is_the_same_picture(times: int, format: str):
    content = encoded(Image.fromarray(GREY.astype(np.uint16) * times), format)
    for fast in (False, True):
        assert np.array_equal(decode(content, 48, fast=fast), rgb(GREY))
    assert np.array_equal(np.asarray(to_rgb(Image.fromarray(GREY.astype(np.int32) * times))), rgb(GREY))


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_the_order_of_bytes_is_no_matter(mode: str):
    numbers = (GREY.astype(np.uint16) * 257).astype(">u2" if mode.endswith("B") else "<u2")
    assert np.array_equal(np.asarray(to_rgb(Image.frombytes(mode, (64, 48), numbers.tobytes()))), rgb(GREY))


@pytest.mark.parametrize("share", [1, 1 / 255])
def test_floats_up_to_1_and_up_to_255_are_the_same_picture(share: float):
    image = Image.fromarray((GREY * share).astype(np.float32))
    assert np.array_equal(np.asarray(to_rgb(image)), rgb(GREY))
    assert np.array_equal(decode(encoded(image, "TIFF"), 48), rgb(GREY))


@pytest.mark.parametrize(
    "numbers",
    [
        np.where(GREY == 0, np.nan, GREY).astype(np.float32),
        np.where(GREY == 0, np.inf, GREY).astype(np.float32),
        (GREY / 255 - 0.5).astype(np.float32),
        (GREY / 100).astype(np.float32),
        (GREY * 9.0).astype(np.float32),
        GREY.astype(np.int32) - 9,
        GREY.astype(np.int32) * 70_000,
    ],
    ids=["nan", "infinite", "below 0", "up to 3", "floats over 255", "negative", "over 16 bits"],
)
def test_measurements_are_no_colours(numbers: np.ndarray):
    with pytest.raises(Unreadable) as caught:
        to_rgb(Image.fromarray(numbers), "The picture 7")
    assert caught.value.reason == NO_COLOURS and "The picture 7" in str(caught.value)


def test_black_is_a_picture():
    black = np.zeros((48, 64, 3), dtype=np.uint8)
    for dtype in (np.uint8, np.uint16, np.int32, np.float32):
        assert np.array_equal(np.asarray(to_rgb(Image.fromarray(black[..., 0].astype(dtype)))), black)
    assert np.array_equal(decode(encoded(Image.fromarray(black[..., 0].astype(np.uint16))), 48), black)


def deep_png(colours: np.ndarray) -> bytes:
    """uint16[height width 3] as a PNG, which Pillow does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours)
    head = struct.pack(">IIBBBBB", colours.shape[1], colours.shape[0], 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_colours_of_8_bits_in_16_are_not_taken_for_black():
    deep = rgb(GREY).astype(np.uint16)
    assert np.array_equal(decode(deep_png(deep * 257), 48), rgb(GREY))
    for fast in (False, True):
        with pytest.raises(Unreadable, match="all but black"):
            decode(deep_png(deep), 48, fast=fast)


def tiff(tags: dict[int, Any], pixels: bytes) -> bytes:
    """A little-endian TIFF of 8 x 8 pixels; each tag's values are shorts."""
    tags = {256: [8], 257: [8], 259: [1], 262: [1], 277: [1], 278: [8]} | tags
    strips = len(tags[258]) if tags.get(284) == [2] else 1
    tags |= {273: [0] * strips, 279: [len(pixels) // strips] * strips}
    at = 8 + 2 + 12 * len(tags) + 4
    more = b"".join(struct.pack(f"<{len(values)}H", *values) for values in tags.values() if len(values) > 2)
    tags[273] = [at + len(more) + number * len(pixels) // strips for number in range(strips)]
    directory, beside = b"", b""
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}H", *values)
        if len(packed) > 4:
            packed, beside = struct.pack("<I", at + len(beside)), beside + packed
        directory += struct.pack("<HHI", tag, 3, len(values)) + packed.ljust(4, b"\0")
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + directory + bytes(4) + beside + pixels


@pytest.mark.parametrize(
    "tags, pixels, words",
    [
        ({258: [16], 262: [0]}, np.full(64, 60_000, "<u2"), "white is 0"),
        ({258: [16, 16, 16], 262: [2], 277: [3], 284: [2]}, np.full(192, 60_000, "<u2"), "one by one"),
        ({258: [8], 339: [2]}, np.full(64, -3, "i1"), "below 0"),
        ({258: [8], 262: [3], 320: [200] * 768}, np.arange(64, dtype="u1"), "palette of 8 bits"),
        ({258: [16] * 4, 262: [5], 277: [4]}, np.full(256, 200, "<u2"), "8 bits in a 16-bit file"),
    ],
)
def test_a_tiff_that_pillow_reads_as_other_numbers_is_refused(tags: dict[int, Any], pixels: np.ndarray, words: str):
    with pytest.raises(Unreadable, match=words) as caught:
        decode(tiff(tags, pixels.tobytes()), 8)
    assert caught.value.reason == NO_COLOURS


def test_a_tiff_made_here_is_read():
    assert decode(tiff({258: [8]}, bytes([77]) * 64), 8).tolist() == [[[77] * 3] * 8] * 8
    palette = {258: [8], 262: [3], 320: [200 * 257] * 768}
    assert decode(tiff(palette, bytes(64)), 8).tolist() == [[[200] * 3] * 8] * 8
    colours = {258: [16] * 3, 262: [2], 277: [3]}
    assert decode(tiff(colours, np.full(192, 300 * 100, "<u2").tobytes()), 8).tolist() == [[[117] * 3] * 8] * 8


@pytest.mark.parametrize("most, value", [(65535, 200), (1023, 1023), (255, 200)])
def test_a_ppm_of_8_bits_in_16_is_not_taken_for_black(most: int, value: int):
    content = f"P6 8 8 {most}\n".encode() + np.full(192, value, "u1" if most < 256 else ">u2").tobytes()
    if most == 65535:
        with pytest.raises(Unreadable, match="all but black"):
            decode(content, 8)
    else:
        assert decode(content, 8).tolist() == [[[255 if most == 1023 else 200] * 3] * 8] * 8


@pytest.mark.parametrize(
    "mode", ["RGB", "RGBA", "RGBX", "RGBa", "L", "LA", "La", "CMYK", "YCbCr", "HSV", "I", "F", "LAB"]
)
def test_any_mode_becomes_rgb(mode: str):
    image = Image.fromarray(rgb(GREY))
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
        assert image is not None
    else:
        between = {"RGBa": "RGBA", "La": "LA"}.get(mode, "RGB")
        image = image.convert(between).convert(mode)
    assert np.abs(np.asarray(to_rgb(image)).astype(int) - rgb(GREY)).max() <= 2


@pytest.mark.parametrize("transparency", [b"\0" * 300, 999, -5, "x", (1, 2), [3], b"ab", None])
@pytest.mark.parametrize("mode", ["P", "L", "RGB", "1"])
def test_transparency_that_does_not_fit_costs_nothing(mode: str, transparency: object):
    image = Image.fromarray(rgb(GREY)).convert(mode)
    image.info["transparency"] = transparency
    assert to_rgb(image).size == (64, 48)


def test_an_empty_image_is_none():
    for mode in ("RGB", "I;16", "F"):
        with pytest.raises(Unreadable, match="0 x 5 pixels"):
            to_rgb(Image.new(mode, (0, 5)))


# --- nothing of other libraries is changed ---------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM"])
def test_half_a_picture_is_damaged_whatever_the_program_allows(format: str, monkeypatch: pytest.MonkeyPatch):
    content = encoded(noise(200, 160), format)
    for allowed in (False, True):
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", allowed)
        assert decode(content, 32).shape == (32, 40, 3)
        for fast in (False, True):
            for share in (0.4, 0.9):
                with pytest.raises(Unreadable):
                    decode(content[: int(share * len(content))], 32, fast=fast)
        assert ImageFile.LOAD_TRUNCATED_IMAGES is allowed


@pytest.mark.parametrize(
    "format, options",
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"subsampling": 0, "optimize": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("AVIF", {"quality": 95}),
        ("GIF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_deflate"}),
        ("TIFF", {"compression": "jpeg"}),
    ],
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF:UserWarning", "ignore:Truncated:UserWarning")
def test_pixels_that_are_zeros_or_cut_off_are_damaged(format: str, options: dict[str, Any]):
    content = encoded(noise(400, 300), format, **options)
    half = len(content) // 2
    harmed = [content[:half] + bytes(len(content) - half), content[:half] + bytes(2048) + content[half + 2048 :]]
    harmed += [content[:half], content[: half + 5000]]
    if format == "JPEG":
        harmed += [content[:half] + b"\xff\xd9", content[:-40] + b"\xff\xd9"]
    assert decode(content, 300).shape == (300, 400, 3)
    for one in harmed:
        for fast in (False, True):
            with pytest.raises(Unreadable):
                decode(one, 32, fast=fast)


def photo(width: int, height: int) -> Image.Image:
    """Something with parts of many sizes, as photographs have."""
    layers = (noise(max(1, width // by), max(1, height // by)).resize((width, height)) for by in (64, 16, 4, 1))
    shares = 0.5, 0.25, 0.15, 0.1
    mixed = sum(np.asarray(layer, dtype=np.float32) * share for layer, share in zip(layers, shares, strict=True))
    return Image.fromarray(mixed.astype(np.uint8))


@pytest.mark.parametrize("options", [{}, {"quality": 95}, {"progressive": True}, {"restart_marker_blocks": 8}])
def test_a_jpeg_whose_harm_libjpeg_makes_little_of_is_damaged(options: dict[str, Any]):
    content = encoded(photo(640, 480), "JPEG", **options)
    length = len(content)
    for share in (0.2, 0.5, 0.9):  # zeros up to the end mark, as an unfinished download leaves them
        at = int(share * length)
        for fast in (False, True):
            with pytest.raises(Unreadable):
                decode(content[:at] + bytes(length - at - 2) + content[-2:], 64, fast=fast)


def test_a_progressive_jpeg_has_all_of_its_scans():
    content = encoded(photo(64, 48), "JPEG", progressive=True)
    whole = decode(content, 48)
    for cut in range(content.index(b"\xff\xda"), len(content) - 2):
        for end in (b"", b"\xff\xd9"):
            with suppress(Unreadable):
                assert np.abs(decode(content[:cut] + end, 48).astype(int) - whole).max() < 2, cut


def test_more_pixels_packed_in_other_ways_are_damaged_by_holes():
    alpha = photo(640, 480).convert("RGBA")
    alpha.putalpha(noise(640, 480).convert("L"))
    webp = encoded(alpha, "WEBP", quality=80)
    at = webp.index(b"ALPH") + 5000
    harmed = [webp[:at] + bytes(1000) + webp[at + 1000 :]]
    for packing in ("packbits", "lzma", "zstd", "group4", "group3"):
        image = noise(640, 480) if not packing.startswith("group") else noise(640, 480).convert("1")
        tiff = encoded(image, "TIFF", compression=packing)
        assert decode(tiff, 48).shape == (48, 64, 3)
        harmed.append(tiff[: len(tiff) // 2] + bytes(2500) + tiff[len(tiff) // 2 + 2500 :])
    for one in harmed:
        with pytest.raises(Unreadable):
            decode(one, 64)


@pytest.mark.parametrize("size", [(2, 32), (3, 48), (7, 9), (8, 8), (16, 17), (15, 200)])
def test_a_tiny_jpeg_keeps_its_shape(size: tuple[int, int]):
    content = encoded(noise(*size), "JPEG")
    assert decode(content, 8, fast=True).shape == decode(content, 8).shape


@pytest.mark.parametrize(
    "format, options", [("WEBP", {}), ("AVIF", {"speed": 10}), ("JPEG", {"optimize": True}), ("PNG", {})]
)
def test_flat_pictures_are_whole(format: str, options: dict[str, Any]):
    for side in (8, 2000):
        for colour in ("black", "white", "teal"):
            content = encoded(Image.new("RGB", (side, side), colour), format, **options)
            assert decode(content, 8, fast=True).shape == (8, 8, 3)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_with_more_before_its_end_or_behind_it_is_whole(mode: str):
    content = encoded(noise(400, 300).convert(mode), "JPEG")
    expected = decode(content, 64)
    for one in (
        content[:-2] + bytes(300) + content[-2:],
        content + b"more",
        content[:-2] + b"\xff" * 90 + content[-2:],
    ):
        assert np.array_equal(decode(one, 64), expected)
        assert np.array_equal(decode(one, 64, fast=True), decode(content, 64, fast=True))
    assert np.array_equal(decode(content[:-2] + bytes(512), 64), expected)
    for fast in (False, True):
        assert np.array_equal(decode(content[:-2], 64, fast=fast), decode(content, 64, fast=fast))
        with pytest.raises(Unreadable, match="premature end"):
            decode(content[: len(content) // 2] + content[-2:], 64, fast=fast)


def test_each_changed_bit_of_a_png_is_found():
    content = encoded(noise(40, 30), "PNG")
    for at in range(16, len(content) - 16, 97):
        changed = bytearray(content)
        changed[at] ^= 1
        with pytest.raises(Unreadable):
            decode(bytes(changed), 30)


def grey_png(rows: bytes, *, is_interlaced: bool = False) -> bytes:
    """A PNG of 8 x 8 grey pixels, whose rows may be fewer or more."""
    head = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, is_interlaced)
    parts = (b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    told = (struct.pack(">I", len(part)) + name + part for name, part in parts)
    sums = (struct.pack(">I", zlib.crc32(name + part)) for name, part in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(one + end for one, end in zip(told, sums, strict=True))


def test_rows_are_counted_and_not_kept():
    content = grey_png(bytes(2**27))  # black: its rows are counted
    tracemalloc.start()
    assert decode(content, 8).max() == 0
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.parametrize("is_interlaced", [False, True])
def test_a_png_has_all_of_its_rows(is_interlaced: bool):
    def png(rows: bytes) -> bytes:
        return grey_png(rows, is_interlaced=is_interlaced)

    passes = [(1, 1), (1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4)] if is_interlaced else [(8, 8)]
    rows = b"".join((b"\0" + b"\x50" * columns) * number for columns, number in passes)
    assert np.array_equal(decode(png(rows), 8), np.full((8, 8, 3), 0x50))
    assert np.array_equal(decode(png(bytes(len(rows))), 8), np.zeros((8, 8, 3)))  # black, and whole
    for kept in (len(rows) // 2, len(rows) - 9, 0):
        for fast in (False, True):
            with pytest.raises(Unreadable):
                decode(png(rows[:kept]), 8, fast=fast)


def test_half_a_picture_that_somebody_opened_is_an_error_of_limner(monkeypatch: pytest.MonkeyPatch):
    content = encoded(noise(200, 160))
    half = content[: len(content) // 2]
    with pytest.raises(Unreadable):
        to_rgb(Image.open(io.BytesIO(half)))
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # whoever opens it, and allows that, gets it
    assert to_rgb(Image.open(io.BytesIO(half))).size == (200, 160)


STATE = """
import io, json, locale, os, pkgutil, random, signal, sys, warnings
import numpy, torch
from PIL import Image, ImageFile, PngImagePlugin

def state():
    return [
        [str(one) for one in warnings.filters if "sympy" not in str(one)],  # torch's, of its own warnings
        [ImageFile.LOAD_TRUNCATED_IMAGES, ImageFile.MAXBLOCK, Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK],
        [torch.get_num_threads(), str(torch.get_default_dtype()), torch.is_grad_enabled()],
        [torch.initial_seed(), hash(random.getstate()), hash(numpy.random.get_state()[1].tobytes())],
        [locale.setlocale(locale.LC_ALL), sys.getrecursionlimit(), str(sys.excepthook), str(signal.getsignal(2))],
    ]

ImageFile.LOAD_TRUNCATED_IMAGES = True
warnings.simplefilter("always")
before = state()
import limner
for module in pkgutil.walk_packages(limner.__path__, "limner."):
    if not module.name.endswith(("__main__", "estimator", "mteb")):  # what these two import changes is its own
        __import__(module.name)
from limner.data.decode import decode, to_rgb
buffer = io.BytesIO()
Image.new("RGB", (50, 50)).save(buffer, "PNG", exif=b"Exif\\0\\0garbage")
decode(buffer.getvalue(), 32)
to_rgb(Image.open(buffer))
print(json.dumps([before, state()]))
"""


def test_using_limner_changes_nothing_of_other_libraries():
    done = subprocess.run([sys.executable, "-c", STATE], capture_output=True, text=True, check=True)
    before, after = json.loads(done.stdout)
    assert after == before


def test_odd_metadata_is_not_warned_of():
    content = encoded(Image.fromarray(rgb(GREY)), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    assert decode(content, 48).shape == (48, 64, 3)  # here a warning is an error
