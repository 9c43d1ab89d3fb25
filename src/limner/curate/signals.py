"""Numbers about each pair of a source: keys and captions (`Texts`), pictures (`Images`), and which of them are equal.

```
Source ─> keys, captions ─> hashes, words, characters ─> Texts
      └─> read_each: read ─> decode, as training does ─> hash, look, width, height, bytes ─> Images
```

Of each pair and each caption only a few numbers stay in memory, about a hundred bytes a pair.
"""

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from limner.data.decode import decode, opened
from limner.data.order import permuted
from limner.data.pairs import Pair, Part, Prefixed, Source
from limner.data.reading import Unread, hash_of, read_each
from limner.data.tokenizer import clean
from limner.progress import track
from limner.seeds import seed_for

EXAMPLES, GROUPS, NAMED = 5, 12, 100
"""The most keys named as examples, groups of equal values, and unreadable images named one by one."""
RESIZE = 64
"""Shorter side in pixels to which pictures are decoded; whether they can be is the same at any size."""


# --- keys and captions -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Texts:
    """Numbers about the keys and captions of the pairs looked at; a pair's equal captions count once."""

    indices: np.ndarray
    """Where the pairs are in the source: int64[pairs]."""
    keys: np.ndarray
    """64-bit hashes of the keys within their shards: int64[pairs]."""
    firsts: np.ndarray
    """The number of captions before each pair's, and of all: int64[pairs + 1]."""
    hashes: np.ndarray
    """64-bit hashes of what a text encoder sees of them, without capitals and blanks: int64[captions]."""
    words: np.ndarray
    characters: np.ndarray
    """Lengths: int32[captions]."""
    replaced: tuple[str, ...]
    """Some keys of pairs whose captions were not UTF-8."""

    def caption(self, source: Source, number: int) -> str:
        """The text of a caption, looked up again."""
        pair = bisect_right(self.firsts, number) - 1
        return different(source[int(self.indices[pair])])[number - int(self.firsts[pair])]

    def pair_of(self, numbers: np.ndarray) -> np.ndarray:
        """The numbers in the source of the pairs that have these captions."""
        return self.indices[np.searchsorted(self.firsts, numbers, side="right") - 1]


def different(pair: Pair) -> list[str]:
    """A pair's captions, each once: in its first form, where a text encoder sees no difference."""
    firsts = dict[str, str]()
    for caption in pair.captions:
        firsts.setdefault(clean(caption), caption)
    return list(firsts.values())


def read_texts(source: Source, indices: np.ndarray) -> Texts:
    """The keys and captions of some pairs of a source."""
    keys, counts, hashes, words, characters = array("q"), array("q", [0]), array("q"), array("i"), array("i")
    replaced: list[str] = []
    starts = source.starts.tolist()
    for index in track(indices.tolist(), title="Reading captions", total=len(indices)):
        number = bisect_right(starts, index) - 1
        part = source.parts[number]
        pair = part.pair(index - starts[number])
        captions = different(pair)
        keys.append(hash_of(own_key(part, pair.key, in_mixture=bool(source.shares)).encode()))
        counts.append(len(captions))
        for caption in captions:
            hashes.append(hash_of(clean(caption).encode()))
            words.append(len(caption.split()))
            characters.append(len(caption))
        if len(replaced) < EXAMPLES and any("\ufffd" in caption for caption in captions):
            replaced.append(pair.key)
    return Texts(
        indices,
        np.array(keys, dtype=np.int64),
        np.cumsum(np.array(counts, dtype=np.int64)),
        np.array(hashes, dtype=np.int64),
        np.array(words, dtype=np.int32),
        np.array(characters, dtype=np.int32),
        tuple(replaced),
    )


def own_key(part: Part, key: str, *, in_mixture: bool) -> str:
    """The key that a pair has in its own shard. In a mixture the number of its source stays before it: sources may use
    the same keys."""
    if not isinstance(part, Prefixed):
        return key
    own = own_key(part.part, key.removeprefix(part.prefix), in_mixture=False)
    return part.prefix + own if in_mixture else own


# --- pictures --------------------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """Numbers about a readable picture."""

    content: int
    """64-bit hash of the encoded bytes."""
    look: int
    """64-bit difference hash of the pixels; 0 for one that is flat."""
    width: int
    height: int
    size: int
    """Bytes."""
    format: str


