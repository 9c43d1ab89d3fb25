"""Pairs per second and core of limner's loader beside open_clip's, from the same shards.

Shards of 512 x 384 JPEGs (quality 90, photograph-like, about 60 kB) with captions are read by open_clip's own
`get_wds_dataset`, with its training transform and tokenizer, and by limner's `Loader`, both to 224 pixels, each with
one worker on one core, in turns, each in a process of its own. The clock starts at the first batch, when everything is
imported. Core seconds are the processor's, of the process and its worker.

limner three times: as its recipes for the paper's models load, a random square of the resized picture, uint8, which the
model normalises on the device; the same made float32 and normalised inside the clock, as open_clip's loader does; and
with squares of random size, as open_clip cuts them (at least nine tenths of the area).

    .peers/bin/python benchmarks/loader.py > benchmarks/results/loader.json
"""

import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

SIDES = ("limner", "open_clip", "limner, normalised", "limner, squares of random size")
OPENAI = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
WIDTH, HEIGHT, SIZE, BATCH, PAIRS, ROUNDS = 512, 384, 224, 128, 2048, 5


def photo(rng: np.random.Generator) -> bytes:
    """Slopes and edges as in a photograph, with its grain, as a JPEG."""
    smooth = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    pixels = np.asarray(smooth.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)) + rng.normal(0, 6, (HEIGHT, WIDTH, 1))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_pairs(folder: Path) -> float:
    """Write the shards; returns the mean size of a picture in bytes."""
    from limner.data.write import Sample, write_shards

    rng = np.random.default_rng(0)
    words = ["a", "an", "old", "red", "small", "house", "dog", "river", "bridge", "in", "on", "near", "the", "with"]
    samples = []
    for _ in range(PAIRS):
        caption = " ".join(rng.choice(words, rng.integers(6, 18)))
        sample = Sample(image=photo(rng), extension="jpg", width=WIDTH, height=HEIGHT, captions=(caption,), record={})
        samples.append(sample)
    write_shards(samples, folder, origin={"made": "for this benchmark"}, per_shard=256)
    return statistics.mean(len(sample.image) for sample in samples)


def limner_batches(folder: Path, *, min_area: float, normalised: bool) -> tuple[Iterator[Any], Callable[[], float]]:
    from limner.config import ImageConfig
    from limner.data.loader import Loader
    from limner.data.sources.read import read_pairs
    from limner.data.tokenizer import Tokenizer

    loader = Loader(
        read_pairs(folder),
        Tokenizer.openai(),
        images=ImageConfig(resize=SIZE, crop_min_area=min_area),
        image_size=SIZE,
        batch_size=BATCH,
        seed=0,
        cache_mb=0,
        workers=1,
    )
    mean, std = (torch.tensor(OPENAI[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    batches = loader.batches(0, PAIRS // BATCH)
    if normalised:
        return ((b.pixels.float().div_(255).sub_(mean).div_(std), b.tokens) for b in batches), time.process_time
    return ((b.pixels, b.tokens) for b in batches), time.process_time


def open_clip_batches(folder: Path) -> tuple[Iterator[Any], Callable[[], float]]:
    open_clip = import_module("open_clip")
    get_wds_dataset = import_module("open_clip_train.data").get_wds_dataset
    last = len(list(folder.glob("*.tar"))) - 1
    args = SimpleNamespace(
        train_data=f"{folder}/{{00000..{last:05d}}}.tar",
        train_num_samples=PAIRS,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        batch_size=BATCH,
        workers=1,
        world_size=1,
        seed=0,
        distributed=False,
    )
    transform = open_clip.image_transform(SIZE, is_train=True)
    data = get_wds_dataset(args, transform, is_train=True, tokenizer=open_clip.get_tokenizer("ViT-B-32"))
    return iter(data.dataloader), lambda: time.process_time() + worker_seconds()


def worker_seconds() -> float:
    """Core seconds of this process's children so far."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(fields[1]) == os.getpid():
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def measure(side: str, folder: Path) -> None:
    os.sched_setaffinity(0, {0})
    torch.set_num_threads(1)
    if side == "open_clip":
        batches, core_seconds = open_clip_batches(folder)
    else:
        min_area = 0.9 if side == SIDES[3] else 1.0
        batches, core_seconds = limner_batches(folder, min_area=min_area, normalised=side == SIDES[2])
    next(batches)
    start, core = time.perf_counter(), core_seconds()
    pairs, spent = 0, 0.0
    for batch in batches:
        pairs += len(batch[0])
        spent = core_seconds() - core  # before the worker ends
    seconds = time.perf_counter() - start
    print(json.dumps({"pairs_per_second": pairs / seconds, "pairs_per_core_second": pairs / spent, "pairs": pairs}))


def main() -> None:
    if len(sys.argv) > 1:
        measure(sys.argv[1], Path(sys.argv[2]))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "shards"
        mean_bytes = write_pairs(folder)
        rounds: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for _ in range(ROUNDS):
            for side, results in rounds.items():
                command = [sys.executable, "-W", "ignore", __file__, side, str(folder)]
                printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
                results.append(json.loads(printed.splitlines()[-1]))
    medians = {
        side: {name: statistics.median(result[name] for result in results) for name in results[0]}
        for side, results in rounds.items()
    }
    names = ("pairs_per_second", "pairs_per_core_second")
    ratios = {
        side: {name: medians[side][name] / medians["open_clip"][name] for name in names}
        for side in (SIDES[0], *SIDES[2:])
    }
    facts = {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "picture": f"{WIDTH} x {HEIGHT} JPEG",
        "mean_bytes": mean_bytes,
        "to_pixels": SIZE,
        "workers": 1,
    }
    print(json.dumps({**facts, "medians": medians, "limner_to_open_clip": ratios, "rounds": rounds}, indent=2))


if __name__ == "__main__":
    main()
