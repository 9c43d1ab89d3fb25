"""What training would meet in a source of pairs, found out before it: `limner data check`, `data stats`, `data show`.

```
read_pairs ─> keys, captions (from the index) ─> lengths, languages, captions of several pictures ─┐
           └> every picture: read ─> decode, as training does ─> unreadable ones, sizes, copies   ├─> Findings
shards ─> sha256 against manifest.json; what the index left out or noted                         ─┘
```

A finding is an error where training would stop, a warning where pairs are lost or the model is worse for it, a note
otherwise. Of each pair and each caption only a few numbers stay in memory, about a hundred bytes a pair.
"""

import time
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from limner.config import RunConfig
from limner.config import check as require
from limner.data.decode import Unreadable, decode, opened
from limner.data.index import Shard, ensure
from limner.data.loader import DEADLINE_SECONDS, LATE, PATIENCE_SECONDS, UNREAD, cores, hash_of, order_of, read_again
from limner.data.order import permuted, quality
from limner.data.pairs import EMPTY, TOO_LARGE, Pair, Part, Prefixed, Source
from limner.data.sources import read_pairs, read_pictures
from limner.data.tokenizer import Tokenizer
from limner.data.workers import Task, Workers
from limner.errors import ConfigError, DataError, did_you_mean
from limner.files import sha256_of
from limner.progress import track
from limner.run import read_json, seed_for

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

EXAMPLES, GROUPS, MEMBERS, SHOWN, TOLD, BINS = 5, 12, 6, 48, 100, 24
"""At most: examples of a finding, groups of equal things and members named of each, pairs for a sheet of examples,
unreadable pictures told one by one, bars of a histogram."""
RESIZE = 64
"""Shorter side in pixels to which pictures are decoded; whether they can be is the same at any size."""
TOGETHER = 1024
"""Pictures that are looked at between two moves of the bar."""
TEXTS = 2000
"""Captions whose language and tokens are looked at."""
LEAST_BYTES = 24
"""Of a caption, in UTF-8; what is shorter says too little about its language."""
COPIES_IN_A_BATCH = 0.1
"""Pairs of a batch with the same caption as a given one, on average, from which on they are worth a warning."""
MANY = 0.05
"""A share of captions in another language than most that is worth telling."""
SLOW = f"over {PATIENCE_SECONDS:.0f} s to read"
"""Training would wait no longer, and end."""

