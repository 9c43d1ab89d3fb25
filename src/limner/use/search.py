"""Finding pictures by a sentence: exact cosine similarity of its feature with every picture's."""

from dataclasses import dataclass
from pathlib import Path

import torch

from limner.data.pairs import describe
from limner.data.reading import describe_unreadable
from limner.data.sources.read import read_pictures
from limner.embed import image_features
from limner.model.clip import CLIP
from limner.progress import say


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A picture that was found."""

    key: str
    """Its path below the folder, or its key in a shard."""
    path: str
    """The file, or the shard that holds it."""
    similarity: float
    """Cosine similarity with the query."""


@torch.inference_mode()
def find(model: CLIP, folder: str | Path, query: str, *, top: int = 10) -> list[Hit]:
    """The `top` pictures of a folder, list or shards that `query` describes best, the best first."""
    source = read_pictures(folder)
    kept, features, unreadable = image_features(model, source)
    if source.skipped or unreadable:
        say(f"Not searched: {describe(source.skipped)}; {describe_unreadable(unreadable)}.")
    similarity = (features @ model.encode_text(query).T).squeeze(1)
    best = similarity.topk(min(top, len(kept)))
    return [
        Hit(key=source[kept[i]].key, path=str(source[kept[i]].path), similarity=value)
        for i, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
