"""Retrieval: recall from captions to images and back."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limner.embed import embed_texts
from limner.evaluation.metrics import Row, ranks_of_right, share_row
from limner.model.clip import CLIP

RECALLS = (1, 5, 10)


def retrieval(
    model: CLIP,
    image_features: Float[Tensor, "images embed"],
    captions: list[tuple[str, ...]],
    about: dict[str, str],
) -> list[Row]:
    """Recall@1/5/10 from captions to pictures and back.

    Identical captions are one candidate, and every picture that one of them belongs to is right.
    """
    different = sorted({caption for several in captions for caption in several})
    index = {caption: i for i, caption in enumerate(different)}
    own = [sorted({index[caption] for caption in several}) for several in captions]
    text_features = embed_texts(model, different)
    to_text = _ranks_in_chunks(image_features, text_features, own)
    images_of: list[list[int]] = [[] for _ in different]
    for image, mine in enumerate(own):
        for caption in mine:
            images_of[caption].append(image)
    to_image = _ranks_in_chunks(text_features, image_features, images_of)
    return [share_row(f"retrieval.text_to_image@{k}", to_image, k, **about) for k in RECALLS] + [
        share_row(f"retrieval.image_to_text@{k}", to_text, k, **about) for k in RECALLS
    ]


def _ranks_in_chunks(
    queries: Float[Tensor, "queries embed"], candidates: Float[Tensor, "candidates embed"], right: list[list[int]]
) -> Int[Tensor, " queries"]:
    """`ranks_of_right` of every query's `right` candidates, a thousand queries at a time."""
    parts = []
    for start in range(0, len(queries), 1024):
        scores = queries[start : start + 1024] @ candidates.T
        is_right = torch.zeros_like(scores, dtype=torch.bool)
        for query, wanted in zip(is_right, right[start : start + 1024], strict=True):
            query[wanted] = True
        parts.append(ranks_of_right(scores, is_right))
    return torch.cat(parts)
