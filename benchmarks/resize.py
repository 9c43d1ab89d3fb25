"""Resizing to 224 pixels by Pillow and by torch on one core, and how far apart the two are, as JSON.

Medians of interleaved runs on smooth pictures with grain, as photographs are.
"""

import json
import statistics
import time

import numpy as np
import torch
from PIL import Image

from limner.data.decode import shorter_side, shorter_side_fast

REPEATS = 30
SIZE = 224


def photo(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((width, height))
    return Image.fromarray((np.asarray(smooth) + rng.normal(0, 8, (height, width, 3))).clip(0, 255).astype(np.uint8))


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for width, height in ((341, 256), (640, 480), (1280, 960)):
        picture = photo(width, height)
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(REPEATS):
            start = time.perf_counter()
            np.asarray(shorter_side(picture, SIZE))
            between = time.perf_counter()
            shorter_side_fast(np.array(picture), SIZE)
            seconds[0].append(between - start)
            seconds[1].append(time.perf_counter() - between)
        pillow, vectorised = (1000 * statistics.median(side) for side in seconds)
        exact, fast = np.asarray(shorter_side(picture, SIZE)), shorter_side_fast(np.array(picture), SIZE)
        apart = int(np.abs(exact.astype(int) - fast).max())
        times = {"pillow_ms": pillow, "torch_ms": vectorised, "speedup": pillow / vectorised}
        rows.append({"width": width, "height": height, **times, "most_apart_of_255": apart})
    print(json.dumps({"torch": torch.__version__, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
