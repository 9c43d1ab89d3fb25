"""The sigmoid loss over the N x N similarities of a batch: each pair of a picture and a caption is a question of its
own, right or wrong (SigLIP, Zhai et al. 2023, equation 1)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributed import ProcessGroup

from limner.architecture import Architecture
from limner.data.loader import Batch
from limner.model.clip import CLIP
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
from limner.objectives.objective import Objective
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
    ranks = Ranks(len(image_features), group, image_features.device)
    return sigmoid_loss_and_accuracy(
        image_features, text_features, logit_scale, logit_bias, ranks, chunk_size=chunk_size, positives=positives
    )[0]


def sigmoid_loss_and_accuracy(
    image_features: Float[Tensor, "batch embed"],
    text_features: Float[Tensor, "batch embed"],
    logit_scale: Float[Tensor, ""],
    logit_bias: Float[Tensor, ""],
    ranks: Ranks | None = None,
    *,
    chunk_size: int = CHUNK_SIZE,
    positives: Int[Tensor, "batch kinds"] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """`sigmoid_loss`, and the share of the global batch's images whose most similar caption is a right one.

    Of captions that are exactly as similar the first counts. The accuracy is not differentiable. `ranks` says how the
    global batch lies on them; None: it is all here.
    """
    check_batch(image_features, text_features, positives, chunk_size)
    ranks = ranks or Ranks(len(image_features), None, image_features.device)
    dtype = compute_dtype(image_features, text_features)
    images, texts = image_features.to(dtype), gather_features(text_features, dtype, ranks)
    right = Positives(positives, ranks)
    return _SigmoidLoss.apply(images, texts, logit_scale.to(dtype), logit_bias.to(dtype), right, chunk_size)  # pyright: ignore[reportReturnType]


@dataclass(frozen=True)
class Sigmoid(Objective):
    """SigLIP's objective: does this image belong to this caption, asked of each pair of the two in the batch."""

    name: ClassVar[str] = "sigmoid"
    couples_pairs: ClassVar[bool] = True

    def adapt(self, architecture: Architecture) -> Architecture:
        """A logit bias, which begins at -10 beside a scale of 10: of N x N answers all but N are no (section 3.2)."""
        if architecture.initial_logit_bias is not None:  # one of your own
            return replace(architecture, objective=self.name)
        return replace(architecture, objective=self.name, initial_logit_scale=10.0, initial_logit_bias=-10.0)

    def encode(self, model: CLIP, batch: Batch) -> dict[str, Tensor]:
        """Features of both encoders, the logit scale and the logit bias."""
        assert model.logit_bias is not None, "the architecture was adapted"
        return {
            "image_features": model.encode_image(batch.pixels),
            "text_features": model.encode_text(batch.tokens),
            "logit_scale": model.logit_scale,
            "logit_bias": model.logit_bias,
        }

    def loss(self, tensors: dict[str, Tensor], batch: Batch, ranks: Ranks) -> tuple[Tensor, dict[str, Tensor]]:
        """`sigmoid_loss`, and the accuracy in the batch."""
        image, text = tensors["image_features"], tensors["text_features"]
        positives = batch.identities.to(image.device) if self.duplicates == "positives" else None
        value, accuracy = sigmoid_loss_and_accuracy(
            image, text, tensors["logit_scale"], tensors["logit_bias"], ranks, positives=positives
        )
        return value, {"accuracy": accuracy}

    def probabilities(self, model: CLIP, similarities: Tensor) -> Tensor:
        """For each class by itself, the sigmoid of its logit: they do not add up to one."""
        assert model.logit_bias is not None, "the architecture was adapted"
        return (model.logit_scale * similarities + model.logit_bias).sigmoid()


class _SigmoidLoss(torch.autograd.Function):
    """With the logits of right captions negated, each one's loss is its softplus, and no difference of large numbers
    is taken."""

    @staticmethod
    @without_autocast
    def forward(
        ctx: Any, images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor, right: Positives, chunk_size: int
    ) -> tuple[Tensor, Tensor]:
        losses = images.new_empty(len(images))
        nearest = torch.empty(len(images), dtype=torch.int64, device=images.device)
        for rows, logits, spare in logit_chunks(images, texts, scale, chunk_size):
            nearest[rows] = logits.argmax(1)
            wrongness = negate_right(logits.add_(bias), rows, spare, right)
            # softplus(x) = log(1 + exp(-|x|)) + max(x, 0)
            losses[rows] = exp_(torch.abs(wrongness, out=spare).neg_()).log1p_().sum(1)
            losses[rows] += wrongness.clamp_(min=0).sum(1)
        ctx.save_for_backward(images, texts, scale, bias)
        ctx.right, ctx.chunk_size = right, chunk_size
        loss, hits = right.ranks.sum(torch.stack([losses.sum(), right.include(nearest).sum()]))
        loss, accuracy = loss / right.ranks.global_batch, hits / right.ranks.global_batch
        ctx.mark_non_differentiable(accuracy)
        return loss, accuracy

    @staticmethod
    @first_order_only
    @without_autocast
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
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
