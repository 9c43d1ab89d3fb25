"""check.html: one self-contained file about pairs before they are trained on, from what `limner data check` found.

```
Findings ─> headline, table of findings, histograms, frequent captions, unreadable pictures
         └> the source's pictures by number ─> thumbnails: a sheet of examples, copies, those that look alike
```
"""

import base64
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment
from PIL import Image

from limner.data.check import Findings, Group, Histogram
from limner.data.decode import decode
from limner.data.pairs import Pair, Source
from limner.errors import DataError
from limner.files import write_text

THUMBNAIL = 112
"""Pixels on the shorter side of a thumbnail."""
CAPTIONS = 5
"""Of a picture, at most."""
LANGUAGES = 12
"""That are named, at most."""


def default_file(path: str) -> Path:
    """Where the sheet about the pairs at `path` goes: data/train.tar to ./train-check.html."""
    first = path.split("::")[0].rstrip("/")
    name = first.rpartition("/")[2] if "://" in first else Path(first).absolute().name
    return Path(re.sub(r"[^\w-]+", "-", name.removesuffix(".tar")).strip("-") + "-check.html")


def write_sheet(file: Path, findings: Findings, source: Source) -> Path:
    """Write the page about `findings`, whose pairs are numbered as in `source`. The file is whole or not there."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "number": number}
    template = environment.from_string(files("limner.report").joinpath("sheet.html").read_text(encoding="utf-8"))
    html = template.render(
        found=findings,
        charts=[Chart.of(histogram) for histogram in findings.histograms],
        shares=[
            {"title": "formats", "rows": _rows(findings.formats)},
            {"title": "languages, guessed", "rows": _rows(findings.languages or {})},
        ],
        examples=[_card(source[index]) for index in findings.shown],
        copies=_groups(findings.copies, source),
        alike=_groups(findings.alike, source),
        frequent=_groups(findings.frequent, source),
    )
    write_text(file, html)
    return file


# --- numbers ---------------------------------------------------------------------------------------------------------


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


def _rows(counts: dict[str, int]) -> list[dict[str, Any]]:
    """The most frequent names with their shares; the others summed up."""
    total = sum(counts.values())
    named = list(counts.items())[:LANGUAGES]
    rest = total - sum(count for _, count in named)
    return [{"name": name, "share": count / total} for name, count in [*named, *([("others", rest)] if rest else [])]]


# --- pictures --------------------------------------------------------------------------------------------------------


def _card(pair: Pair) -> dict[str, Any]:
    captions = list(dict.fromkeys(pair.captions))
    more = len(captions) - CAPTIONS
    return {
        "key": pair.key,
        "picture": thumbnail(pair),
        "captions": captions[:CAPTIONS],
        "more": max(0, more),
    }


def _groups(groups: Iterable[Group], source: Source) -> list[dict[str, Any]]:
    return [
        {"count": group.count, "caption": group.caption, "cards": [_card(source[index]) for index in group.indices]}
        for group in groups
    ]


def thumbnail(pair: Pair) -> str:
    """A small picture as a data URL; empty if it cannot be read any more."""
    try:
        picture = Image.fromarray(decode(pair.read(), THUMBNAIL, fast=True))
    except (DataError, OSError):
        return ""
    picture.thumbnail((2 * THUMBNAIL, 2 * THUMBNAIL))  # long strips
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
