"""The ranks that hold a global batch together: what they gather, and the gradients that go back.

Gradients follow one convention: on W ranks, an objective's backward gives every rank W times its own part of each
gradient (its pictures' rows, its captions' rows, its pictures' part of the scalars). DDP and FSDP take the mean over
the ranks, and the mean of these is the gradient of the global loss. One process alone gets the plain gradient.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from limner.errors import ConfigError


class Ranks:
    """How the pairs of a global batch lie on the ranks of `group`, in the order of the ranks; None: all lie here.

    The ranks may hold different numbers of pairs, or none. What they exchange is padded to the most that one holds,
    and the padding is cut off at once.
    """

    def __init__(self, pairs: int, group: dist.ProcessGroup | None, device: torch.device) -> None:
        self.group = group
        self.sizes, rank = [pairs], 0
        if group is not None:
            # over gloo where the group has it, so that no GPU is waited for
            meeting = "cpu" if "cpu" in dist.get_backend_config(group) else device
            rank, sizes = group.rank(), torch.empty(group.size(), dtype=torch.int64, device=meeting)
            dist.all_gather_single(sizes, torch.tensor([pairs], device=meeting), group=group)
            self.sizes = sizes.tolist()
        self.world_size, self.global_batch = len(self.sizes), sum(self.sizes)
        first = sum(self.sizes[:rank])
        self.own = slice(first, first + pairs)
        """This rank's pairs among those of the global batch."""
        if self.global_batch == 0:
            raise ConfigError("The batch", must="hold a pair", got="none on any rank", then="Leave out this step.")

    def gather(self, own: Tensor) -> Tensor:
        """The rows of all ranks, [global_batch, ...], from each one's own, [batch, ...]."""
        if self.group is None:
            return own
        most = max(self.sizes)
        padded = own.new_zeros(most, *own.shape[1:])
        padded[: len(own)] = own
        everything = own.new_empty(self.world_size * most, *own.shape[1:])
        dist.all_gather_single(everything, padded, group=self.group)
        return torch.cat([part[:size] for part, size in zip(everything.split(most), self.sizes, strict=True)])

    def own_of_sum(self, everything: Tensor) -> Tensor:
        """This rank's own rows, [batch, ...], of the sum of all ranks' [global_batch, ...]."""
        if self.group is None:
            return everything
        most = max(self.sizes)
        padded = everything.new_zeros(self.world_size, most, *everything.shape[1:])
        for place, part in zip(padded, everything.split(self.sizes), strict=True):
            place[: len(part)] = part
        own = torch.empty_like(padded[0])
        dist.reduce_scatter_single(own, padded.flatten(0, 1), group=self.group)
        return own[: self.own.stop - self.own.start]

    def sum(self, values: Tensor) -> Tensor:
        """The sum of all ranks' `values`, in their place."""
        if self.group is not None:
            dist.all_reduce(values, dist.ReduceOp.SUM, group=self.group)
        return values

    def maximum(self, values: Tensor) -> Tensor:
        """The largest of all ranks' `values`, in their place."""
        if self.group is not None:
            dist.all_reduce(values, dist.ReduceOp.MAX, group=self.group)
        return values


def gather_features(features: Tensor, dtype: torch.dtype, ranks: Ranks) -> Tensor:
    """The features of all ranks, [global_batch, embed], in `dtype`; each rank's gradient comes back to it."""
    return features.to(dtype) if ranks.group is None else _GatherFeatures.apply(features, dtype, ranks)  # pyright: ignore[reportReturnType]


class _GatherFeatures(torch.autograd.Function):
    """Sent in the dtype of the features; the gradients are added up in the dtype of the computation."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, dtype: torch.dtype, ranks: Ranks) -> Tensor:
        ctx.dtype, ctx.ranks = features.dtype, ranks
        return ranks.gather(features).to(dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.ranks.own_of_sum(gradients[0]).to(ctx.dtype), None, None
