"""What training would meet in a source of pairs, found out before it: `limner data check`, `data stats`, `data show`.

```
read_pairs ─> keys, captions (from the index) ─> lengths, languages, captions of several pictures ─┐
           └> every picture: read ─> decode, as training does ─> unreadable ones, sizes, copies   ├─> Findings
shards ─> sha256 against manifest.json; what the index left out or noted                         ─┘
```

A finding is an error where training would stop, a warning where pairs are lost or the model is worse for it, a note
otherwise. Of each pair and each caption only a few numbers stay in memory, about a hundred bytes a pair.
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from limner.config import RunConfig
from limner.curate.findings import (
    NAMING,
    SEVERITIES,
    Finding,
    Findings,
    Group,
    Histogram,
    _histogram,
    advice_for,
)
from limner.curate.signals import EXAMPLES, SLOW, Images, Texts, equal_values, read_images, read_texts, spread
from limner.data.pairs import Pair, Prefixed, Source
from limner.data.reading import (
    cores,
)
from limner.data.sources.index import ensure
from limner.data.sources.read import read_pairs, read_pictures
from limner.data.sources.shards import Shard
from limner.data.sources.tables import build
from limner.data.tokenizer import Tokenizer
from limner.errors import ConfigError, DataError, require
from limner.files import read_json, sha256_of

MEMBERS, SHOWN = 6, 48
"""At most: members named of a group of equal things, pairs for a sheet of examples."""
TEXTS = 2000
"""Captions whose language and tokens are looked at."""
LEAST_BYTES = 24
"""Of a caption, in UTF-8; what is shorter says too little about its language."""
COPIES_IN_A_BATCH = 0.1
"""Pairs of a batch with the same caption as a given one, on average, from which on they are worth a warning."""
MANY = 0.05
"""A share of captions in another language than most that is worth telling."""


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
    indices = spread(len(source), sample, "check")
    _find_in_whole(source, batch_size, ranks, findings)
    texts = read_texts(source, indices)
    _find_left_out(source, texts, findings)
    _find_in_shards(source, texts, ranks * workers, findings, whole=len(indices) == len(source))
    pictures = read_images(source, indices, workers)
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
        shown=tuple(readable[spread(len(readable), SHOWN, "sheet")].tolist()),
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


# --- keys and captions -----------------------------------------------------------------------------------------------


def _find_frequent(source: Source, texts: Texts, batch_size: int, findings: list[Finding]) -> tuple[Group, ...]:
    groups, repeats, chance = equal_values(texts.hashes)
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
    return [texts.caption(source, number) for number in spread(len(texts.hashes), TEXTS, "texts").tolist()]


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


def _find_unreadable(pictures: Images, findings: list[Finding]) -> None:
    lost = pictures.reasons.total()
    total = len(pictures.indices) + lost
    if lost > RunConfig.max_dropped * total:
        findings.append(_too_many(lost, total, "unreadable pictures"))
    for reason, count in pictures.reasons.most_common():
        examples = tuple(one.key for one in pictures.unreadable if one.reason == reason)[:EXAMPLES]
        severity = "error" if reason == SLOW else "warning"
        findings.append(Finding(severity, f"unreadable: {reason}", count, count / total, examples, advice_for(reason)))


def _find_copies(
    source: Source, pictures: Images, findings: list[Finding]
) -> tuple[tuple[Group, ...], tuple[Group, ...]]:
    """Images of the same bytes, and different files that look the same."""
    groups, copied, _ = equal_values(pictures.contents)
    copies = tuple(_group(source, len(group), pictures.indices[group]) for group in groups)
    _, different = np.unique(pictures.contents, return_index=True)
    different = np.sort(different[pictures.looks[different] != 0])
    groups, looked, _ = equal_values(pictures.looks[different])
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
        findings.append(Finding("warning", f"left out: {reason}", count, count / total, examples, advice_for(reason)))
    faulty: dict[str, list[str]] = {}  # shards by what is wrong with each: the reason names them
    for reason, count in source.noted.most_common():
        what, _, told = reason.partition(" (")
        if what in NAMING and told:
            faulty.setdefault(what, []).append(told.removesuffix(")"))
        else:
            examples = texts.replaced if "UTF-8" in reason else _where(source, reason)
            findings.append(Finding("warning", reason, count, None, examples, advice_for(reason)))
    for what, names in faulty.items():
        findings.append(Finding("warning", what, len(names), None, tuple(names[:EXAMPLES]), advice_for(what)))


def _where(source: Source, reason: str) -> tuple[str, ...]:
    """Some of the pictures or shards that a reason of `skipped` or `noted` is about, as far as is known."""
    if reason == "no caption":
        bare = (pair for pair in read_pictures(source.path) if not pair.captions)
        return tuple(_bare(pair) for pair in islice(bare, EXAMPLES))
    told = (
        (shard.name, {**(about := ensure(shard.path, build))["skipped"], **about["noted"]}) for shard in _shards(source)
    )
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
    groups, repeats, _ = equal_values(texts.keys)
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


def _group(source: Source, count: int, indices: np.ndarray, caption: str | None = None) -> Group:
    some = tuple(indices[:MEMBERS].tolist())
    return Group(count, some, tuple(source[index].key for index in some), caption)


def _histograms(texts: Texts, pictures: Images, tokens: np.ndarray) -> tuple[Histogram, ...]:
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


# --- quick numbers, and one pair -------------------------------------------------------------------------------------
