"""Naming a person's own pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from limner.data.pairs import PICTURES, Pair, describe, listed
from limner.data.sources.read import read_pictures
from limner.embed import image_features
from limner.errors import DataError
from limner.evaluation.zero_shot import ZeroShotClassifier
from limner.progress import say
from limner.store.store import load


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The likeliest names of a picture with their probabilities, the likeliest first."""

    picture: str
    names: dict[str, float]


def classify_pictures(
    model: Path, pictures: Sequence[Path], labels: Sequence[str], templates: Sequence[str], *, top: int = 5
) -> list[Answer]:
    """Name `pictures`: files, or folders, lists and shards of them.

    One that cannot be read is said and left out, never the others. Raises `DataError` if none can be read.
    """
    classifier = ZeroShotClassifier(load(model), labels, templates)
    pairs = [pair for path in pictures for pair in _pictures(path)]
    if not pairs:
        raise DataError(
            "The pictures to name",
            must=f"be files ({', '.join(PICTURES)}) or folders of them",
            got="none that can be read",
            then="Check the paths.",
        )
    source = listed(pictures[0], pairs)
    kept, features, unreadable = image_features(classifier.model, source)
    for key, reason in unreadable.items():
        say(f"Left out: {key}: {reason}")
    found = classifier.probabilities(features).topk(min(top, len(labels)), dim=1)
    return [
        Answer(picture=source[i].key, names={labels[int(k)]: share for k, share in zip(indices, shares, strict=True)})
        for i, indices, shares in zip(kept, found.indices.tolist(), found.values.tolist(), strict=True)
    ]


def _pictures(path: Path) -> list[Pair]:
    """The pictures at `path`, their keys made to show where they are; none, and a word, if they cannot be read."""
    if path.suffix.lower() in PICTURES and path.is_file():
        return [Pair(key=str(path), path=path, offset=0, size=path.stat().st_size)]
    try:
        source = read_pictures(path)
    except DataError as error:
        say(f"Left out: {error}")
        return []
    if source.skipped:
        say(f"Left out of {path}: {describe(source.skipped)}.")
    return [replace(pair, key=str(path / pair.key) if path.is_dir() else f"{path}: {pair.key}") for pair in source]
