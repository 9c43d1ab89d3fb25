"""check.html: one self-contained file about pairs before they are trained on, from what `limner data check` found.

```
Findings ─> headline, table of findings, histograms, frequent captions, unreadable images
         └> the source's images by number ─> thumbnails: a sheet of examples, copies, those that look alike
```
"""

import re
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment

from limner.curate.findings import Findings, Group
from limner.data.pairs import Pair, Source
from limner.files import write_text
from limner.report.html import Chart, number, percent, thumbnail

THUMBNAIL = 112
"""Pixels on the shorter side of a thumbnail."""
CAPTIONS = 5
"""Captions of a picture that are shown, at most."""
LANGUAGES = 12
"""Languages that are named, at most."""


def default_file(path: str) -> Path:
    """Where the sheet about the pairs at `path` goes: data/train.tar to ./train-check.html."""
    first = path.split("::")[0].rstrip("/")
    name = first.rpartition("/")[2] if "://" in first else Path(first).absolute().name
    return Path(re.sub(r"[^\w-]+", "-", name.removesuffix(".tar")).strip("-") + "-check.html")


def write_sheet(file: Path, findings: Findings, source: Source) -> Path:
    """Write the page about `findings`, whose pairs are numbered as in `source`. The file is whole or not there."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "number": number}
    template = environment.from_string(files("limner.report").joinpath("check.html").read_text(encoding="utf-8"))
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
        "picture": thumbnail(pair, THUMBNAIL),
        "captions": captions[:CAPTIONS],
        "more": max(0, more),
    }


def _groups(groups: Iterable[Group], source: Source) -> list[dict[str, Any]]:
    return [
        {"count": group.count, "caption": group.caption, "cards": [_card(source[index]) for index in group.indices]}
        for group in groups
    ]
