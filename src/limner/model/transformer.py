"""The residual attention blocks that the ViT and the text encoder share (Vaswani et al. 2017, pre-norm).

Axes: batch, tokens, hidden; heads x head_dim = hidden. Both encoders read one token of the last block's output (the
class token, [EOS]), and the others of that block need not be computed: `Transformer.only`.

What training keeps in memory is decided here too: `QuickGELU` keeps its input alone, and `Blocks`, which the ResNet is
made of as well, can keep each block's input alone and compute the rest again.
"""

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.utils.checkpoint import checkpoint

from limner.architecture import Activation


def attention_reference(
    query: Float[Tensor, "batch heads queries head_dim"],
    key: Float[Tensor, "batch heads tokens head_dim"],
    value: Float[Tensor, "batch heads tokens head_dim"],
    *,
    causal: bool = False,
    visible: Bool[Tensor, "batch 1 #queries tokens"] | None = None,
) -> Float[Tensor, "batch heads queries head_dim"]:
    """Scaled dot-product attention, written out.

    `causal` lets a token see itself and what came before it; `visible` says for each query what it sees.
    """
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if causal:
        visible = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if visible is not None:
        scores = scores.masked_fill(~visible, float("-inf"))
    return scores.softmax(dim=-1) @ value


def attention(
    query: Float[Tensor, "batch heads queries head_dim"],
    key: Float[Tensor, "batch heads tokens head_dim"],
    value: Float[Tensor, "batch heads tokens head_dim"],
    *,
    causal: bool = False,
    visible: Bool[Tensor, "batch 1 #queries tokens"] | None = None,
    training: bool = False,
) -> Float[Tensor, "batch heads queries head_dim"]:
    """`attention_reference` by the fastest way at hand.

    torch's fused kernel is several times slower than the plain form when training in bfloat16 on a CPU
    (docs/decisions/0003), and faster everywhere else. `training` is the module's and decides alone: the two forms
    round differently, and features must not depend on whether a gradient is wanted.
    """
    if training and query.device.type == "cpu" and query.dtype == torch.bfloat16:
        return attention_reference(query, key, value, causal=causal, visible=visible)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=visible, is_causal=causal)