NAMING = ("shard that is no tar file", "shard cut short")
"""Reasons that name the shard after them."""
ADVICE = {
    "no caption": "Write a caption for each, or leave the pictures out.",
    "no picture (dots": "Rename the members: a key ends at its first dot, so a.b.jpg is no picture of the key a.",
    "no picture": "Put KEY.jpg, .png, .webp, ... beside KEY.txt.",
    EMPTY: "Fetch these files again.",
    TOO_LARGE: "Save them smaller.",
    "broken link": "Copy the files into the folder; links that leave it are not followed.",
    "picture file missing": "Correct the paths; they are read from the list's own folder.",
    "picture file beside shards": "Move them elsewhere: beside shards, single pictures are not read.",
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
    """Of the pairs, pictures or captions there; None where that says nothing."""
    examples: tuple[str, ...]
    advice: str


@dataclass(frozen=True)
class Histogram:
    """How often values of a kind come. The last bar holds the values beyond the 99th of a hundred too."""

    name: str
    low: float
    median: float
    high: float
    edges: tuple[float, ...]
    """Of the bars, one more than these."""
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


class Unread(NamedTuple):
    """A picture that cannot be used."""

    key: str
    reason: str
    got: str


@dataclass(frozen=True)
class Findings:
    """All that `check` found out. Plain values: `dataclasses.asdict` makes JSON of them."""

    path: str
    fingerprint: str
    pairs: int
    """Usable ones, as far as is known without reading pictures."""
    parts: int
    checked: int
    """Pairs whose captions and pictures were looked at; everything below is about these."""
    captions: int
    """Different ones of each picture, summed."""
    bytes: int
    """Of the readable pictures."""
    unreadable_share: float
    skipped_share: float
    would_run: bool
    """Whether there is no error."""
    findings: tuple[Finding, ...]
    """Errors first."""
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


def check(
    path: str, *, ranks: int = 1, workers: int | None = None, batch_size: int = 256, sample: int | None = None
) -> tuple[Findings, Source]:
    """What training on the pairs at `path` would meet, and the source in which the findings number their pairs.

    `workers` threads on each of `ranks` would read them; as many read them here, one per core by default. `sample`:
    look at so many pairs only, spread over all of them. Raises `DataError` if there is nothing that could be looked at,
    and `ConfigError` for numbers that cannot be.
    """
    least = {"--ranks": (ranks, 1), "--workers": (workers, 1), "--batch-size": (batch_size, 2), "--sample": (sample, 1)}
    for name, (given, at_least) in least.items():
        require(given is None or given >= at_least, name, f"be at least {at_least}", given, "Give a larger number.")
    workers = workers or cores()
    findings: list[Finding] = []
    source = _opened(path, findings)
    indices = _spread(len(source), sample, "check")
    _find_in_whole(source, batch_size, ranks, findings)
    texts = _read_texts(source, indices)
    _find_left_out(source, texts, findings)
    _find_in_shards(source, texts, ranks * workers, findings, whole=len(indices) == len(source))
    pictures = _read_pictures(source, indices, workers)
    _find_unreadable(pictures, findings)
    copies, alike = _find_copies(source, pictures, findings)
    frequent = _find_frequent(source, texts, batch_size, findings)
    captions = _some_captions(source, texts)
    tokens = _find_long(captions, findings)
    languages = _find_languages(captions, findings)
    readable = pictures.indices
    found = Findings(
        path=str(path),
        fingerprint=source.fingerprint,
        pairs=len(source),
        parts=len(source.parts),
        checked=len(indices),
        captions=len(texts.hashes),
        bytes=int(pictures.sizes.sum()),
        unreadable_share=pictures.reasons.total() / max(1, len(indices)),
        skipped_share=source.skipped_share,
        would_run=not any(finding.severity == "error" for finding in findings),
        findings=tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))),
        histograms=_histograms(texts, pictures, tokens),
        formats=dict(pictures.formats.most_common()),
        languages=languages,
        copies=copies,
        alike=alike,
        frequent=frequent,
        unreadable=tuple(pictures.unreadable),
        shown=tuple(readable[_spread(len(readable), SHOWN, "sheet")].tolist()),
    )
    return found, source


def _opened(path: str, findings: list[Finding]) -> Source:
    """The pairs at `path`. Where training would not take them, its captioned pictures, and why as an error."""
    try:
        return read_pairs(path)
    except DataError as error:
        pictures = read_pictures(path)  # raises where there is not even a picture
        what = f"{error.what} must {error.must}, got {error.got}"
        findings.append(Finding("error", what, 1, None, (), error.then))
        captioned = pictures.where(lambda pair: bool(pair.captions))
        bare = Counter({"no caption": len(pictures) - len(captioned)})
        return replace(captioned, skipped=pictures.skipped + bare)


def _spread(count: int, wanted: int | None, name: str) -> np.ndarray:
    """`wanted` of `count` numbers, drawn by chance from all of them, the same each time: int64, rising."""
    if wanted is None or wanted >= count:
        return np.arange(count)
    return np.sort(permuted(np.arange(wanted), count, seed_for(name, 0)))


# --- keys and captions -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Texts:
    """Numbers about the keys and captions of the pairs looked at; a pair's equal captions count once."""

    indices: np.ndarray
    """Of the pairs in the source: int64[pairs]."""
    keys: np.ndarray
    """64-bit hashes of the keys within their shards: int64[pairs]."""
    firsts: np.ndarray
    """The number of captions before each pair's, and of all: int64[pairs + 1]."""
    hashes: np.ndarray
    """64-bit hashes: int64[captions]."""
    words: np.ndarray
    characters: np.ndarray
    """Lengths: int32[captions]."""
    replaced: tuple[str, ...]
    """Some keys of pairs whose captions were not UTF-8."""

    def caption(self, source: Source, number: int) -> str:
        """The text of a caption, looked up again."""
        pair = bisect_right(self.firsts, number) - 1
        return _different(source[int(self.indices[pair])])[number - int(self.firsts[pair])]

    def pair_of(self, numbers: np.ndarray) -> np.ndarray:
        """The numbers in the source of the pairs that have these captions."""
        return self.indices[np.searchsorted(self.firsts, numbers, side="right") - 1]


