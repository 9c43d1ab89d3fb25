"""A source to batches: `step -> Batch`, a pure function, computed a little ahead of the training step.

```
step ─> order.samples ─> pair ─> decode (kept in memory if it fits) ─> random crop ─> pixels uint8[batch 3 size size]
                           └──> one of its captions ─> tokenizer ───────────────────> tokens int64[batch context]
```
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from limn.config import ImageConfig
from limn.data.decode import centre_crop, decode, random_crop
from limn.data.order import samples, uniform
from limn.data.sources import Pair, Source
from limn.data.tokenizer import Tokenizer
from limn.errors import DataError

AHEAD, AHEAD_BYTES = 3, 2**28
"""Batches that are made ready before they are asked for: so many, or fewer (one at least) when they are large."""


@dataclass(frozen=True)
class Batch:
    """Pairs for one step. A picture that cannot be read is left out, so a batch may be smaller than the batch size."""

    pixels: UInt8[Tensor, "batch 3 height width"]
    tokens: Int[Tensor, "batch context"]
    keys: tuple[str, ...]
    identities: Int[Tensor, "batch 2"]
    """64-bit hashes of each pair's picture, before the crop, and caption: equal ones are duplicates."""


class Loader:
    """Training batches of a source, each a pure function of (seed, step). With several ranks each loads its share.

    `unreadable` maps the key of each picture that could not be decoded to the reason.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        *,
        images: ImageConfig,
        image_size: int,
        batch_size: int,
        seed: int,
        cache_mb: int,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.source, self.tokenizer, self.images = source, tokenizer, images
        self.image_size, self.batch_size, self.seed = image_size, batch_size, seed
        self.rank, self.ranks = rank, ranks
        self.unreadable: dict[str, str] = {}
        self._cache: dict[int, tuple[np.ndarray, int] | None] = {}
        self._cache_bytes_left = cache_mb * 2**20

    def batch(self, step: int) -> Batch:
        """This rank's share of the batch of `step`, counted from 0."""
        number = self.batch_size // self.ranks
        first = step * self.batch_size + self.rank * number
        epochs, indices = samples(self.seed, first, number, len(self.source))
        draws = np.stack([uniform(self.seed, name, epochs, indices) for name in ("area", "across", "down")], axis=1)
        choices = uniform(self.seed, "caption", epochs, indices)
        crops, captions, keys, identities = [], [], [], []
        for index, draw, choice in zip(indices, draws, choices, strict=True):
            if (decoded := self._pixels(int(index))) is None:
                continue
            pixels, picture_hash = decoded
            pair = self.source[int(index)]
            area, across, down = draw.tolist()
            min_area = self.images.crop_min_area
            crops.append(random_crop(pixels, self.image_size, min_area=min_area, draws=(area, across, down)))
            captions.append(pair.captions[int(choice * len(pair.captions))])
            keys.append(pair.key)
            identities.append((picture_hash, hash_of(captions[-1].encode())))
        if len(keys) < (least := 2 if self.ranks == 1 else 1):
            raise DataError(
                f"The batch of step {step} from {self.source.path}",
                must=f"hold at least {least} readable pictures",
                got=f"{len(keys)}: {describe_unreadable(self.unreadable)}",
                then="Check the pictures.",
            )
        tokens = torch.from_numpy(self.tokenizer(captions))
        return Batch(stack(crops), tokens, tuple(keys), torch.tensor(identities))

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """The batches of the steps first, ..., last - 1, made ahead by one thread while the model trains."""
        ahead = AHEAD_BYTES * self.ranks // (self.batch_size * 3 * self.image_size**2)
        ahead = min(AHEAD, max(1, ahead))
        with ThreadPoolExecutor(1, thread_name_prefix="loader") as thread:
            waiting = [thread.submit(self.batch, step) for step in range(first, min(first + ahead, last))]
            try:
                for step in range(first, last):
                    batch = waiting.pop(0).result()
                    if step + ahead < last:
                        waiting.append(thread.submit(self.batch, step + ahead))
                    yield batch
            finally:
                for future in waiting:
                    future.cancel()

    def _pixels(self, index: int) -> tuple[np.ndarray, int] | None:
        """A picture and its hash."""
        if index in self._cache:
            return self._cache[index]
        pair = self.source[index]
        pixels = _decode(pair, self.images.resize, self.unreadable, draft=True)
        decoded = None if pixels is None else (pixels, hash_of(pixels.tobytes()))
        size = 0 if pixels is None else pixels.nbytes
        if size <= self._cache_bytes_left:
            self._cache[index] = decoded
            self._cache_bytes_left -= size
        return decoded


def hash_of(content: bytes) -> int:
    """A signed 64-bit hash, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)


def read_centre(
    source: Source, image_size: int, *, batch_size: int = 256
) -> Iterator[tuple[list[int], UInt8[Tensor, "batch 3 height width"], dict[str, str]]]:
    """The central squares of a source's pictures, batch by batch, for evaluation and search.

    Yields (indices of the readable pictures, their pixels, reasons for the unreadable ones by key).
    """
    starts = range(0, len(source), batch_size)
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
        for start in starts:
            indices = range(start, min(start + batch_size, len(source)))
            unreadable: dict[str, str] = {}
            decoded = threads.map(lambda i, bad=unreadable: _decode(source[i], image_size, bad, draft=False), indices)
            kept = [(i, centre_crop(p, image_size)) for i, p in zip(indices, decoded, strict=True) if p is not None]
            pixels = stack([p for _, p in kept]) if kept else torch.empty(0, 3, image_size, image_size).byte()
            yield [i for i, _ in kept], pixels, unreadable


def stack(pictures: list[np.ndarray]) -> UInt8[Tensor, "batch 3 height width"]:
    """Pictures uint8[height width 3] as one tensor, channels first in shape and last in memory."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def describe_unreadable(unreadable: dict[str, str]) -> str:
    """How many pictures could not be read and why, in words."""
    if not unreadable:
        return "none unreadable"
    reasons = Counter(unreadable.values()).most_common(3)
    return f"{len(unreadable)} unreadable ({'; '.join(f'{count} x {reason}' for reason, count in reasons)})"


def _decode(pair: Pair, resize: int, unreadable: dict[str, str], *, draft: bool) -> np.ndarray | None:
    try:
        return decode(pair.read(), resize, name=f"The picture {pair.key}", draft=draft)
    except DataError as error:
        unreadable[pair.key] = str(error.got)
    except OSError as error:
        unreadable[pair.key] = error.strerror or str(error)
    return None
