"""How long it takes to find the pairs that a run keeps back from training, and how much memory these take.

Makes the indexes of shards in memory, ten thousand pairs each, with the keys and captions that img2dataset gives, and
splits a source of them. Beside it, in turns, the way of before, a loop over all pairs: each is made, its key hashed and
a number drawn for it. Both must keep back the same pairs. Then the same from index files on disk, where an index is
loaded, and its sha256 compared, before its keys are taken. Seconds are the processor's, of this process: they say what
a core can do, also while something else runs beside it.

    python benchmarks/split.py [--pairs 400000] > benchmarks/results/split.json
"""

import argparse
import hashlib
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from limner.data.order import uniform
from limner.data.pairs import Chosen, Source
from limner.data.sources import index
from limner.data.sources.index import NUMBERS, Index, arrays_of
from limner.data.sources.shards import Shard

SHARD, SHARE, ROUNDS = 10_000, 0.05, 5
CAPTION = "a caption of about as many characters as those of pictures in the web have"


def index_of(shard: int) -> Index:
    """The index of a shard that is nowhere."""
    pairs = range(shard * SHARD, (shard + 1) * SHARD)
    table: dict[str, list[Any]] = {name: [0] * SHARD for name in NUMBERS}
    table |= {"keys": [f"{pair:09d}" for pair in pairs], "captions": [f"{CAPTION} {pair}" for pair in pairs]}
    table |= {"chances": [1.0] * SHARD, "counts": [1] * SHARD}
    table |= {"picture_sizes": [10_000] * SHARD, "picture_offsets": [10_240 * row for row in range(SHARD)]}
    sha256 = hashlib.sha256(str(shard).encode()).hexdigest()
    return Index(sha256, 10_240 * (SHARD + 1), {}, {}, arrays_of(table))


def source_of(folder: Path, indexes: list[Index]) -> Source:
    """The shards of these indexes as a source; they are found in memory, or where `write` puts them."""
    return Source(
        folder, tuple(Shard(folder / f"{i:05d}.tar", one.sha256, SHARD, True) for i, one in enumerate(indexes))
    )


def keep_in_memory(source: Source, indexes: list[Index]) -> None:
    index._indexes.clear()
    index._indexes.most_bytes = sum(one.nbytes for one in indexes)
    for shard, one in zip(source.parts, indexes, strict=True):
        assert isinstance(shard, Shard)
        index._indexes.get((shard.path, one.sha256), lambda one=one: one)


def write(source: Source, indexes: list[Index]) -> None:
    for shard, one in zip(source.parts, indexes, strict=True):
        assert isinstance(shard, Shard) and isinstance(shard.path, Path)
        index._save(one, shard.path, index.ELSEWHERE)


def as_before(source: Source) -> list[np.ndarray]:
    """The places of the pairs kept back, part by part: int64, as it was done pair by pair."""
    chosen = []
    for part in source.parts:
        numbers = (
            int.from_bytes(hashlib.sha256(part.pair(i).key.encode("utf-8", "surrogateescape")).digest()[:7], "big")
            for i in range(len(part))
        )
        here = [i for i, number in enumerate(numbers) if float(uniform(0, "holdout", 0, number)) < SHARE]
        chosen.append(np.array(here, dtype=np.int64))
    return chosen


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=400_000)
    shards = -(-parser.parse_args().pairs // SHARD)
    indexes = [index_of(shard) for shard in range(shards)]
    pairs = shards * SHARD
    with tempfile.TemporaryDirectory() as temporary:
        source = source_of(Path(temporary), indexes)
        keep_in_memory(source, indexes)
        rounds: dict[str, list[float]] = {"now": [], "before": [], "from_disk": []}
        reference: list[np.ndarray] = []
        split = source.split(SHARE)
        for number in range(ROUNDS):
            took, split = seconds(lambda: source.split(SHARE))
            rounds["now"].append(took)
            if number == 0:  # it takes long
                took, reference = seconds(lambda: as_before(source))
                rounds["before"].append(took)
        write(source, indexes)
        for _ in range(ROUNDS):
            index._indexes.clear()
            index._indexes.most_bytes = 2**28
            rounds["from_disk"].append(seconds(lambda: source.split(SHARE))[0])
    chosen = [[part.indices for part in half.parts if isinstance(part, Chosen)] for half in split]
    others = [np.setdiff1d(np.arange(SHARD), here) for here in reference]
    medians = {name: statistics.median(times) for name, times in rounds.items()}
    print(
        json.dumps(
            {
                "cores": os.cpu_count(),
                "machine": platform.machine(),
                "pairs": pairs,
                "kept_back": sum(map(len, chosen[1])),
                "seconds": medians["now"],
                "us_per_pair": 1e6 * medians["now"] / pairs,
                "us_per_pair_from_disk": 1e6 * medians["from_disk"] / pairs,
                "us_per_pair_before": 1e6 * medians["before"] / pairs,
                "bytes_per_pair": sum(part.nbytes for half in chosen for part in half) / pairs,
                "same_pairs": all(
                    len(now) == len(before) and all(map(np.array_equal, now, before))
                    for now, before in zip(chosen, (others, reference), strict=True)
                ),
                "minutes_for_400_million": 400e6 * medians["from_disk"] / pairs / 60,
                "rounds": rounds,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