@dataclass(frozen=True)
class Images:
    """Numbers about the readable pictures of a source, one row each, and what was wrong with the others."""

    indices: np.ndarray
    """Where they are in the source: int64[pictures]."""
    contents: np.ndarray
    looks: np.ndarray
    widths: np.ndarray
    heights: np.ndarray
    sizes: np.ndarray
    """The fields of `Seen`: int64[pictures]."""
    formats: Counter[str]
    reasons: Counter[str]
    unreadable: list[Unread]
    """The first hundred."""


def examine_images(source: Source, indices: np.ndarray, workers: int) -> Images:
    """Read and decode some images of a source, as training does, with `workers` threads."""
    numbers = np.empty((5, len(indices)), dtype=np.int64)
    is_readable = np.zeros(len(indices), dtype=bool)
    formats, reasons = Counter[str](), Counter[str]()
    unreadable: list[Unread] = []
    with closing(read_each(source, indices.tolist(), look_at, workers=workers)) as looked:
        for row, seen in enumerate(track(looked, title="Reading pictures", total=len(indices))):
            if isinstance(seen, Seen):
                numbers[:, row], is_readable[row] = seen[:5], True
                formats[seen.format] += 1
            else:
                reasons[seen.reason] += 1
                if len(unreadable) < NAMED:
                    unreadable.append(seen)
    contents, looks, widths, heights, sizes = numbers[:, is_readable]
    return Images(indices[is_readable], contents, looks, widths, heights, sizes, formats, reasons, unreadable)


def look_at(_pair: Pair, content: bytes, begun: Callable[[], None]) -> Seen:
    """Numbers about a picture from its bytes. Raises `Unreadable` if it cannot be used."""
    header = opened(content)
    pixels = decode(content, RESIZE, fast=True, begun=begun)
    width, height = header.size
    if (width > height) != (pixels.shape[1] > pixels.shape[0]):  # the header's are those before it is set upright
        width, height = height, width
    return Seen(hash_of(content), look_of(pixels), width, height, len(content), header.format or "")


def look_of(pixels: np.ndarray) -> int:
    """The difference hash of uint8[height width 3]: whether each of 8 x 9 patches is lighter than the one left of it.

    A signed 64-bit number. Of photos saved in another size or quality about six in ten keep it, others differ in a few
    bits; different photos hardly ever share it. 0: no patch is lighter, as in a flat picture.
    """
    patches = np.asarray(Image.fromarray(pixels).convert("L").resize((9, 8), Image.Resampling.BOX))
    return int.from_bytes(np.packbits(patches[:, 1:] > patches[:, :-1]).tobytes(), "big", signed=True)


# --- equal ones, and samples -----------------------------------------------------------------------------------------


class Equal(NamedTuple):
    """Which of some values are equal."""

    groups: list[np.ndarray]
    """The places of equal ones, int64, rising; the largest groups first, at most `GROUPS`."""
    repeats: int
    """The number of values that were there before."""
    chance: float
    """How likely two of them, drawn by chance, are equal."""


def equal_values(hashes: np.ndarray) -> Equal:
    """Which of `hashes`, int64[values], are equal."""
    order = np.argsort(hashes, kind="stable")
    starts = np.flatnonzero(np.diff(hashes[order], prepend=hashes[order][:1] - 1))
    sizes = np.diff(starts, append=len(hashes))
    largest = np.argsort(-sizes, kind="stable")[:GROUPS]
    groups = [order[starts[i] : starts[i] + sizes[i]] for i in largest if sizes[i] > 1]
    total = max(2, len(hashes))
    return Equal(groups, int((sizes - 1).sum()), float((sizes * (sizes - 1.0)).sum() / (total * (total - 1))))


def equal_looks(images: Images) -> Equal:
    """Which different files look the same; flat pictures count as nothing that could be alike."""
    _, different = np.unique(images.contents, return_index=True)
    different = np.sort(different[images.looks[different] != 0])
    equal = equal_values(images.looks[different])
    return equal._replace(groups=[different[group] for group in equal.groups])


def spread(count: int, wanted: int | None, name: str) -> np.ndarray:
    """`wanted` of `count` numbers, drawn by chance from all of them, the same each time: int64, rising."""
    if wanted is None or wanted >= count:
        return np.arange(count)
    return np.sort(permuted(np.arange(wanted), count, seed_for(name, 0)))
