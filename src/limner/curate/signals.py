"""Numbers about each pair: keys, captions, pictures."""

import time
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image

from limner.curate.findings import Unread
from limner.data.decode import Unreadable, decode, opened
from limner.data.order import permuted
from limner.data.pairs import Pair, Part, Prefixed, Source
from limner.data.reading import DEADLINE_SECONDS, LATE, PATIENCE_SECONDS, UNREAD, Task, Workers, hash_of, read_again
from limner.progress import track
from limner.seeds import seed_for

EXAMPLES, GROUPS, NAMED = 5, 12, 100
"""At most: keys named as examples, groups of equal values, unreadable images named one by one."""
RESIZE = 64
"""Shorter side in pixels to which pictures are decoded; whether they can be is the same at any size."""


TOGETHER = 1024
"""Images that are looked at between two moves of the bar."""


SLOW = f"over {PATIENCE_SECONDS:.0f} s to read"
"""Training would wait no longer, and end."""


def spread(count: int, wanted: int | None, name: str) -> np.ndarray:
    """`wanted` of `count` numbers, drawn by chance from all of them, the same each time: int64, rising."""
    if wanted is None or wanted >= count:
        return np.arange(count)
    return np.sort(permuted(np.arange(wanted), count, seed_for(name, 0)))


@dataclass(frozen=True)
class Texts:
    """Numbers about the keys and captions of the pairs looked at; a pair's equal captions count once."""

    indices: np.ndarray
    """Of the pairs in the source: int64[pairs]."""
    keys: np.ndarray
    """64-bit hashes of the keys within their shards: int64[pairs]."""
    firsts: np.ndarray
    """The number of captions before each pair's, and of all: int64[pairs + 1]."""
    hashes: np.ndarray
    """64-bit hashes: int64[captions]."""
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
    """A pair's captions, each once."""
    return list(dict.fromkeys(pair.captions))


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
            hashes.append(hash_of(caption.encode()))
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
    """Numbers about the readable pictures, one row each, and what was wrong with the others."""

    indices: np.ndarray
    """In the source: int64[pictures]."""
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


def read_images(source: Source, indices: np.ndarray, workers: int) -> Images:
    """Read and decode some images of a source, as training does, with `workers` threads."""
    numbers = np.empty((5, len(indices)), dtype=np.int64)
    is_readable = np.zeros(len(indices), dtype=bool)
    formats, reasons = Counter[str](), Counter[str]()
    unreadable: list[Unread] = []
    looked = track(_looked_at(source, indices, workers), title="Reading pictures", total=len(indices))
    for row, seen in enumerate(looked):
        if isinstance(seen, Seen):
            numbers[:, row], is_readable[row] = seen[:5], True
            formats[seen.format] += 1
        else:
            reasons[seen.reason] += 1
            if len(unreadable) < NAMED:
                unreadable.append(seen)
    contents, looks, widths, heights, sizes = numbers[:, is_readable]
    return Images(indices[is_readable], contents, looks, widths, heights, sizes, formats, reasons, unreadable)


def _looked_at(source: Source, indices: np.ndarray, workers: int) -> Iterator[Seen | Unread]:
    """Each picture looked at, in order, by many threads."""
    threads = Workers(workers, "reader")
    try:
        for start in range(0, len(indices), TOGETHER):
            pairs = [source[index] for index in indices[start : start + TOGETHER].tolist()]
            seen = threads.all([partial(_look_at, pair) for pair in pairs], late=_late)
            for pair, one in zip(pairs, seen, strict=True):
                yield Unread(pair.key, one, one) if isinstance(one, str) else one
    finally:
        threads.close()


def _look_at(pair: Pair, task: Task) -> Seen | Unread:
    """Read and decode a picture as training does."""
    try:
        content = read_again(pair, task)
        task.at("decoding", pair.key)
        header = opened(content)
        pixels = decode(content, RESIZE, fast=True)
    except Unreadable as error:
        return Unread(pair.key, error.reason, str(error.got))
    except OSError as error:
        return Unread(pair.key, UNREAD, error.strerror or str(error))
    width, height = header.size
    if (width > height) != (pixels.shape[1] > pixels.shape[0]):  # the header's are those before it is set upright
        width, height = height, width
    return Seen(hash_of(content), look_of(pixels), width, height, len(content), header.format or "")


def _late(task: Task) -> str | None:
    """Why nobody waits for a picture any more: training would not either."""
    seconds, reason = (DEADLINE_SECONDS, LATE) if task.stage == "decoding" else (PATIENCE_SECONDS, SLOW)
    return reason if time.monotonic() - task.since > seconds else None


def look_of(pixels: np.ndarray) -> int:
    """The difference hash of uint8[height width 3]: whether each of 8 x 9 patches is lighter than the one left of it.

    A signed 64-bit number. Of photos saved in another size or quality about six in ten keep it, others differ in a few
    bits; different photos hardly ever share it. 0: no patch is lighter, as in a flat picture.
    """
    patches = np.asarray(Image.fromarray(pixels).convert("L").resize((9, 8), Image.Resampling.BOX))
    return int.from_bytes(np.packbits(patches[:, 1:] > patches[:, :-1]).tobytes(), "big", signed=True)


def equal_values(hashes: np.ndarray) -> tuple[list[np.ndarray], int, float]:
    """The places of equal values, the largest groups first; how many values come again; the chance that two are equal.

    At most `GROUPS` groups, int64, rising.
    """
    order = np.argsort(hashes, kind="stable")
    starts = np.flatnonzero(np.diff(hashes[order], prepend=hashes[order][:1] - 1))
    sizes = np.diff(starts, append=len(hashes))
    largest = np.argsort(-sizes, kind="stable")[:GROUPS]
    groups = [order[starts[i] : starts[i] + sizes[i]] for i in largest if sizes[i] > 1]
    total = max(2, len(hashes))
    return groups, int((sizes - 1).sum()), float((sizes * (sizes - 1.0)).sum() / (total * (total - 1)))
