"""Quick numbers about pairs, and one pair: `limner data stats`, `limner data show`."""

from array import array
from collections.abc import Iterable
from typing import Any

import numpy as np

from limner.data.decode import Unreadable, decode, opened
from limner.data.order import quality
from limner.data.pairs import Pair, order_of
from limner.data.sources.read import read_images, read_pairs
from limner.errors import DataError, did_you_mean
from limner.progress import track

SUGGESTED = 5
"""Keys named in place of one that is not there."""
SIDE = 64
"""Pixels on the shorter side, to find out whether an image can be decoded: that is the same at any size."""


def stats(path: str) -> dict[str, Any]:
    """What is known about the pairs at `path` without reading a picture: counts, lengths, bytes, fingerprint, order."""
    source = read_pairs(path)
    sizes, captions, words, characters = array("q"), array("q"), array("q"), array("q")
    for pair in track(source, title="Reading captions", total=len(source)):
        sizes.append(pair.size)
        captions.append(len(pair.captions))
        words.extend(len(caption.split()) for caption in pair.captions)
        characters.extend(map(len, pair.captions))
    return {
        "path": str(path),
        "pairs": len(source),
        "parts": len(source.parts),
        "captions": sum(captions),
        "captions_per_image": _spread_of(captions),
        "words_per_caption": _spread_of(words),
        "characters_per_caption": _spread_of(characters),
        "image_bytes": sum(sizes),
        "bytes_per_image": _spread_of(sizes),
        "skipped": dict(source.skipped),
        "noted": dict(source.noted),
        "fingerprint": source.fingerprint,
        "order": quality(order_of(source, seed=0)),
    }


def _spread_of(values: Iterable[int]) -> dict[str, int | float]:
    numbers = np.fromiter(values, dtype=np.int64)
    return {
        "least": int(numbers.min()),
        "median": float(np.median(numbers)),
        "mean": round(float(numbers.mean()), 2),
        "most": int(numbers.max()),
    }


def find_pair(path: str, key: str) -> Pair:
    """The picture at `path` that has this key: as limner names it, or its shard does. Raises `DataError` otherwise."""
    near: list[Pair] = []
    known: list[str] = []
    for pair in read_images(path):
        if pair.key == key:
            return pair
        if pair.key.endswith(f"/{key}"):
            near.append(pair)
        if len(known) < 10_000:  # enough to guess from
            known.append(pair.key)
    if len(near) == 1:
        return near[0]
    raise DataError(
        f"The key {key!r}",
        must=f"name one picture of {path}",
        got=f"{len(near)} that end so" if near else "none of that name",
        then=f"Take one of {', '.join(pair.key for pair in near[:SUGGESTED])}."
        if near
        else did_you_mean(key, known, f"Its first keys are {', '.join(known[:3])}."),
    )


def describe_pair(pair: Pair) -> tuple[dict[str, Any], bytes]:
    """What is known about a pair, its picture's header included, and the picture's bytes."""
    content = pair.read()
    try:
        header = opened(content, f"The picture {pair.key}")
        decode(content, SIDE, fast=True)
        looks = {"format": header.format, "width": header.width, "height": header.height}
    except Unreadable as error:
        looks = {"unreadable": f"{error.reason}: {error.got}"}
    told = {
        "key": pair.key,
        "captions": list(pair.captions),
        "chances": list(pair.chances),
        "label": pair.label,
        "held_out": pair.held_out,
        "file": str(pair.path),
        "offset": pair.offset,
        "size": pair.size,
        **looks,
    }
    return told, content
