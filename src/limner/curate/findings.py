"""What was found out about pairs, as plain values."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from limner.data.pairs import EMPTY, TOO_LARGE
from limner.data.reading import Unread

BINS = 24
"""Bars of a histogram."""
Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
NAMING = ("shard that is no tar file", "shard cut short")
"""Reasons that name the shard after them."""
ADVICE = {
    "no caption": "Write a caption for each, or leave the pictures out.",
    "no picture (dots": "Rename the members: a key ends at its first dot, so a.b.jpg is no picture of the key a.",
    "no picture": "Put KEY.jpg, .png, .webp, ... beside KEY.txt.",
    EMPTY: "Fetch these files again.",
    TOO_LARGE: "Save them smaller.",
    "broken link": "Put the files themselves there (cp -L). Of links out of the folder, those to folders are "
    "followed, and those into the cache of the Hugging Face hub, of DVC or of git-annex around it.",
    "picture file missing": "Correct the paths; they are read from the list's own folder.",
    "picture in a folder that may not be entered": "Change the folder's permissions (chmod +x).",
    "picture that the metadata list": "Name them in the list too, or leave them out.",
    "picture of the same key": "Give each picture a key of its own.",
    "HEIC": "Save them as JPEG.",
    "row of another number": "Correct these rows; a cell with the delimiter in it needs quotes around it.",
    "tar file in a folder beside": "Give their folder, or all folders with :: between them; unpack .gz, and name "
    "them .tar.",
    "picture file that nothing": "Move them elsewhere: beside shards, tables or a list, single pictures are not read.",
    "shard that is no tar file": "Fetch or write these shards again.",
    "shard cut short": "Fetch or write these shards again; the pairs before the cut are used.",
    "shard member that is not a plain file": "Links, devices and sparse files are not read; store the content itself.",
    "shard member of the same name": "Give each pair a key of its own; of equal names only the first is read.",
    "caption that is not UTF-8": "Save captions as UTF-8.",
    "not a picture": "Leave them out, or fetch them again: these files are something else.",
    "damaged picture": "Fetch them again.",
    "over ": "Save them smaller, or leave them out.",
    "longer than": "Cut them, or leave them out.",
}
"""What to do, by how a reason begins."""


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be, or is good to know."""

    severity: Severity
    what: str
    count: int
    share: float | None
    """The count's share of the pairs, pictures or captions there; None where that says nothing."""
    examples: tuple[str, ...]
    advice: str


@dataclass(frozen=True)
class First:
    """One of the first pairs as it was read, for people to compare with what they meant."""

    key: str
    captions: tuple[str, ...]
    label: str | None
    """The class's name, or its number where the data names no classes."""


@dataclass(frozen=True)
class Histogram:
    """How often values of a kind come. The last bar holds the values beyond the 99th of a hundred too."""

    name: str
    low: float
    median: float
    high: float
    edges: tuple[float, ...]
    """The edges of the bars, one more than these."""
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """Pairs that have something in common."""

    count: int
    indices: tuple[int, ...]
    """Some of them, as numbers in the source."""
    keys: tuple[str, ...]
    caption: str | None = None
    """What they say, where that is what they share."""


@dataclass(frozen=True)
class Findings:
    """All that `check` found out. Plain values: `dataclasses.asdict` makes JSON of them."""

    path: str
    fingerprint: str
    pairs: int
    """Pairs that can be used, as far as is known without reading pictures."""
    parts: int
    checked: int
    """Pairs whose captions and pictures were looked at; everything below is about these."""
    captions: int
    """Different captions of each picture, summed."""
    bytes: int
    """What the readable pictures take."""
    unreadable_share: float
    skipped_share: float
    would_run: bool
    """Whether there is no error."""
    findings: tuple[Finding, ...]
    """Errors first."""
    first: tuple[First, ...]
    histograms: tuple[Histogram, ...]
    formats: dict[str, int]
    languages: dict[str, int] | None
    """ISO 639-1 codes of a sample of the captions; None: not looked at."""
    copies: tuple[Group, ...]
    """Pictures of the same bytes."""
    alike: tuple[Group, ...]
    """Different files that look the same: of the same difference hash."""
    frequent: tuple[Group, ...]
    """Captions of several pairs."""
    unreadable: tuple[Unread, ...]
    shown: tuple[int, ...]
    """Some readable pairs for people to look at, as numbers in the source."""


def advice_for(reason: str) -> str:
    """What to do about a reason of `skipped`, `noted` or unreadable images."""
    return next((advice for start, advice in ADVICE.items() if reason.startswith(start)), "Look at these files.")


def histogram(name: str, values: np.ndarray) -> Histogram:
    """The histogram of `values`, int or float[values]; there is at least one."""
    low, median, top, high = (float(v) for v in np.quantile(values, [0, 0.5, 0.99, 1]))
    if values.dtype.kind == "i":  # as many numbers in each bar
        step = (int(top) - int(low)) // BINS + 1
        edges = np.arange(int(low), int(top) + step + 1, step, dtype=np.float64)
    else:
        edges = np.linspace(low, top, BINS + 1) if top > low else np.array([low, low + 1.0])
    counts, _ = np.histogram(np.minimum(values, top), edges)
    return Histogram(name, low, median, high, tuple(edges.tolist()), tuple(counts.tolist()))