def _different(pair: Pair) -> list[str]:
    return list(dict.fromkeys(pair.captions))


def _read_texts(source: Source, indices: np.ndarray) -> Texts:
    keys, counts, hashes, words, characters = array("q"), array("q", [0]), array("q"), array("i"), array("i")
    replaced: list[str] = []
    starts = source.starts.tolist()
    for index in track(indices.tolist(), title="Reading captions", total=len(indices)):
        number = bisect_right(starts, index) - 1
        part = source.parts[number]
        pair = part.pair(index - starts[number])
        captions = _different(pair)
        keys.append(hash_of(_own_key(part, pair.key, in_mixture=bool(source.shares)).encode()))
        counts.append(len(captions))
        for caption in captions:
            hashes.append(hash_of(caption.encode()))
            words.append(len(caption.split()))
            characters.append(len(caption))
        if len(replaced) < EXAMPLES and any("\ufffd" in caption for caption in captions):
            replaced.append(pair.key)
    return Texts(
        indices,
        np.array(keys, dtype=np.int64),
        np.cumsum(np.array(counts, dtype=np.int64)),
        np.array(hashes, dtype=np.int64),
        np.array(words, dtype=np.int32),
        np.array(characters, dtype=np.int32),
        tuple(replaced),
    )


def _own_key(part: Part, key: str, *, in_mixture: bool) -> str:
    """The key that a pair has in its own shard. In a mixture the number of its source stays before it: sources may use
    the same keys."""
    if not isinstance(part, Prefixed):
        return key
    own = _own_key(part.part, key.removeprefix(part.prefix), in_mixture=False)
    return part.prefix + own if in_mixture else own


def _find_frequent(source: Source, texts: Texts, batch_size: int, findings: list[Finding]) -> tuple[Group, ...]:
    groups, repeats, chance = _equal(texts.hashes)
    frequent = tuple(
        _group(source, len(group), texts.pair_of(group), texts.caption(source, int(group[0]))) for group in groups
    )
    if frequent:
        in_batch = (batch_size - 1) * chance
        severity = "warning" if in_batch >= COPIES_IN_A_BATCH else "note"
        what, share = "captions that an earlier picture has too", repeats / len(texts.hashes)
        examples = tuple(f"{group.count:,} x {group.caption}" for group in frequent[:EXAMPLES])
        advice = (
            f"In a batch of {batch_size:,}, {in_batch:.2g} other pairs have a pair's own caption on average. "
            "--train.duplicates positives counts them as right."
        )
        findings.append(Finding(severity, what, repeats, share, examples, advice))
    return frequent


def _some_captions(source: Source, texts: Texts) -> list[str]:
    return [texts.caption(source, number) for number in _spread(len(texts.hashes), TEXTS, "texts").tolist()]


def _find_long(captions: list[str], findings: list[Finding]) -> np.ndarray:
    """The lengths of captions in tokens: int64[captions]."""
    tokenizer = Tokenizer.openai()
    tokens = (tokenizer(captions) == tokenizer.eos).argmax(axis=1) + 1 if captions else np.empty(0, dtype=np.int64)
    if tokenizer.cut:
        what = f"captions over {tokenizer.context_length} tokens, the start and end token included"
        example = (max(captions, key=len)[:80] + " ...",)
        advice = f"They are cut there. Counted with the paper's vocabulary, on {len(captions):,} captions."
        findings.append(Finding("note", what, tokenizer.cut, tokenizer.cut / len(captions), example, advice))
    return tokens


def _find_languages(captions: list[str], findings: list[Finding]) -> dict[str, int] | None:
    """How many captions are in which language, of those that are long enough to tell; None if nothing here can."""
    try:
        import py3langid
    except ImportError:
        what, advice = "captions whose language was not looked at", "For that, run: pip install 'limner[data]'"
        findings.append(Finding("note", what, len(captions), None, (), advice))
        return None
    codes = {text: py3langid.classify(text)[0] for text in captions if len(text.encode()) >= LEAST_BYTES}
    languages = Counter(codes[text] for text in captions if text in codes)
    most, count = next(iter(languages.most_common(1)), ("", 0))
    others = languages.total() - count
    if others > MANY * languages.total():
        what, share = f"captions in another language than most ({most})", others / languages.total()
        examples = tuple(islice((f"{code}: {text}" for text, code in codes.items() if code != most), EXAMPLES))
        advice = (
            f"Guessed, on {languages.total():,} captions. Any language can be learnt; class names and searches should "
            "then be in one of them."
        )
        findings.append(Finding("note", what, others, share, examples, advice))
    return dict(languages.most_common())


