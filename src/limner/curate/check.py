"""What training would meet in a source of pairs, found out before it: `limner data check`.

```
read_pairs ─> keys, captions (from the index) ─> lengths, languages, captions of several images ─┐
           └> every image: read ─> decode, as training does ─> unreadable ones, sizes, copies   ├─> Findings
shards ─> sha256 against manifest.json; what the index left out or noted                         ─┘
```

signals.py reads the numbers; the functions here make findings of them. A finding is an error where training would stop,
a warning where pairs are lost or the model is worse for it, a note otherwise.
"""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from limner.config import RunConfig
from limner.curate.findings import NAMING, SEVERITIES, Finding, Findings, First, Group, Histogram, advice_for, histogram
from limner.curate.signals import (
    EXAMPLES,
    Equal,
    Images,
    Texts,
    equal_looks,
    equal_values,
    examine_images,
    read_texts,
    spread,
)
from limner.data.pairs import Pair, Prefixed, Source
from limner.data.reading import SLOW, cores
from limner.data.sources.index import ensure_index
from limner.data.sources.read import read_images, read_pairs
from limner.data.sources.shards import Shard, build
from limner.data.tokenizer import Tokenizer
from limner.errors import ConfigError, DataError, require
from limner.files import read_json, sha256_of

MEMBERS, SHOWN = 6, 48
"""The most members named of a group of equal things, and the most pairs on a sheet of examples."""
FIRST = 3
"""Pairs shown as they were read."""
TEXTS = 2000
"""Captions whose language and tokens are looked at."""
CONTEXT = 77
"""Tokens that the paper's text encoder takes, the start and end token included."""
LEAST_BYTES = 24
"""Bytes of a caption, in UTF-8; what is shorter says too little about its language."""
COPIES_IN_A_BATCH = 0.1
"""Pairs of a batch with the same caption as a given one, on average, from which on they are worth a warning."""
MANY = 0.05
"""A share of captions in another language than most that is worth a note."""


def check(
    path: str, *, ranks: int = 1, workers: int | None = None, batch_size: int = 256, sample: int | None = None
) -> tuple[Findings, Source]:
    """What training on the pairs at `path` would meet, and the source in which the findings number their pairs.

    `workers` threads on each of `ranks` would read them; as many read them here, one per core by default. `sample`:
    look at that many pairs only, spread over all of them. Raises `DataError` if there is nothing that could be looked
    at, and `ConfigError` for numbers that cannot be.
    """
    least = {"--ranks": (ranks, 1), "--workers": (workers, 1), "--batch-size": (batch_size, 2), "--sample": (sample, 1)}
    for name, (given, at_least) in least.items():
        require(given is None or given >= at_least, name, f"be at least {at_least}", given, "Give a larger number.")
    workers = workers or cores()
    source, refused = _opened(path)
    indices = spread(len(source), sample, "check")
    texts = read_texts(source, indices)
    images = examine_images(source, indices, workers)
    copied, alike, frequent = equal_values(images.contents), equal_looks(images), equal_values(texts.hashes)
    captions = [texts.caption(source, number) for number in spread(len(texts.hashes), TEXTS, "texts").tolist()]
    (tokens, cut), languages = _tokens(captions), _languages(captions)
    findings = [
        *refused,
        *_in_whole(source, batch_size, ranks),
        *_left_out(source, texts),
        *_in_shards(source, texts, ranks * workers, whole=len(indices) == len(source)),
        *_unreadable(images),
        *_copied(source, images, copied, alike),
        *_frequent(source, texts, frequent, batch_size),
        *_long(captions, cut),
        *_foreign(captions, languages),
    ]
    found = Findings(
        path=str(path),
        fingerprint=source.fingerprint,
        pairs=len(source),
        parts=len(source.parts),
        checked=len(indices),
        captions=len(texts.hashes),
        bytes=int(images.sizes.sum()),
        unreadable_share=images.reasons.total() / max(1, len(indices)),
        skipped_share=source.skipped_share,
        would_run=not any(finding.severity == "error" for finding in findings),
        findings=tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))),
        first=tuple(_first(source, pair) for pair in islice(source, FIRST)),
        histograms=_histograms(texts, images, tokens),
        formats=dict(images.formats.most_common()),
        languages=None if languages is None else dict(Counter(code for code, _ in languages).most_common()),
        copies=_groups_of_images(source, images, copied),
        alike=_groups_of_images(source, images, alike),
        frequent=_groups_of_captions(source, texts, frequent),
        unreadable=tuple(images.unreadable),
        shown=tuple(images.indices[spread(len(images.indices), SHOWN, "sheet")].tolist()),
    )
    return found, source


