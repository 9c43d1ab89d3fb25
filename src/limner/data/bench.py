"""How fast pairs are read here, stage by stage and whole: what `limner data bench` prints.

Seconds are the processor's, of this process: they say what a core can do, also while something else runs beside it.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from limner.config import ImageConfig
from limner.data.decode import Unreadable, decode, opened, random_crop, rgb_of, shorter_side_fast
from limner.data.loader import Loader
from limner.data.pairs import Source, order_of
from limner.data.tokenizer import Tokenizer
from limner.errors import ConfigError, DataError
from limner.progress import track

SOME = 32
"""Pictures that are in memory whole, for the stages after decoding."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one stage of the loader costs."""

    stage: str
    pairs: int
    cpu_ms_per_pair: float
    pairs_per_second_per_core: float
    pairs_per_second: float
    """The rate by the clock, all workers together."""


def bench(source: Source, *, image_size: int, batch_size: int, batches: int, workers: int | None) -> list[Stage]:
    """Time reading, decoding, resizing, cropping and tokenising one after the other, then the loader that does all.

    Takes as many pairs as fill `batches`, in the order of training, seed 0. Pictures are resized to `image_size` on the
    shorter side, captions tokenised with the paper's vocabulary. The loader keeps nothing in memory.
    """
    if min(image_size, batch_size, batches) < 1:
        got = f"image-size {image_size}, batch-size {batch_size}, batches {batches}"
        raise ConfigError("The sizes of data bench", must="be at least 1", got=got, then="Leave them out: 224, 256, 8.")
    tokenizer = Tokenizer.openai()
    _, indices = order_of(source, seed=0).samples(0, min(batch_size * batches, len(source)))
    pairs = [source[index] for index in indices.tolist()]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one core at each stage
    try:
        stages, contents = [_timed("read", pairs, lambda pair: pair.read())], [pair.read() for pair in pairs]
        readable = [content for content in contents if _is_readable(content, image_size)]
        if not readable:
            raise DataError(
                f"The pictures of {source.path}",
                must="be readable",
                got="none",
                then=f"See: limner data check {source.path}",
            )
        images = [decoded(content, image_size) for content in readable[:SOME]]
        resized = [shorter_side_fast(image, image_size) for image in images]
        draws = (0.5, 0.5, 0.5)
        captions = [pair.captions[0] for pair in pairs]
        stages += [
            _timed("decode", readable, lambda content: decoded(content, image_size)),
            _timed("resize", images, lambda image: shorter_side_fast(image, image_size)),
            _timed("crop", resized, lambda image: random_crop(image, image_size, min_area=1.0, draws=draws)),
            _timed("tokenise", captions, lambda caption: tokenizer([caption])),
        ]
    finally:
        torch.set_num_threads(threads)
    loader = Loader(
        source,
        tokenizer,
        images=ImageConfig(resize=image_size),
        image_size=image_size,
        batch_size=min(batch_size, len(source)),
        seed=0,
        cache_mb=0,
        workers=workers,
    )
    start, cpu = time.perf_counter(), time.process_time()
    made = sum(len(b.keys) for b in track(loader.batches(0, batches), title="Loading", total=batches))
    spent = _stage(f"loader, {loader.workers} workers", made, time.process_time() - cpu, time.perf_counter() - start)
    return [*stages, spent]


def decoded(content: bytes, resize: int) -> np.ndarray:
    """A picture as it is before it is resized."""
    return rgb_of(opened(content), least=2 * resize)


def _timed(stage: str, items: list[Any], work: Callable[[Any], Any]) -> Stage:
    _consume(map(work, items[:16]))  # what is only done once: imports, buffers
    start, cpu = time.perf_counter(), time.process_time()
    _consume(map(work, items))
    return _stage(stage, len(items), time.process_time() - cpu, time.perf_counter() - start)


def _stage(stage: str, pairs: int, cpu: float, seconds: float) -> Stage:
    return Stage(
        stage=stage,
        pairs=pairs,
        cpu_ms_per_pair=1000 * cpu / pairs,
        pairs_per_second_per_core=pairs / max(cpu, 1e-9),
        pairs_per_second=pairs / seconds,
    )


def _consume(items: Iterable[Any]) -> None:
    for _ in items:
        pass


def _is_readable(content: bytes, image_size: int) -> bool:
    try:
        decode(content, image_size, fast=True)
    except Unreadable:
        return False
    return True