# --- pictures --------------------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """Numbers about a readable picture."""

    content: int
    """64-bit hash of the encoded bytes."""
    look: int
    """64-bit difference hash of the pixels; 0 for one that is flat."""
    width: int
    height: int
    size: int
    """Bytes."""
    format: str


@dataclass(frozen=True)
class Pictures:
    """Numbers about the readable pictures, one row each, and what was wrong with the others."""

    indices: np.ndarray
    """In the source: int64[pictures]."""
    contents: np.ndarray
    looks: np.ndarray
    widths: np.ndarray
    heights: np.ndarray
    sizes: np.ndarray
    """The fields of `Seen`: int64[pictures]."""
    formats: Counter[str]
    reasons: Counter[str]
    unreadable: list[Unread]
    """The first hundred."""


def _read_pictures(source: Source, indices: np.ndarray, workers: int) -> Pictures:
    numbers = np.empty((5, len(indices)), dtype=np.int64)
    is_readable = np.zeros(len(indices), dtype=bool)
    formats, reasons = Counter[str](), Counter[str]()
    unreadable: list[Unread] = []
    looked = track(_looked_at(source, indices, workers), title="Reading pictures", total=len(indices))
    for row, seen in enumerate(looked):
        if isinstance(seen, Seen):
            numbers[:, row], is_readable[row] = seen[:5], True
            formats[seen.format] += 1
        else:
            reasons[seen.reason] += 1
            if len(unreadable) < TOLD:
                unreadable.append(seen)
    contents, looks, widths, heights, sizes = numbers[:, is_readable]
    return Pictures(indices[is_readable], contents, looks, widths, heights, sizes, formats, reasons, unreadable)


def _looked_at(source: Source, indices: np.ndarray, workers: int) -> Iterator[Seen | Unread]:
    """Each picture looked at, in order, by many threads."""
    threads = Workers(workers, "reader")
    try:
        for start in range(0, len(indices), TOGETHER):
            pairs = [source[index] for index in indices[start : start + TOGETHER].tolist()]
            seen = threads.all([partial(_look_at, pair) for pair in pairs], late=_late)
            for pair, one in zip(pairs, seen, strict=True):
                yield Unread(pair.key, one, one) if isinstance(one, str) else one
    finally:
        threads.close()


def _look_at(pair: Pair, task: Task) -> Seen | Unread:
    """Read and decode a picture as training does."""
    try:
        content = read_again(pair, task)
        task.at("decoding", pair.key)
        header = opened(content)
        pixels = decode(content, RESIZE, fast=True)
    except Unreadable as error:
        return Unread(pair.key, error.reason, str(error.got))
    except OSError as error:
        return Unread(pair.key, UNREAD, error.strerror or str(error))
    width, height = header.size
    if (width > height) != (pixels.shape[1] > pixels.shape[0]):  # the header's are those before it is set upright
        width, height = height, width
    return Seen(hash_of(content), look_of(pixels), width, height, len(content), header.format or "")


def _late(task: Task) -> str | None:
    """Why nobody waits for a picture any more: training would not either."""
    seconds, reason = (DEADLINE_SECONDS, LATE) if task.stage == "decoding" else (PATIENCE_SECONDS, SLOW)
    return reason if time.monotonic() - task.since > seconds else None


def look_of(pixels: np.ndarray) -> int:
    """The difference hash of uint8[height width 3]: whether each of 8 x 9 patches is lighter than the one left of it.

    A signed 64-bit number. Of photos saved in another size or quality about six in ten keep it, others differ in a few
    bits; different photos hardly ever share it. 0: no patch is lighter, as in a flat picture.
    """
    patches = np.asarray(Image.fromarray(pixels).convert("L").resize((9, 8), Image.Resampling.BOX))
    return int.from_bytes(np.packbits(patches[:, 1:] > patches[:, :-1]).tobytes(), "big", signed=True)


