"""Finding images by a sentence: exact cosine similarity of its feature with every image's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limner.data.pairs import describe, notes
from limner.data.reading import describe_unreadable
from limner.data.sources.read import read_images
from limner.embed import Embedded, embed_images, embed_texts
from limner.errors import whole_from_one
from limner.evaluation.metrics import best_first
from limner.model.clip import CLIP
from limner.progress import say


@dataclass(frozen=True, kw_only=True)
class Hit:
    """An image that was found."""

    key: str
    """Its path below the folder, or its key in a shard."""
    path: str
    """The file, or the shard that holds it."""
    similarity: float
    """Cosine similarity with the query."""


def find(model: CLIP, data: str | Path, query: str, *, top: Any = 10, keep: Path | None = None) -> list[Hit]:
    """The `top` images of a folder, list or shards that `query` describes best, the best first.

    `keep` is a folder for the images' features, so that the next search need not make them again.
    """
    top = whole_from_one(top, "top")
    embedded = embed_images(model, read_images(data), keep=keep)
    source = embedded.source
    if source.skipped or embedded.unreadable:
        say(f"Not searched: {describe(source.skipped)}; {describe_unreadable(embedded.unreadable)}.")
    if source.noted:
        say(notes(source))
    return find_among(model, embedded, query, top=top)


def find_among(model: CLIP, embedded: Embedded, query: str, *, top: Any = 10) -> list[Hit]:
    """The `top` of the images that `model` has embedded which `query` describes best, the best first, of equal ones the
    first."""
    similarity = embed_texts(model, [query]) @ embedded.features.T
    found = best_first(similarity, whole_from_one(top, "top"))[0].tolist()
    pairs = [embedded.source[embedded.indices[place]] for place in found]
    return [
        Hit(key=pair.key, path=str(pair.path), similarity=float(similarity[0, place]))
        for pair, place in zip(pairs, found, strict=True)
    ]
