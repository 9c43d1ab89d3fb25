"""A source to batches: `step -> Batch`, a pure function, computed a little ahead of the training step.

```
step ─> order ─> for each pair, by many threads: read ─> decode (kept in memory if it fits) ─> random crop ─┐
                                                 one of its captions ─> tokenizer ─> tokens                 │
                                                       int64[batch context], pixels uint8[batch 3 size size]┘
```

A picture that cannot be used is left out and counted by reason; nothing is waited for without end.
"""

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from limner.config import ImageConfig
from limner.data.decode import decode, random_crop
from limner.data.order import uniform
from limner.data.pairs import Pair, Source, order_of
from limner.data.reading import (
    LATE,
    LOOKING_UP,
    NAMED,
    PATIENCE_SECONDS,
    UNREAD,
    Task,
    Unread,
    Workers,
    caption_ids,
    cores,
    describe_unreadable,
    hash_of,
    late_to_decode,
    read_one,
)
from limner.data.remote import last_fetched
from limner.data.tokenizer import Tokenizer
from limner.errors import DataError

AHEAD, AHEAD_BYTES = 3, 2**28
"""Batches that are made ready before they are asked for, in number; fewer (one at least) when they are large."""


@dataclass(frozen=True)
class Batch:
    """Pairs for one step. A picture that cannot be used is left out, so a batch may be smaller than the batch size."""

    pixels: UInt8[Tensor, "batch 3 height width"]
    tokens: Int[Tensor, "batch context"]
    keys: tuple[str, ...]
    identities: Int[Tensor, "batch 2"]
    """64-bit hashes of each pair's picture, as a file, and of its token ids: equal ones are duplicates."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Pairs left out, by reason."""


class Filled(NamedTuple):
    """A row of a batch, its pixels apart."""

    key: str
    caption: str
    image_hash: int


Decoded = tuple[np.ndarray, int]
"""A picture, uint8[height width 3], and the hash of its file."""
Fill = Callable[[Task], Filled | Unread]
"""Fills a row of a batch."""