def _find_unreadable(pictures: Pictures, findings: list[Finding]) -> None:
    lost = pictures.reasons.total()
    total = len(pictures.indices) + lost
    if lost > RunConfig.max_dropped * total:
        findings.append(_too_many(lost, total, "unreadable pictures"))
    for reason, count in pictures.reasons.most_common():
        examples = tuple(one.key for one in pictures.unreadable if one.reason == reason)[:EXAMPLES]
        severity = "error" if reason == SLOW else "warning"
        findings.append(Finding(severity, f"unreadable: {reason}", count, count / total, examples, _advice(reason)))


def _find_copies(
    source: Source, pictures: Pictures, findings: list[Finding]
) -> tuple[tuple[Group, ...], tuple[Group, ...]]:
    """Pictures of the same bytes, and different files that look the same."""
    groups, copied, _ = _equal(pictures.contents)
    copies = tuple(_group(source, len(group), pictures.indices[group]) for group in groups)
    _, different = np.unique(pictures.contents, return_index=True)
    different = np.sort(different[pictures.looks[different] != 0])
    groups, looked, _ = _equal(pictures.looks[different])
    alike = tuple(_group(source, len(group), pictures.indices[different[group]]) for group in groups)
    if copies:
        what, share = "copies of an earlier picture", copied / len(pictures.indices)
        advice = "Keep one of each, with all of its captions. Between training and test they make a score too good."
        findings.append(Finding("warning", what, copied, share, _named(copies), advice))
    if alike:
        what, share = "pictures that look like an earlier one", looked / len(pictures.indices)
        advice = "Look at them on the sheet: copies in another size or quality, or pictures of little detail."
        findings.append(Finding("note", what, looked, share, _named(alike), advice))
    return copies, alike


def _named(groups: tuple[Group, ...]) -> tuple[str, ...]:
    return tuple(" = ".join(group.keys[:2]) + (" = ..." if group.count > 2 else "") for group in groups[:EXAMPLES])


# --- the source as a whole -------------------------------------------------------------------------------------------


def _find_in_whole(source: Source, batch_size: int, ranks: int, findings: list[Finding]) -> None:
    """Too few pairs, too many that are left out, a batch that does not fit the ranks."""
    pairs, skipped = len(source), source.skipped.total()
    kept = round((1 - RunConfig.holdout) * pairs)
    if skipped > RunConfig.max_dropped * (skipped + pairs):
        findings.append(_too_many(skipped, skipped + pairs, "unusable pairs"))
    if kept < batch_size:
        what = f"fewer pairs than a batch of {batch_size:,}"
        advice = f"Lower --train.batch-size or add pairs; without --test only {kept:,} are trained on."
        findings.append(Finding("error" if pairs < batch_size else "warning", what, pairs, None, (), advice))
    if batch_size % ranks:
        what = f"a batch of {batch_size:,} that {ranks} ranks cannot share alike"
        advice = f"Take a --train.batch-size of {max(1, batch_size // ranks) * ranks:,}."
        findings.append(Finding("error", what, 1, None, (), advice))


def _too_many(count: int, total: int, what: str) -> Finding:
    share = count / total
    what = f"more {what} than the {100 * RunConfig.max_dropped:g} % that training goes on with"
    advice = f"The reasons stand below. --max-dropped {min(1.0, 1.5 * share):.2f} goes on without them."
    return Finding("error", what, count, share, (), advice)


def _find_left_out(source: Source, texts: Texts, findings: list[Finding]) -> None:
    """What opening the source skipped and noted."""
    total = len(source) + source.skipped.total()
    for reason, count in source.skipped.most_common():
        examples = _where(source, reason)
        findings.append(Finding("warning", f"left out: {reason}", count, count / total, examples, _advice(reason)))
    faulty: dict[str, list[str]] = {}  # shards by what is wrong with each: the reason names them
    for reason, count in source.noted.most_common():
        what, _, told = reason.partition(" (")
        if what in NAMING and told:
            faulty.setdefault(what, []).append(told.removesuffix(")"))
        else:
            examples = texts.replaced if "UTF-8" in reason else _where(source, reason)
            findings.append(Finding("warning", reason, count, None, examples, _advice(reason)))
    for what, names in faulty.items():
        findings.append(Finding("warning", what, len(names), None, tuple(names[:EXAMPLES]), _advice(what)))


