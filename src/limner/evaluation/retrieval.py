"""Retrieval: recall from captions to images and back.

What an encoder cannot tell apart is one: captions with the same token ids are one candidate and one query, and so are
images with the same pixels. Whatever one of its copies is paired with is right for it. So it makes no difference
whether an image comes once with three captions or three times with one.
"""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limner.embed import embed_texts, ids_of_texts
from limner.evaluation.metrics import Outcome, Row, ranks_of_right, share_row
from limner.model.clip import CLIP
from limner.progress import say

RECALLS = (1, 5, 10)
SCORES = 2**22
"""Similarities that are in memory at once."""


def retrieval(
    model: CLIP,
    image_features: Float[Tensor, "images embed"],
    contents: Sequence[int],
    captions: Sequence[tuple[str, ...]],
    keys: Sequence[str],
    about: dict[str, str],
) -> tuple[list[Row], list[Outcome]]:
    """Recall@1/5/10 from captions to images and back, of images with these `contents` (hashes), `captions` and `keys`,
    and what came of each query.

    A query counts as found when any of its right candidates is among the first k; of equal scores the first wins, on
    both sides, in the order of the data.
    """
    texts = [caption for several in captions for caption in several]
    image_of, images = _numbered(contents)
    caption_of, first_texts = _numbered(ids_of_texts(model, texts))
    if len(images) < len(contents) or len(first_texts) < len(texts):
        say(
            f"Retrieval of {about['task']}: {len(contents):,} pictures are {len(images):,} different ones, "
            f"{len(texts):,} captions {len(first_texts):,}; what is the same counts once."
        )
    captions_of: list[set[int]] = [set() for _ in images]
    images_of: list[set[int]] = [set() for _ in first_texts]
    own = iter(caption_of)
    for image, several in zip(image_of, captions, strict=True):
        for _, caption in zip(several, own, strict=False):
            captions_of[image].add(caption)
            images_of[caption].add(image)
    image_features = image_features[images]
    text_features = embed_texts(model, [texts[place] for place in first_texts])
    to_image = _ranks_in_chunks(text_features, image_features, images_of)
    to_text = _ranks_in_chunks(image_features, text_features, captions_of)
    names = [f"{key}#{place}" for key, several in zip(keys, captions, strict=True) for place in range(len(several))]
    asked = {
        "retrieval.text_to_image": (to_image, [names[place] for place in first_texts]),
        "retrieval.image_to_text": (to_text, [keys[place] for place in images]),
    }
    rows = [share_row(f"{way}@{k}", ranks, k, **about) for way, (ranks, _) in asked.items() for k in RECALLS]
    outcomes = [Outcome(metric=way, keys=own, ranks=ranks.tolist()) for way, (ranks, own) in asked.items()]
    return rows, outcomes


def _numbered(ids: Iterable[int]) -> tuple[list[int], list[int]]:
    """(the number of each id, of equal ones the same; where each number came first)."""
    numbers, firsts = dict[int, int](), list[int]()
    found = list[int]()
    for place, one in enumerate(ids):
        if one not in numbers:
            numbers[one] = len(firsts)
            firsts.append(place)
        found.append(numbers[one])
    return found, firsts


def _ranks_in_chunks(
    queries: Float[Tensor, "queries embed"],
    candidates: Float[Tensor, "candidates embed"],
    right: Sequence[set[int]],
) -> Int[Tensor, " queries"]:
    """`ranks_of_right` of every query's `right` candidates, so many queries at a time that their scores are few."""
    parts, some = [], max(1, SCORES // len(candidates))
    for start in range(0, len(queries), some):
        scores = queries[start : start + some] @ candidates.T
        is_right = torch.zeros_like(scores, dtype=torch.bool)
        for query, wanted in zip(is_right, right[start : start + some], strict=True):
            query[list(wanted)] = True
        parts.append(ranks_of_right(scores, is_right))
    return torch.cat(parts)
