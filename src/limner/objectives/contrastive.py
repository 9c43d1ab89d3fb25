"""The symmetric contrastive loss over the N x N similarities of a batch (paper section 2.3, figure 3)."""

import math
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
    Positives,
    check_batch,
    compute_dtype,
    exp_,
    feature_gradients,
    first_order_only,
    logit_chunks,
    row_chunks,
    share_an_id,
    without_autocast,
)
from limner.objectives.objective import Objective
from limner.objectives.ranks import Ranks, gather_features


def contrastive_loss_reference(
    image_features: Float[Tensor, "batch embed"],
    text_features: Float[Tensor, "batch embed"],
    logit_scale: Float[Tensor, ""],
    *,
    positives: Int[Tensor, "batch kinds"] | None = None,
) -> Float[Tensor, ""]:
    """The readable reference of `contrastive_loss`: the paper's figure 3, with all N x N logits at once."""
    dtype = compute_dtype(image_features, text_features)
    with torch.autocast(image_features.device.type, enabled=False):
        logits = logit_scale.to(dtype) * image_features.to(dtype) @ text_features.to(dtype).T
        if positives is None:
            targets = torch.arange(len(logits), device=logits.device)
        else:
            right = share_an_id(positives.T, positives.T).to(dtype)
            targets = right / right.sum(1, keepdim=True)  # right is symmetric: these are the captions' targets too
        return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def contrastive_loss(
    image_features: Float[Tensor, "batch embed"],
    text_features: Float[Tensor, "batch embed"],
    logit_scale: Float[Tensor, ""],
    *,
    chunk_size: int = CHUNK_SIZE,
    group: ProcessGroup | None = None,
    positives: Int[Tensor, "batch kinds"] | None = None,
) -> Float[Tensor, ""]:
    """The mean of two cross-entropies: find each picture's caption among the batch's, and each caption's picture.

    Features are L2-normalised, of any dtype. Similarities, softmax and loss are float32 (float64 for float64 features)
    whatever autocast says; gradients come in the dtypes of the inputs. `chunk_size` pictures at a time are compared
    with all captions, which takes memory for 2 x chunk_size x N numbers and changes nothing else.

    `positives` are ids of each pair, for example hashes of its picture and its caption: pairs with the same id in any
    column are right answers for each other, and the target is uniform over a picture's (a caption's) right answers,
    as in UniCL (Yang et al. 2022). None: only a pair's own.

    With `group`, every rank gives its own rows, not necessarily as many, of one global batch, and all get the global
    mean loss. On W ranks, backward gives each rank W times its own part of the gradient (its pictures' rows, its
    captions' rows, its pictures' part of the logit scale): DDP and FSDP average over the ranks, and that mean is the
    gradient of the global loss. None: this process alone, whether or not torch.distributed is initialised.

    Raises `ConfigError` for shapes that do not fit, a chunk_size below 1 and a batch without pairs.
    """
    ranks = Ranks(len(image_features), group, image_features.device)
    return contrastive_loss_and_accuracy(
        image_features, text_features, logit_scale, ranks, chunk_size=chunk_size, positives=positives
    )[0]