def _where(source: Source, reason: str) -> tuple[str, ...]:
    """Some of the pictures or shards that a reason of `skipped` or `noted` is about, as far as is known."""
    if reason == "no caption":
        bare = (pair for pair in read_pictures(source.path) if not pair.captions)
        return tuple(_bare(pair) for pair in islice(bare, EXAMPLES))
    told = ((shard.name, {**(about := ensure(shard.path))["skipped"], **about["noted"]}) for shard in _shards(source))
    return tuple(islice((f"{name}: {counts[reason]:,}" for name, counts in told if reason in counts), EXAMPLES))


def _bare(pair: Pair) -> str:
    """A picture without a caption, and whether there is an empty one beside it."""
    is_single = isinstance(pair.path, Path) and pair.offset == 0
    return f"{pair.key} (empty .txt)" if is_single and Path(pair.path).with_suffix(".txt").exists() else pair.key


def _shards(source: Source) -> list[Shard]:
    parts = []
    for part in source.parts:
        while isinstance(part, Prefixed):
            part = part.part
        if isinstance(part, Shard):
            parts.append(part)
    return parts


def _find_in_shards(source: Source, texts: Texts, readers: int, findings: list[Finding], *, whole: bool) -> None:
    """What matters for shards alone; unless a sample is asked for, their bytes are hashed anew."""
    shards = _shards(source)
    wrong = _unlike_manifests(shards, whole=whole)
    if wrong:
        what, advice = "shards that are not what their manifest.json says", "Fetch or write these shards again."
        findings.append(Finding("warning", what, len(wrong), None, tuple(wrong[:EXAMPLES]), advice))
    groups, repeats, _ = _equal(texts.keys)
    if shards and groups:
        what, share = "keys that come in several shards", repeats / len(texts.keys)
        keys = tuple(source[int(texts.indices[group[0]])].key for group in groups[:EXAMPLES])
        advice = "limner tells them apart by their shards' names; webdataset and others do not."
        findings.append(Finding("note", what, repeats, share, keys, advice))
    if shards and len(shards) < readers:
        what = f"fewer shards than the {readers:,} readers of all ranks"
        advice = (
            "No matter for limner, where any rank reads from any shard; open_clip and webdataset would stand still."
        )
        findings.append(Finding("note", what, len(shards), None, (), advice))


def _unlike_manifests(shards: list[Shard], *, whole: bool) -> list[str]:
    """The shards whose sha256 is not the one in the manifest.json beside them, and those missing that it names."""
    wrong: list[str] = []
    paths = {Path(shard.path): shard for shard in shards if isinstance(shard.path, Path)}
    for folder in dict.fromkeys(path.parent for path in paths):
        if not (folder / "manifest.json").is_file():
            continue
        try:
            named = {shard["name"]: shard["sha256"] for shard in read_json(folder / "manifest.json")["shards"]}
        except (ConfigError, TypeError, KeyError):
            continue  # somebody else's manifest
        here = [path for path in paths if path.parent == folder and path.name in named]
        with ThreadPoolExecutor() as threads:
            found = list(threads.map(lambda path: sha256_of(path) if whole else paths[path].sha256, here))
        wrong += [path.name for path, sha256 in zip(here, found, strict=True) if sha256 != named[path.name]]
        wrong += [f"{name} (missing)" for name in named if not (folder / name).is_file()]
    return wrong


# --- small helpers ---------------------------------------------------------------------------------------------------


def _advice(reason: str) -> str:
    return next((advice for start, advice in ADVICE.items() if reason.startswith(start)), "Look at these files.")


def _equal(hashes: np.ndarray) -> tuple[list[np.ndarray], int, float]:
    """The places of equal values, the largest groups first; how many values come again; the chance that two are equal.

    At most `GROUPS` groups, int64, rising.
    """
    order = np.argsort(hashes, kind="stable")
    starts = np.flatnonzero(np.diff(hashes[order], prepend=hashes[order][:1] - 1))
    sizes = np.diff(starts, append=len(hashes))
    largest = np.argsort(-sizes, kind="stable")[:GROUPS]
    groups = [order[starts[i] : starts[i] + sizes[i]] for i in largest if sizes[i] > 1]
    total = max(2, len(hashes))
    return groups, int((sizes - 1).sum()), float((sizes * (sizes - 1.0)).sum() / (total * (total - 1)))


def _group(source: Source, count: int, indices: np.ndarray, caption: str | None = None) -> Group:
    some = tuple(indices[:MEMBERS].tolist())
    return Group(count, some, tuple(source[index].key for index in some), caption)


