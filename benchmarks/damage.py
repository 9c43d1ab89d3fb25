"""Pictures that are harmed in the ways of disks and downloads, and flat ones: how many are read with other pixels, and
how many flat ones are read. Everything is made up here; prints JSON.

python benchmarks/damage.py > benchmarks/results/damage.json
"""

import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from limner.data.decode import Unreadable, decode

WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "PNG": ("PNG", {}),
    "JPEG": ("JPEG", {"quality": 85}),
    "JPEG, quality 95": ("JPEG", {"quality": 95}),
    "JPEG, progressive": ("JPEG", {"quality": 85, "progressive": True}),
    "JPEG, restart markers": ("JPEG", {"quality": 85, "restart_marker_blocks": 8}),
    "WebP": ("WEBP", {}),
    "WebP, lossless": ("WEBP", {"lossless": True}),
    "AVIF": ("AVIF", {"speed": 9}),
    "GIF": ("GIF", {}),
    "TIFF, LZW": ("TIFF", {"compression": "tiff_lzw"}),
    "TIFF, deflate": ("TIFF", {"compression": "tiff_deflate"}),
    "TIFF, unpacked": ("TIFF", {}),
    "BMP": ("BMP", {}),
}
PHOTOS, SIDE = 20, 480
rng = np.random.default_rng(0)


def photo() -> Image.Image:
    """Parts of many sizes, as photographs have."""
    mixed = np.zeros((SIDE, SIDE, 3))
    for by, share in ((64, 0.5), (16, 0.25), (4, 0.15), (1, 0.1)):
        part = rng.integers(0, 256, (max(1, SIDE // by), max(1, SIDE // by), 3), dtype=np.uint8)
        mixed += share * np.asarray(Image.fromarray(part).resize((SIDE, SIDE)))
    return Image.fromarray(mixed.astype(np.uint8))


def flat() -> Iterator[Image.Image]:
    for side in (8, 300, 2000):
        half = np.full((side, side, 3), 255, dtype=np.uint8)
        half[side // 2 :] = 0
        yield Image.fromarray(half)
        yield from (Image.new("RGB", (side, side), colour) for colour in ("black", "white", "teal"))


def harmed(content: bytes) -> dict[str, bytes]:
    half = len(content) // 2
    hole = bytes(4096) + content[half + 4096 :]
    return {
        "cut in half": content[:half],
        "cut by 100 bytes": content[:-100],
        "second half zeros": content[:half] + bytes(len(content) - half),
        "zeros up to the last two bytes": content[:half] + bytes(len(content) - half - 2) + content[-2:],
        "4,096 zeros": content[:half] + hole,
        "4,096 bytes of noise": content[:half] + rng.bytes(4096) + content[half + 4096 :],
        "4,096 bytes gone": content[:half] + content[half + 4096 :],
    }


def read(content: bytes) -> np.ndarray | None:
    try:
        return decode(content, SIDE)
    except Unreadable:
        return None


def main() -> None:
    photos, rows = [photo() for _ in range(PHOTOS)], []
    for name, (format, options) in WAYS.items():
        wrong = dict[str, int]()
        for image in photos:
            content = encoded(image, format, options)
            expected = read(content)
            assert expected is not None
            for harm, one in harmed(content).items():
                found = read(one)
                differs = found is not None and float(np.abs(found.astype(int) - expected).mean()) > 0.5
                wrong[harm] = wrong.get(harm, 0) + differs
        flats = [encoded(image, format, options) for image in flat()]
        whole = sum(read(one) is not None for one in flats)
        rows.append({"format": name, "photos": PHOTOS, "read_wrong": wrong, "flat": len(flats), "flat_read": whole})
    print(json.dumps(rows, indent=2))


def encoded(image: Image.Image, format: str, options: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


main()
