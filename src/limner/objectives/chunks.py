"""What the objectives share: the N x N logits of a batch, chunk by chunk, and which of them are a pair's.

An objective never holds N x N numbers. It goes over `logit_chunks`, some pictures against all captions of the global
batch at a time; its backward computes each chunk once more, turns it into the gradient of these logits and hands that
to `feature_gradients`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from limner.errors import ConfigError
from limner.objectives.ranks import Ranks

CHUNK_SIZE = 1024
"""Pictures of a chunk. On an idle CPU 512 to 2,048 take the same time; beside other busy threads, smaller chunks lose
more of it, because every operation waits for its slowest thread."""

FLOOR = -70.0
"""Exponents are cut here: exp(-70) beside a 1 is nothing in float32 and float64, and numbers too small to be normal
(float32: below exp(-87)) cost twenty times the time of others."""


def check_batch(image_features: Tensor, text_features: Tensor, positives: Tensor | None, chunk_size: int) -> None:
    """Raise `ConfigError` for a batch that no objective can use."""
    if chunk_size < 1:
        raise ConfigError("chunk_size", must="be at least 1", got=chunk_size, then=f"Leave it out for {CHUNK_SIZE}.")
    if image_features.ndim != 2 or image_features.shape != text_features.shape:
        raise ConfigError(
            "Image and text features",
            must="have the same shape, [batch, embed]",
            got=f"{list(image_features.shape)} and {list(text_features.shape)}",
            then="Give one picture and one caption of each pair, projected to the same width.",
        )
    pairs = len(image_features)
    if positives is not None and (positives.ndim != 2 or len(positives) != pairs or positives.shape[1] == 0):
        raise ConfigError(
            "positives",
            must=f"be the ids of {pairs} pairs, [batch, kinds]",
            got=f"the shape {list(positives.shape)}",
            then="Give each pair one id or more, or None.",
        )


def compute_dtype(*features: Tensor) -> torch.dtype:
    """float64 when some features are, else float32: at a logit scale of 100, the steps between neighbouring bfloat16
    logits would be as large as the differences that matter."""
    return torch.float64 if any(part.dtype == torch.float64 for part in features) else torch.float32


def share_an_id(ids: Tensor, others: Tensor) -> Tensor:
    """Where any id of int[kinds, n] is the same as that of int[kinds, m]: bool[n, m]."""
    same = ids[0, :, None] == others[0]
    for some, other in zip(ids[1:], others[1:], strict=True):
        same |= some[:, None] == other
    return same


class Positives:
    """The captions that are right for this rank's pictures: their own, or, with ids, all whose pair shares an id."""

    def __init__(self, ids: Tensor | None, ranks: Ranks) -> None:
        self.ranks = ranks
        self.ids = None if ids is None else ids.T.contiguous()
        self.all_ids = None if ids is None else ranks.gather(ids).T.contiguous()

    def own(self, chunk: Tensor, rows: slice) -> Tensor:
        """The numbers in `chunk`, [rows, global_batch], of the pictures and their own captions: a view, [rows]."""
        first = self.ranks.own.start + rows.start
        return chunk[:, first : first + len(chunk)].diagonal()

    def mask(self, rows: slice) -> Tensor:
        """Which captions share an id with the pictures of `rows`: bool[rows, global_batch]."""
        assert self.ids is not None and self.all_ids is not None
        return share_an_id(self.ids[:, rows], self.all_ids)

    def include(self, captions: Tensor) -> Tensor:
        """Whether the caption that is named for each picture, int64[batch], is right for it: bool[batch]."""
        if self.ids is None or self.all_ids is None:
            return captions == self.ranks.own.start + torch.arange(len(captions), device=captions.device)
        return (self.ids == self.all_ids[:, captions]).any(0)


def row_chunks(count: int, chunk_size: int) -> Iterator[slice]:
    """`count` rows, `chunk_size` at a time; the last chunk may have fewer."""
    for start in range(0, count, chunk_size):
        yield slice(start, min(start + chunk_size, count))


def logit_chunks(
    images: Tensor, texts: Tensor, scale: Tensor, chunk_size: int
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yields the rows of some pictures, their logits with all texts, [rows, global_batch], and as much spare memory.

    Both may be overwritten; the next chunk has its place in the same memory.
    """
    memory = images.new_empty(2, min(chunk_size, len(images)), len(texts))
    for rows in row_chunks(len(images), chunk_size):
        scaled = images[rows] * scale
        logits, spare = memory[:, : len(scaled)]
        torch.mm(scaled, texts.T, out=logits)
        yield rows, logits, spare


def feature_gradients(
    images: Tensor,
    texts: Tensor,
    scale: Tensor,
    logit_gradients: Iterable[tuple[slice, Tensor]],
    factor: Tensor,
    needed: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """`factor` times the gradients of `images`, `texts` and `scale`, where `needed`, from chunks of the logits' own."""
    for_images = torch.empty_like(images) if needed[0] else None
    for_texts = torch.zeros_like(texts) if needed[1] else None
    for_scale = torch.zeros_like(scale) if needed[2] else None
    for rows, gradient in logit_gradients:
        if for_texts is not None:
            for_texts.addmm_(gradient.T, images[rows] * scale)
        if for_images is not None or for_scale is not None:
            weighted_texts = gradient @ texts
            if for_scale is not None:
                for_scale += (weighted_texts * images[rows]).sum()
            if for_images is not None:
                torch.mul(weighted_texts, scale, out=for_images[rows])
    for total in (for_images, for_texts, for_scale):
        if total is not None:
            total *= factor
    return for_images, for_texts, for_scale


def exp_(exponents: Tensor) -> Tensor:
    """The exponential in place, of exponents that are at most about 0."""
    return exponents.clamp_(min=FLOOR).exp_()


def without_autocast(method: Callable[..., Any]) -> Callable[..., Any]:
    """A forward or backward that computes in the dtypes of its tensors, whatever autocast says where it is called."""

    @wraps(method)
    def wrapped(ctx: Any, tensor: Tensor, *others: Any) -> Any:
        with torch.autocast(tensor.device.type, enabled=False):
            return method(ctx, tensor, *others)

    return wrapped


def first_order_only(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward that says so when its gradients are to be differentiated again.

    `torch.autograd.function.once_differentiable` would let gradients pass as constants.
    """

    @wraps(backward)
    def wrapped(ctx: Any, *gradients: Tensor) -> Any:
        if torch.is_grad_enabled():  # in a backward, only for create_graph
            raise ConfigError(
                "create_graph of a backward through a chunked loss",
                must="be False",
                got=True,
                then="Use the loss's reference, which can be differentiated twice.",
            )
        return backward(ctx, *gradients)

    return wrapped
