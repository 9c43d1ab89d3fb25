"""Pieces that the pages share: numbers, curves, charts, thumbnails."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from limner.curate.findings import Histogram
from limner.data.decode import decode
from limner.data.pairs import Pair, Source
from limner.errors import DataError


@dataclass(frozen=True)
class Curve:
    """A line over the steps, as the points of an SVG polyline in a box of 100 x 40."""

    title: str
    points: str
    low: float
    high: float
    steps: int

    @classmethod
    def of(cls, metrics: Sequence[dict[str, Any]], field: str, title: str) -> "Curve":
        """The curve of `field`, from at most 300 of the logged steps."""
        logged = [line for line in metrics if field in line]
        lines = logged[:: max(1, len(logged) // 300)]
        values = [line[field] for line in lines]
        low, high = min(values, default=0.0), max(values, default=1.0)
        width, height = max(1, len(values) - 1), (high - low) or 1.0
        points = (f"{100 * i / width:.2f},{40 - 40 * (value - low) / height:.2f}" for i, value in enumerate(values))
        return cls(title, " ".join(points), low, high, lines[-1]["step"] if lines else 0)


def percent(share: float) -> str:
    """A share for people: 12.3 %, and never 0 % or 100 % for what only comes near them."""
    if 0 < share < 0.0005:
        return "< 0.1 %"
    return "> 99.9 %" if 0.9995 <= share < 1 else f"{100 * share:.1f} %"


def number(value: float) -> str:
    """A number for people, of three digits at least."""
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.3g}"


@dataclass(frozen=True)
class Chart:
    """A histogram as bars of an SVG in a box of 100 x 40."""

    title: str
    low: float
    median: float
    high: float
    bars: tuple[tuple[float, float, float, str], ...]
    """Left edge, width, height and what to say of each."""

    @classmethod
    def of(cls, histogram: Histogram) -> "Chart":
        """The bars of a histogram, the tallest as high as the box."""
        counts, edges = histogram.counts, histogram.edges
        width, tallest = 100 / max(8, len(counts)), max(counts)
        margin = (100 - width * len(counts)) / 2
        last = len(counts) - 1
        bars = tuple(
            (
                margin + i * width,
                width,
                40 * count / tallest,
                f"{number(edges[i])} to {number(histogram.high if i == last else edges[i + 1])}: {count:,}",
            )
            for i, count in enumerate(counts)
        )
        return cls(histogram.name, histogram.low, histogram.median, histogram.high, bars)


class Thumbnails:
    """Thumbnails of a source's images by key."""

    def __init__(self, source: Source, side: int) -> None:
        self._pairs: dict[str, Pair] = {pair.key: pair for pair in source}
        self._side = side

    def __getitem__(self, key: str) -> str:
        return thumbnail(self._pairs[key], self._side)


def thumbnail(pair: Pair, side: int) -> str:
    """A small image, `side` pixels on its shorter side, as a data URL; empty if it cannot be read any more."""
    try:
        small = Image.fromarray(decode(pair.read(), side, fast=True))
    except (DataError, OSError):
        return ""
    small.thumbnail((2 * side, 2 * side))  # long strips
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
