import io
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from limn.data import decode as module
from limn.data.decode import centre_crop, decode, random_crop
from limn.errors import DataError

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
def test_damaged_pictures_are_errors_of_limn_or_pictures(data: st.DataObject):
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
