import io
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from limner.data import decode as module
from limner.data.decode import centre_crop, decode, random_crop, shorter_side, shorter_side_fast, to_rgb
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
            "truncated",
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