def _opened(path: str) -> tuple[Source, list[Finding]]:
    """The pairs at `path`. Where training would not take them, its captioned pictures, and why as an error."""
    try:
        return read_pairs(path), []
    except DataError as error:
        images = read_images(path)  # raises where there is not even a picture
        what = f"{error.what} must {error.must}, got {error.got}"
        captioned = images.where(lambda pair: bool(pair.captions))
        bare = Counter({"no caption": len(images) - len(captioned)})
        return replace(captioned, skipped=images.skipped + bare), [Finding("error", what, 1, None, (), error.then)]


def _first(source: Source, pair: Pair) -> First:
    label = None if pair.label is None else source.classes[pair.label] if source.classes else str(pair.label)
    return First(pair.key, pair.captions[:EXAMPLES], label)


# --- the source as a whole -------------------------------------------------------------------------------------------


def _in_whole(source: Source, batch_size: int, ranks: int) -> Iterator[Finding]:
    """Too few pairs, too many that are left out, a batch that does not fit the ranks."""
    pairs, skipped = len(source), source.skipped.total()
    kept = round((1 - RunConfig.holdout) * pairs)
    if skipped > RunConfig.max_dropped * (skipped + pairs):
        yield _too_many(skipped, skipped + pairs, "unusable pairs")
    if kept < batch_size:
        what = f"fewer pairs than a batch of {batch_size:,}"
        advice = f"Lower --train.batch-size or add pairs; without --test only {kept:,} are trained on."
        yield Finding("error" if pairs < batch_size else "warning", what, pairs, None, (), advice)
    if batch_size % ranks:
        what = f"a batch of {batch_size:,} that {ranks} ranks cannot share alike"
        advice = f"Take a --train.batch-size of {max(1, batch_size // ranks) * ranks:,}."
        yield Finding("error", what, 1, None, (), advice)


def _too_many(count: int, total: int, what: str) -> Finding:
    share = count / total
    what = f"more {what} than the {100 * RunConfig.max_dropped:g} % that training goes on with"
    advice = f"The reasons stand below. --max-dropped {min(1.0, 1.5 * share):.2f} goes on without them."
    return Finding("error", what, count, share, (), advice)


def _left_out(source: Source, texts: Texts) -> Iterator[Finding]:
    """What opening the source skipped and noted."""
    total = len(source) + source.skipped.total()
    for reason, count in source.skipped.most_common():
        examples = _where(source, reason)
        yield Finding("warning", f"left out: {reason}", count, count / total, examples, advice_for(reason))
    faulty: dict[str, list[str]] = {}  # shards by what is wrong with each: the reason names them
    for reason, count in source.noted.most_common():
        what, _, told = reason.partition(" (")
        if what in NAMING and told:
            faulty.setdefault(what, []).append(told.removesuffix(")"))
        else:
            examples = texts.replaced if "UTF-8" in reason else _where(source, reason)
            yield Finding("warning", reason, count, None, examples, advice_for(reason))
    for what, names in faulty.items():
        yield Finding("warning", what, len(names), None, tuple(names[:EXAMPLES]), advice_for(what))