def _histograms(texts: Texts, pictures: Pictures, tokens: np.ndarray) -> tuple[Histogram, ...]:
    kinds = {
        "width, pixels": pictures.widths,
        "height, pixels": pictures.heights,
        "width by height": pictures.widths / np.maximum(1, pictures.heights),
        "kilobytes": pictures.sizes / 1000,
        "captions per picture": np.diff(texts.firsts),
        "words per caption": texts.words,
        "characters per caption": texts.characters,
        "tokens per caption": tokens,
    }
    return tuple(_histogram(name, values) for name, values in kinds.items() if len(values))


def _histogram(name: str, values: np.ndarray) -> Histogram:
    low, median, top, high = (float(v) for v in np.quantile(values, [0, 0.5, 0.99, 1]))
    if values.dtype.kind == "i":  # as many numbers in each bar
        step = (int(top) - int(low)) // BINS + 1
        edges = np.arange(int(low), int(top) + step + 1, step, dtype=np.float64)
    else:
        edges = np.linspace(low, top, BINS + 1) if top > low else np.array([low, low + 1.0])
    counts, _ = np.histogram(np.minimum(values, top), edges)
    return Histogram(name, low, median, high, tuple(edges.tolist()), tuple(counts.tolist()))


# --- quick numbers, and one pair -------------------------------------------------------------------------------------


def stats(path: str) -> dict[str, Any]:
    """What is known about the pairs at `path` without reading a picture: counts, lengths, bytes, fingerprint, order."""
    source = read_pairs(path)
    sizes, captions, words, characters = array("q"), array("q"), array("q"), array("q")
    for pair in track(source, title="Reading captions", total=len(source)):
        sizes.append(pair.size)
        captions.append(len(pair.captions))
        words.extend(len(caption.split()) for caption in pair.captions)
        characters.extend(map(len, pair.captions))
    return {
        "path": str(path),
        "pairs": len(source),
        "parts": len(source.parts),
        "captions": sum(captions),
        "captions_per_picture": _spread_of(captions),
        "words_per_caption": _spread_of(words),
        "characters_per_caption": _spread_of(characters),
        "picture_bytes": sum(sizes),
        "bytes_per_picture": _spread_of(sizes),
        "skipped": dict(source.skipped),
        "noted": dict(source.noted),
        "fingerprint": source.fingerprint,
        "order": quality(order_of(source, seed=0)),
    }


def _spread_of(values: Iterable[int]) -> dict[str, int | float]:
    numbers = np.fromiter(values, dtype=np.int64)
    return {
        "least": int(numbers.min()),
        "median": float(np.median(numbers)),
        "mean": round(float(numbers.mean()), 2),
        "most": int(numbers.max()),
    }


def find_pair(path: str, key: str) -> Pair:
    """The picture at `path` that has this key: as limner names it, or its shard does. Raises `DataError` otherwise."""
    near: list[Pair] = []
    known: list[str] = []
    for pair in read_pictures(path):
        if pair.key == key:
            return pair
        if pair.key.endswith(f"/{key}"):
            near.append(pair)
        if len(known) < 10_000:  # enough to guess from
            known.append(pair.key)
    if len(near) == 1:
        return near[0]
    raise DataError(
        f"The key {key!r}",
        must=f"name one picture of {path}",
        got=f"{len(near)} that end so" if near else "none of that name",
        then=f"Take one of {', '.join(pair.key for pair in near[:EXAMPLES])}."
        if near
        else did_you_mean(key, known, f"Its first keys are {', '.join(known[:3])}."),
    )


def describe_pair(pair: Pair) -> tuple[dict[str, Any], bytes]:
    """What is known about a pair, its picture's header included, and the picture's bytes."""
    content = pair.read()
    try:
        header = opened(content, f"The picture {pair.key}")
        decode(content, RESIZE, fast=True)
        looks = {"format": header.format, "width": header.width, "height": header.height}
    except Unreadable as error:
        looks = {"unreadable": f"{error.reason}: {error.got}"}
    told = {
        "key": pair.key,
        "captions": list(pair.captions),
        "chances": list(pair.chances),
        "label": pair.label,
        "held_out": pair.held_out,
        "file": str(pair.path),
        "offset": pair.offset,
        "size": pair.size,
        **looks,
    }
    return told, content
