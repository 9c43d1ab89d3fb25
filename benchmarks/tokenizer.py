"""Captions a second on one core, here and with OpenAI's tokenizer as open_clip holds it, as JSON.

    python benchmarks/tokenizer.py [--captions FOLDER_OF_TARS]

Both run in the same process where open_clip can be imported (make peers). Medians of interleaved runs. OpenAI's
tokenizer keeps each word that it has seen, so its first run is the slow one and the median is kind to it. The mixed set
has every fifth caption with signs or letters outside ASCII. Without img2dataset tars (`.json` with "captions") the
captions are made up.
"""

import argparse
import json
import os
import statistics
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}  # before tokenizers is imported

from limner.data.tokenizer import Tokenizer

REPEATS = 5
COLOURS = ["red", "green", "blue", "grey", "white", "brown", "yellow", "dark", "bright", "old"]
THINGS = ["dog", "house", "river", "car", "tree", "boat", "bridge", "table", "field", "bird"]
PLACES = ["beach", "street", "desk", "hill", "lake", "roof", "farm", "city", "garden", "harbour"]
FOREIGN = ["a café", "5 °C", "на столе", "桌子上", "☕🇩🇪", "über Straße", "قطة", "テーブル"]


def real(folder: Path) -> list[str]:
    """Every caption of the tars in `folder`."""
    captions = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json") and (file := tar.extractfile(member)):
                    captions += json.load(file).get("captions", [])
    return captions


def made_up() -> list[str]:
    sizes = range(1, 11)
    return [f"A photo of {n} {a} {b}s near the {c}." for a in COLOURS for b in THINGS for c in PLACES for n in sizes]


def rate(encode: Callable[[Sequence[str]], Any], captions: list[str]) -> float:
    """Captions a second, in batches of 256."""
    start = time.perf_counter()
    for first in range(0, len(captions), 256):
        encode(captions[first : first + 256])
    return len(captions) / (time.perf_counter() - start)


def measure(captions: list[str]) -> dict[str, Any]:
    encoders: dict[str, Callable[[Sequence[str]], Any]] = {"limner": Tokenizer.openai()}
    row: dict[str, Any] = {"captions": len(captions), "words": sum(len(caption.split()) for caption in captions)}
    try:
        from open_clip.tokenizer import SimpleTokenizer  # pyright: ignore[reportMissingImports]

        encoders["openai"] = SimpleTokenizer()
    except ImportError as error:
        row["openai_skipped"] = str(error)
    rates = {name: [] for name in encoders}
    for _ in range(REPEATS):
        for name, encode in encoders.items():
            rates[name].append(rate(encode, captions))
    row["captions_per_second"] = {name: round(statistics.median(values)) for name, values in rates.items()}
    if "openai" in encoders:
        row["ratio"] = statistics.median(rates["limner"]) / statistics.median(rates["openai"])
        ours, theirs = encoders["limner"](captions), encoders["openai"](captions).numpy()
        row["ids_equal"] = int((ours == theirs).all(1).sum())
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=Path)
    folder = parser.parse_args().captions
    captions = real(folder) if folder else made_up()
    source = folder.name if folder else "made up"
    mixed = [f"{text} {FOREIGN[i // 5 % len(FOREIGN)]}" if i % 5 == 0 else text for i, text in enumerate(captions)]
    start = time.perf_counter()
    Tokenizer.openai()
    load = time.perf_counter() - start
    rows = {"ascii": measure(captions), "mixed": measure(mixed)}
    print(json.dumps({"source": source, "repeats": REPEATS, "load_seconds": load, **rows}, indent=2))


if __name__ == "__main__":
    main()