def _where(source: Source, reason: str) -> tuple[str, ...]:
    """Some of the pictures or shards that a reason of `skipped` or `noted` is about, as far as is known."""
    if reason == "no caption":
        bare = (pair for pair in read_images(source.path) if not pair.captions)
        return tuple(_bare(pair) for pair in islice(bare, EXAMPLES))
    about = ((shard.name, ensure_index(shard.path, build)) for shard in _shards(source))
    counted = ((name, {**index["skipped"], **index["noted"]}) for name, index in about)
    return tuple(islice((f"{name}: {counts[reason]:,}" for name, counts in counted if reason in counts), EXAMPLES))


def _bare(pair: Pair) -> str:
    """A picture without a caption, and whether there is an empty one beside it."""
    is_single = isinstance(pair.path, Path) and pair.offset == 0
    return f"{pair.key} (empty .txt)" if is_single and Path(pair.path).with_suffix(".txt").exists() else pair.key


# --- shards ----------------------------------------------------------------------------------------------------------


def _in_shards(source: Source, texts: Texts, readers: int, *, whole: bool) -> Iterator[Finding]:
    """What matters for shards alone; with `whole` their bytes are hashed anew."""
    shards = _shards(source)
    wrong = _unlike_manifests(shards, whole=whole)
    if wrong:
        what, advice = "shards that are not what their manifest.json says", "Fetch or write these shards again."
        yield Finding("warning", what, len(wrong), None, tuple(wrong[:EXAMPLES]), advice)
    equal = equal_values(texts.keys)
    if shards and equal.groups:
        what, share = "keys that come in several shards", equal.repeats / len(texts.keys)
        keys = tuple(source[int(texts.indices[group[0]])].key for group in equal.groups[:EXAMPLES])
        advice = "limner tells them apart by their shards' names; webdataset and others do not."
        yield Finding("note", what, equal.repeats, share, keys, advice)
    if shards and len(shards) < readers:
        what = f"fewer shards than the {readers:,} readers of all ranks"
        advice = (
            "No matter for limner, where any rank reads from any shard; open_clip and webdataset would stand still."
        )
        yield Finding("note", what, len(shards), None, (), advice)


def _shards(source: Source) -> list[Shard]:
    parts = []
    for part in source.parts:
        while isinstance(part, Prefixed):
            part = part.part
        if isinstance(part, Shard):
            parts.append(part)
    return parts


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


# --- captions --------------------------------------------------------------------------------------------------------


def _frequent(source: Source, texts: Texts, equal: Equal, batch_size: int) -> Iterator[Finding]:
    """Captions that several pictures have."""
    if not equal.groups:
        return
    in_batch = (batch_size - 1) * equal.chance
    severity = "warning" if in_batch >= COPIES_IN_A_BATCH else "note"
    what, share = "captions that an earlier picture has too", equal.repeats / len(texts.hashes)
    examples = tuple(f"{len(group):,} x {texts.caption(source, int(group[0]))}" for group in equal.groups[:EXAMPLES])
    advice = (
        f"In a batch of {batch_size:,}, {in_batch:.2g} other pairs have a pair's own caption on average. "
        "--train.duplicates positives counts them as right."
    )
    yield Finding(severity, what, equal.repeats, share, examples, advice)


def _groups_of_captions(source: Source, texts: Texts, equal: Equal) -> tuple[Group, ...]:
    return tuple(
        _group(source, len(group), texts.pair_of(group), texts.caption(source, int(group[0]))) for group in equal.groups
    )


def _tokens(captions: list[str]) -> tuple[np.ndarray, int]:
    """The lengths of captions in tokens of the paper's vocabulary, int64[captions], and how many had to be cut."""
    tokenizer = Tokenizer.openai(context_length=CONTEXT)
    if not captions:
        return np.empty(0, dtype=np.int64), 0
    return (tokenizer(captions) == tokenizer.eos).argmax(axis=1) + 1, tokenizer.cut


def _long(captions: list[str], cut: int) -> Iterator[Finding]:
    """Captions over the context length that most models have."""
    if cut:
        what = f"captions over {CONTEXT} tokens, the start and end token included"
        example = (max(captions, key=len)[:80] + " ...",)
        advice = f"They are cut there. Counted with the paper's vocabulary, on {len(captions):,} captions."
        yield Finding("note", what, cut, cut / len(captions), example, advice)


