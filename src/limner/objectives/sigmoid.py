"""The sigmoid loss over the N x N similarities of a batch: each pair of a picture and a caption is a question of its
own, right or wrong (SigLIP, Zhai et al. 2023, equation 1)."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributed import ProcessGroup

from limner.objectives.chunks import (
    CHUNK_SIZE,
    FLOOR,
    Positives,
    check_batch,
    compute_dtype,
    exp_,
    feature_gradients,
    first_order_only,
    logit_chunks,
    share_an_id,
    without_autocast,
)
from limner.objectives.ranks import Ranks, gather_features


def sigmoid_loss_reference(
    image_features: Float[Tensor, "batch embed"],
    text_features: Float[Tensor, "batch embed"],
    logit_scale: Float[Tensor, ""],
    logit_bias: Float[Tensor, ""],
    *,
    positives: Int[Tensor, "batch kinds"] | None = None,
) -> Float[Tensor, ""]:
    """The readable reference of `sigmoid_loss`, with all N x N logits at once."""
    dtype = compute_dtype(image_features, text_features)
    with torch.autocast(image_features.device.type, enabled=False):
        logits = logit_scale.to(dtype) * image_features.to(dtype) @ text_features.to(dtype).T + logit_bias.to(dtype)
        if positives is None:
            right = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        else:
            right = share_an_id(positives.T, positives.T)
        return -F.logsigmoid(torch.where(right, logits, -logits)).sum() / len(logits)


def sigmoid_loss(
    image_features: Float[Tensor, "batch embed"],
    text_features: Float[Tensor, "batch embed"],
    logit_scale: Float[Tensor, ""],
    logit_bias: Float[Tensor, ""],
    *,
    chunk_size: int = CHUNK_SIZE,
    group: ProcessGroup | None = None,
    positives: Int[Tensor, "batch kinds"] | None = None,
) -> Float[Tensor, ""]:
    """The sum of N x N binary cross-entropies, divided by N: do this picture and this caption belong together?

    The logit of a picture and a caption is logit_scale x similarity + logit_bias. Everything else is as in
    `limner.objectives.contrastive.contrastive_loss`: dtypes, `chunk_size`, `positives` (all of them are right), the
    ranks of `group`, the W-fold gradients that become the global loss's when DDP or FSDP averages them, and errors.
    """
    check_batch(image_features, text_features, positives, chunk_size)
    dtype = compute_dtype(image_features, text_features)
    ranks = Ranks(len(image_features), group, image_features.device)
    images, texts = image_features.to(dtype), gather_features(text_features, dtype, ranks)
    right = Positives(positives, ranks)
    return _SigmoidLoss.apply(images, texts, logit_scale.to(dtype), logit_bias.to(dtype), right, chunk_size)  # pyright: ignore[reportReturnType]


class _SigmoidLoss(torch.autograd.Function):
    """With the logits of right captions negated, each one's loss is its softplus, and no difference of large numbers
    is taken."""

    @staticmethod
    @without_autocast
    def forward(
        ctx: Any, images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor, right: Positives, chunk_size: int
    ) -> Tensor:
        losses = images.new_empty(len(images))
        for rows, logits, spare in logit_chunks(images, texts, scale, chunk_size):
            wrongness = negate_right(logits.add_(bias), rows, spare, right)
            # softplus(x) = log(1 + exp(-|x|)) + max(x, 0)
            losses[rows] = exp_(torch.abs(wrongness, out=spare).neg_()).log1p_().sum(1)
            losses[rows] += wrongness.clamp_(min=0).sum(1)
        ctx.save_for_backward(images, texts, scale, bias)
        ctx.right, ctx.chunk_size = right, chunk_size
        return right.ranks.sum(losses.sum()) / right.ranks.global_batch

    @staticmethod
    @first_order_only
    @without_autocast
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, texts, scale, bias = ctx.saved_tensors
        factor = gradient * ctx.right.ranks.world_size / ctx.right.ranks.global_batch
        for_bias = torch.zeros_like(bias)

        def logit_gradients() -> Iterator[tuple[slice, Tensor]]:
            for rows, logits, spare in logit_chunks(images, texts, scale, ctx.chunk_size):
                wrongness = negate_right(logits.add_(bias), rows, spare, ctx.right)
                slope = negate_right(wrongness.clamp_(min=FLOOR).sigmoid_(), rows, spare, ctx.right)
                for_bias.add_(slope.sum())
                yield rows, slope

        for_features = feature_gradients(images, texts, scale, logit_gradients(), factor, ctx.needs_input_grad)
        return *for_features, for_bias * factor, None, None


def negate_right(chunk: Tensor, rows: slice, spare: Tensor, right: Positives) -> Tensor:
    """`chunk`, [rows, global_batch], with the numbers of right captions negated in place."""
    if right.ids is None:
        right.own(chunk, rows).neg_()
        return chunk
    return torch.where(right.mask(rows), torch.neg(chunk, out=spare), chunk, out=chunk)