class Attention(nn.Module):
    """Multi-head self-attention with one packed projection for query, key and value."""

    def __init__(self, hidden: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.in_proj = nn.Linear(hidden, 3 * hidden)
        self.out_proj = nn.Linear(hidden, hidden)

    def forward(self, x: Float[Tensor, "batch tokens hidden"]) -> Float[Tensor, "batch tokens hidden"]:
        """Each token's mixture of the values of those that it may see."""
        query, key, value = self.in_proj(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        gathered = attention(query, key, value, causal=self.causal, training=self.training)
        return self.out_proj(gathered.transpose(1, 2).flatten(2))

    def only(
        self, x: Float[Tensor, "batch tokens hidden"], rows: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch hidden"]:
        """`forward(x)` at one row of each element: one query, the keys and values of all that it may see."""
        hidden = x.shape[-1]
        weight, bias = self.in_proj.weight, self.in_proj.bias
        query = F.linear(at(x, rows), weight[:hidden], bias[:hidden]).unflatten(-1, (self.heads, 1, -1))
        key, value = (
            F.linear(x, weight[hidden:], bias[hidden:]).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )
        visible = None
        if self.causal:
            visible = (torch.arange(x.shape[1], device=x.device) <= rows[:, None])[:, None, None, :]
        return self.out_proj(attention(query, key, value, visible=visible, training=self.training).flatten(1))


def quick_gelu_reference(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x * sigmoid(1.702 x), the approximation of GELU that the paper's weights were trained with."""
    return x * torch.sigmoid(1.702 * x)


class _QuickGELU(torch.autograd.Function):
    """`quick_gelu_reference`, which keeps x alone for the gradient: autograd would keep the sigmoid as well.

    Both ways take one new piece of memory.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (1.702 * x).sigmoid_().mul_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        # QuickGELU is silu(1.702 x) / 1.702, so its derivative is silu's at 1.702 x. torch's kernel rounds once, where
        # the formula in steps, s (1 + 1.702 x (1 - s)), would round to bfloat16 after each
        scaled = 1.702 * x
        return torch.ops.aten.silu_backward.grad_input(gradient, scaled, grad_input=scaled)


class QuickGELU(nn.Module):
    """`quick_gelu_reference` with little memory."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Element by element; can be differentiated once."""
        return _QuickGELU.apply(x)


class MLP(nn.Module):
    """Linear to four times the width, activation, linear back."""

    def __init__(self, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.inwards = nn.Linear(hidden, 4 * hidden)
        self.activation = QuickGELU() if activation == "quick_gelu" else nn.GELU()
        self.outwards = nn.Linear(4 * hidden, hidden)

    def forward(self, x: Float[Tensor, "... hidden"]) -> Float[Tensor, "... hidden"]:
        """Each token on its own."""
        return self.outwards(self.activation(self.inwards(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, hidden: int, heads: int, *, causal: bool, activation: Activation) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(hidden)
        self.attention = Attention(hidden, heads, causal=causal)
        self.norm_2 = nn.LayerNorm(hidden)
        self.mlp = MLP(hidden, activation)

    def forward(self, x: Float[Tensor, "batch tokens hidden"]) -> Float[Tensor, "batch tokens hidden"]:
        """One block."""
        x = x + self.attention(self.norm_1(x))
        return x + self.mlp(self.norm_2(x))

    def only(
        self, x: Float[Tensor, "batch tokens hidden"], rows: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch hidden"]:
        """`forward(x)` at one row of each element."""
        row = at(x, rows) + self.attention.only(self.norm_1(x), rows)
        return row + self.mlp(self.norm_2(row))


class Blocks(nn.Sequential):
    """Blocks, one after the other.

    With `recompute` each of them keeps its inputs alone for the gradient and is run again when that is computed.
    """

    recompute: bool = False

    def forward(self, input: Tensor) -> Tensor:
        """What leaves the last block."""
        for block in self:
            input = self.run(block, input)
        return input

    def run(self, block: nn.Module, *inputs: Tensor, method: str = "__call__") -> Tensor:
        """`block.method(*inputs)`, with `recompute` so that nothing but the inputs is kept.

        Always through the block itself, for hooks gather its weights there when they are sharded over ranks.
        """
        function = getattr(block, method)
        if not (self.recompute and torch.is_grad_enabled()):
            return function(*inputs)
        contexts = nullcontext(), UnchangedBuffers(block)
        return checkpoint(function, *inputs, use_reentrant=False, context_fn=lambda: contexts)


class UnchangedBuffers:
    """Leaves the buffers of a module as it found them, whenever it is entered.

    A BatchNorm that is run again for the gradient must not count the batch in its running statistics again.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __enter__(self) -> None:
        self.before = [buffer.clone() for buffer in self.module.buffers()]

    def __exit__(self, *_: object) -> None:
        for buffer, before in zip(self.module.buffers(), self.before, strict=True):
            buffer.copy_(before)


class Transformer(Blocks):
    """Attention blocks."""

    def __init__(self, hidden: int, heads: int, layers: int, *, causal: bool, activation: Activation) -> None:
        super().__init__(*(Block(hidden, heads, causal=causal, activation=activation) for _ in range(layers)))

    def only(
        self, x: Float[Tensor, "batch tokens hidden"], rows: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch hidden"]:
        """`forward(x)` at one row of each element: the last block computes nothing else."""
        *others, last = self
        for block in others:
            x = self.run(block, x)
        return self.run(last, x, rows, method="only")


def at(x: Float[Tensor, "batch tokens hidden"], rows: Int[Tensor, " batch"]) -> Float[Tensor, "batch hidden"]:
    """One row of each element."""
    return x[torch.arange(x.shape[0], device=x.device), rows]


def resized_positions(positions: nn.Parameter, old: int, new: int) -> nn.Parameter:
    """Position embeddings [1 + old * old, hidden] for a grid of `new` on each side: bicubic, the first one kept."""
    first, grid = positions.detach().float().split([1, len(positions) - 1])
    grid = grid.T.view(1, -1, old, old)
    grid = F.interpolate(grid, (new, new), mode="bicubic", align_corners=False, antialias=True)
    resized = torch.cat([first, grid.view(-1, new * new).T]).to(positions.dtype)
    return nn.Parameter(resized.contiguous())


def initialise_blocks(blocks: nn.Module, hidden: int) -> None:
    """The paper's initialisation of the transformer: projections shrink with width, those that are summed with depth.

    Standard deviations as in GPT-2's and CLIP's released code: width**-0.5 into attention, (2 width)**-0.5 into the
    MLP, and (2 layers width)**-0.5 for the two that write to the residual stream.
    """
    layers = [block for block in blocks.modules() if isinstance(block, Block)]
    for block in layers:
        for linear, std in (
            (block.attention.in_proj, hidden**-0.5),
            (block.attention.out_proj, (2 * len(layers) * hidden) ** -0.5),
            (block.mlp.inwards, (2 * hidden) ** -0.5),
            (block.mlp.outwards, (2 * len(layers) * hidden) ** -0.5),
        ):
            nn.init.normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)