def _languages(captions: list[str]) -> list[tuple[str, str]] | None:
    """(language, caption) of those captions that are long enough to tell; None if nothing here can."""
    try:
        import py3langid
    except ImportError:
        return None
    long = [text for text in captions if len(text.encode()) >= LEAST_BYTES]
    codes = {text: py3langid.classify(text)[0] for text in dict.fromkeys(long)}
    return [(codes[text], text) for text in long]


def _foreign(captions: list[str], languages: list[tuple[str, str]] | None) -> Iterator[Finding]:
    """Captions in another language than most."""
    if languages is None:
        what, advice = "captions whose language was not looked at", "For that, run: pip install 'limner[data]'"
        yield Finding("note", what, len(captions), None, (), advice)
        return
    counts = Counter(code for code, _ in languages)
    most, count = next(iter(counts.most_common(1)), ("", 0))
    others = len(languages) - count
    if others > MANY * len(languages):
        what, share = f"captions in another language than most ({most})", others / len(languages)
        foreign = dict.fromkeys(f"{code}: {text}" for code, text in languages if code != most)
        advice = (
            f"Guessed, on {len(languages):,} captions. Any language can be learnt; class names and searches should "
            "then be in one of them."
        )
        yield Finding("note", what, others, share, tuple(islice(foreign, EXAMPLES)), advice)


# --- pictures --------------------------------------------------------------------------------------------------------


def _unreadable(images: Images) -> Iterator[Finding]:
    lost = images.reasons.total()
    total = len(images.indices) + lost
    if lost > RunConfig.max_dropped * total:
        yield _too_many(lost, total, "unreadable pictures")
    for reason, count in images.reasons.most_common():
        examples = tuple(one.key for one in images.unreadable if one.reason == reason)[:EXAMPLES]
        severity = "error" if reason == SLOW else "warning"
        yield Finding(severity, f"unreadable: {reason}", count, count / total, examples, advice_for(reason))


def _copied(source: Source, images: Images, copied: Equal, alike: Equal) -> Iterator[Finding]:
    """Pictures of the same bytes, and different files that look the same."""
    if copied.groups:
        what, share = "copies of an earlier picture", copied.repeats / len(images.indices)
        advice = "Keep one of each, with all of its captions. Between training and test they make a score too good."
        named = _named(_groups_of_images(source, images, copied))
        yield Finding("warning", what, copied.repeats, share, named, advice)
    if alike.groups:
        what, share = "pictures that look like an earlier one", alike.repeats / len(images.indices)
        advice = "Look at them on the sheet: copies in another size or quality, or pictures of little detail."
        named = _named(_groups_of_images(source, images, alike))
        yield Finding("note", what, alike.repeats, share, named, advice)


def _groups_of_images(source: Source, images: Images, equal: Equal) -> tuple[Group, ...]:
    return tuple(_group(source, len(group), images.indices[group]) for group in equal.groups)


def _named(groups: tuple[Group, ...]) -> tuple[str, ...]:
    return tuple(" = ".join(group.keys[:2]) + (" = ..." if group.count > 2 else "") for group in groups[:EXAMPLES])


# --- small helpers ---------------------------------------------------------------------------------------------------


def _group(source: Source, count: int, indices: np.ndarray, caption: str | None = None) -> Group:
    some = tuple(indices[:MEMBERS].tolist())
    return Group(count, some, tuple(source[index].key for index in some), caption)


def _histograms(texts: Texts, images: Images, tokens: np.ndarray) -> tuple[Histogram, ...]:
    kinds = {
        "width, pixels": images.widths,
        "height, pixels": images.heights,
        "width by height": images.widths / np.maximum(1, images.heights),
        "kilobytes": images.sizes / 1000,
        "captions per picture": np.diff(texts.firsts),
        "words per caption": texts.words,
        "characters per caption": texts.characters,
        "tokens per caption": tokens,
    }
    return tuple(histogram(name, values) for name, values in kinds.items() if len(values))