class Loader:
    """Training batches of a source, each a pure function of (seed, step). With several ranks each loads its share.

    `unread` are the pictures that could not be used, by key, the first thousand of them.
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
        workers: int | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self.source, self.tokenizer, self.images = source, tokenizer, images
        self.image_size, self.batch_size, self.seed = image_size, batch_size, seed
        self.rank, self.ranks = rank, ranks
        self.workers = workers or max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        self.patience_seconds = patience_seconds
        self.order = order_of(source, seed)
        self.unread: dict[str, Unread] = {}
        self._cache: dict[int, Decoded | Unread] = {}
        self._cache_bytes_left = cache_mb * 2**20
        self._lock = threading.Lock()
        self._open: tuple[Workers, ...] = ()

    @property
    def unreadable(self) -> dict[str, str]:
        """What was wrong with the pictures that could not be used, by key, the first thousand of them."""
        return {key: one.got for key, one in list(self.unread.items())}

    def batch(self, step: int) -> Batch:
        """This rank's share of the batch of `step`, counted from 0, made by this thread alone."""
        return self._make(step, lambda fills: map(_done_here, fills))

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """The batches of the steps first, ..., last - 1, made ahead by threads while the model trains."""
        ahead = AHEAD_BYTES * self.ranks // (self.batch_size * 3 * self.image_size**2)
        ahead = min(AHEAD, max(1, ahead))
        workers, makers = self._open = Workers(self.workers, "worker"), Workers(min(2, ahead), "batch maker")
        waiting = deque[Task]()
        steps = iter(range(first, last))
        try:
            for step in range(first, last):
                while len(waiting) < ahead and (coming := next(steps, None)) is not None:
                    make = partial(self._make, coming, partial(workers.each, late=late_to_decode))
                    waiting.append(makers.submit(lambda _task, make=make: make()))
                task, since = waiting.popleft(), time.monotonic()
                while not task.over.wait(min(1.0, self.patience_seconds)):
                    if time.monotonic() - max(since, workers.last_end, last_fetched()) < self.patience_seconds:
                        continue
                    raise DataError(
                        f"The loader, at step {step} of {self.source.path},",
                        must=f"give a batch within {self.patience_seconds:.0f} s",
                        got=f"none ({workers.describe() or makers.describe()})",
                        then="Look at the disk or network that holds that file; limner data check tries each of them.",
                    )
                if task.error is not None:
                    raise task.error
                yield task.result
        finally:
            workers.close()
            makers.close()

    def close(self) -> None:
        """End the threads that make batches, should `batches` not have come to its end."""
        for threads in self._open:
            threads.close()

    def _make(self, step: int, fill_all: Callable[[list[Fill]], Iterable[Filled | Unread]]) -> Batch:
        number = self.batch_size // self.ranks
        epochs, indices = self.order.samples(step * self.batch_size + self.rank * number, number)
        names = ("area", "across", "down", "caption")
        draws = np.stack([uniform(self.seed, name, epochs, indices) for name in names], axis=1).tolist()
        pixels = np.empty((number, self.image_size, self.image_size, 3), dtype=np.uint8)
        fills: list[Fill] = [
            partial(self._fill, pixels[row], index, draws[row]) for row, index in enumerate(indices.tolist())
        ]
        # what is decoded already is less work than to hand it over
        decoded = {row for row, index in enumerate(indices.tolist()) if index in self._cache}
        made = {row: _done_here(fills[row]) for row in decoded}
        others = [row for row in range(number) if row not in decoded]
        made |= dict(zip(others, fill_all([fills[row] for row in others]), strict=True))
        rows = [made[row] for row in range(number)]
        for index, row in zip(indices.tolist(), rows, strict=True):
            if isinstance(row, Unread) and row.reason == LATE:  # it would be so again
                self._cache[index] = self._note(row)
        filled = [row for row in rows if isinstance(row, Filled)]
        if len(filled) < (least := 2 if self.ranks == 1 else 1):
            raise DataError(
                f"The batch of step {step} from {self.source.path}",
                must=f"hold at least {least} readable pictures",
                got=f"{len(filled)}: {describe_unreadable(list(self.unread.values()))}",
                then="Check the pictures: limner data check.",
            )
        if len(filled) < number:
            pixels = pixels[[isinstance(row, Filled) for row in rows]]
        tokens = self.tokenizer([row.caption for row in filled])
        return Batch(
            torch.from_numpy(pixels).permute(0, 3, 1, 2),
            torch.from_numpy(tokens),
            tuple(row.key for row in filled),
            torch.tensor([(row.image_hash, caption) for row, caption in zip(filled, caption_ids(tokens), strict=True)]),
            Counter(row.reason for row in rows if isinstance(row, Unread)),
        )

    def _fill(self, into: np.ndarray, index: int, draws: list[float], task: Task) -> Filled | Unread:
        """Crop the picture at `index` to `into`: its key, caption and hash, or why it cannot be used."""
        task.at(LOOKING_UP, f"pair {index:,} of {self.source.path}")
        pair = self.source[index]
        decoded = self._cache.get(index) or self._decoded(index, pair, task)
        if isinstance(decoded, Unread):
            return decoded
        area, across, down, choice = draws
        image, image_hash = decoded
        min_area = self.images.crop_min_area
        cropped = random_crop(image, self.image_size, min_area=min_area, draws=(area, across, down))
        if not task.over.is_set():
            into[:] = cropped
        return Filled(pair.key, pair.caption(choice), image_hash)

    def _decoded(self, index: int, pair: Pair, task: Task) -> Decoded | Unread:
        """A picture and its hash, or why it cannot be used."""
        decoded = read_one(pair, self._look, task)
        if isinstance(decoded, Unread):
            self._note(decoded)
            if decoded.reason == UNREAD:  # another time it may be there
                return decoded
        size = 0 if isinstance(decoded, Unread) else decoded[0].nbytes
        with self._lock:
            if size <= self._cache_bytes_left and not task.over.is_set():
                self._cache[index] = decoded
                self._cache_bytes_left -= size
        return decoded

    def _look(self, pair: Pair, content: bytes, begun: Callable[[], None]) -> Decoded:
        pixels = decode(content, self.images.resize, name=f"The picture {pair.key}", fast=True, begun=begun)
        return pixels, hash_of(content)

    def _note(self, one: Unread) -> Unread:
        if len(self.unread) < NAMED:
            self.unread[one.key] = one
        return one


def _done_here(fill: Fill) -> Filled | Unread:
    """What comes of a task that this thread does itself."""
    return fill(Task(fill))