def contrastive_loss_and_accuracy(
    image_features: Float[Tensor, "batch embed"],
    text_features: Float[Tensor, "batch embed"],
    logit_scale: Float[Tensor, ""],
    ranks: Ranks | None = None,
    *,
    chunk_size: int = CHUNK_SIZE,
    positives: Int[Tensor, "batch kinds"] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """`contrastive_loss`, and the share of the global batch's images whose most similar caption is a right one.

    Of captions that are exactly as similar the first counts, so equal features are not accurate. Not differentiable.
    `ranks` says how the global batch lies on them; None: it is all here.
    """
    check_batch(image_features, text_features, positives, chunk_size)
    ranks = ranks or Ranks(len(image_features), None, image_features.device)
    dtype = compute_dtype(image_features, text_features)
    images, texts = image_features.to(dtype), gather_features(text_features, dtype, ranks)
    targets = Targets(positives, ranks, dtype, chunk_size)
    return _ContrastiveLoss.apply(images, texts, logit_scale.to(dtype), targets, chunk_size)  # pyright: ignore[reportReturnType]


@dataclass(frozen=True)
class Contrastive(Objective):
    """The paper's objective: which caption of the batch belongs to each image, and which image to each caption."""

    name: ClassVar[str] = "contrastive"
    couples_pairs: ClassVar[bool] = True

    def adapt(self, architecture: Architecture) -> Architecture:
        """Nothing is added; what another objective had added is left out."""
        return replace(architecture, objective=self.name, initial_logit_bias=None)

    def encode(self, model: CLIP, batch: Batch) -> dict[str, Tensor]:
        """Features of both encoders, and the logit scale."""
        return {
            "image_features": model.encode_image(batch.pixels),
            "text_features": model.encode_text(batch.tokens),
            "logit_scale": model.logit_scale,
        }

    def loss(self, tensors: dict[str, Tensor], batch: Batch, ranks: Ranks) -> tuple[Tensor, dict[str, Tensor]]:
        """`contrastive_loss`, and the accuracy in the batch."""
        image, text, scale = (tensors[name] for name in ("image_features", "text_features", "logit_scale"))
        positives = batch.identities.to(image.device) if self.duplicates == "positives" else None
        value, accuracy = contrastive_loss_and_accuracy(image, text, scale, ranks, positives=positives)
        return value, {"accuracy": accuracy}

    def probabilities(self, model: CLIP, similarities: Tensor) -> Tensor:
        """The softmax over the classes of the scaled similarities (paper section 3.1)."""
        return (model.logit_scale * similarities).softmax(dim=-1)


class Targets(Positives):
    """What both cross-entropies aim at: uniform over the right captions of a picture, and over the right pictures of a
    caption. The two stand in one chunk as the sum of their probabilities, which adds up to 2 if nothing is shared."""

    def __init__(self, ids: Tensor | None, ranks: Ranks, dtype: torch.dtype, chunk_size: int) -> None:
        super().__init__(ids, ranks)
        self.shares = None
        if self.ids is not None:
            counts = torch.empty_like(self.ids[0], dtype=dtype)
            for rows in row_chunks(len(counts), chunk_size):
                counts[rows] = self.mask(rows).sum(1, dtype=dtype)
            # positives are mutual: a picture has as many right captions as its own caption has right pictures
            self.shares = ranks.gather(counts).reciprocal_()

    def weighted_sum(self, logits: Tensor, rows: slice, spare: Tensor) -> Tensor:
        """Each row's logits, weighted with the probabilities and added up: [rows]."""
        if self.shares is None:
            return 2 * self.own(logits, rows)
        spare.copy_(self.mask(rows)).mul_(logits)
        return spare.sum(1) * self.shares[self.ranks.own][rows] + spare @ self.shares

    def subtract_from(self, chunk: Tensor, rows: slice, spare: Tensor) -> None:
        """Subtract the probabilities from what the model holds likely."""
        if self.shares is None:
            self.own(chunk, rows).sub_(2)
        else:
            spare.copy_(self.mask(rows))
            chunk.addcmul_(spare, self.shares, value=-1)
            chunk.addcmul_(spare, self.shares[self.ranks.own][rows, None], value=-1)


class _ContrastiveLoss(torch.autograd.Function):
    """One pass over the pictures: a row's softmax is whole within its chunk; of a column's, the largest logit so far
    and the sum of the exponentials beside it are kept.

    Maximum and sum stay apart to the end: their log-sum-exp would be rounded at the size of the logits, and the loss
    of a model that knows its pairs is a small difference of large logits.
    """

    @staticmethod
    @without_autocast
    def forward(
        ctx: Any, images: Tensor, texts: Tensor, scale: Tensor, targets: Targets, chunk_size: int
    ) -> tuple[Tensor, Tensor]:
        ranks = targets.ranks
        row_max, row_sum, target_logits = images.new_empty(3, len(images))
        nearest = torch.empty(len(images), dtype=torch.int64, device=images.device)
        column_max, column_sum = images.new_full((len(texts),), -math.inf), images.new_zeros(len(texts))
        for rows, logits, spare in logit_chunks(images, texts, scale, chunk_size):
            target_logits[rows] = targets.weighted_sum(logits, rows, spare)

            row_max[rows], nearest[rows] = logits.max(1)
            row_sum[rows] = exp_(torch.sub(logits, row_max[rows, None], out=spare)).sum(1)

            new_max = torch.maximum(column_max, logits.amax(0))
            column_sum *= exp_(column_max - new_max)
            column_sum += exp_(logits.sub_(new_max)).sum(0)
            column_max = new_max

        overall_max = ranks.maximum(column_max.clone())
        column_sum = ranks.sum(column_sum * exp_(column_max - overall_max))
        column_max = overall_max
        losses = row_max + column_max[ranks.own] - target_logits + row_sum.log() + column_sum[ranks.own].log()
        loss, hits = ranks.sum(torch.stack([losses.sum() / 2, targets.include(nearest).sum()]))
        loss, accuracy = loss / ranks.global_batch, hits / ranks.global_batch

        ctx.save_for_backward(images, texts, scale, row_max, row_sum, column_max, column_sum)
        ctx.targets, ctx.chunk_size = targets, chunk_size
        ctx.mark_non_differentiable(accuracy)
        return loss, accuracy

    @staticmethod
    @first_order_only
    @without_autocast
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        images, texts, scale, row_max, row_sum, column_max, column_sum = ctx.saved_tensors
        targets = ctx.targets

        def logit_gradients() -> Iterator[tuple[slice, Tensor]]:
            for rows, logits, spare in logit_chunks(images, texts, scale, ctx.chunk_size):
                probabilities = exp_(torch.sub(logits, row_max[rows, None], out=spare)).div_(row_sum[rows, None])
                probabilities.addcdiv_(exp_(logits.sub_(column_max)), column_sum)
                targets.subtract_from(probabilities, rows, spare=logits)
                yield rows, probabilities

        factor = gradient * targets.ranks.world_size / (2 * targets.ranks.global_batch)
        return *feature_gradients(images, texts, scale, logit_gradients(), factor, ctx.needs_input_grad), None, None
