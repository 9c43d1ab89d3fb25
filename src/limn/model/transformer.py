"""The residual attention blocks that the ViT and the text encoder share (Vaswani et al. 2017, pre-norm).

Axes: batch, tokens, hidden; heads x head_dim = hidden. Both encoders read one token of the last block's output (the
class token, [EOS]), and the others of that block need not be computed: `Transformer.only`.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from limn.config import Activation


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
) -> Float[Tensor, "batch heads queries head_dim"]:
    """`attention_reference` by the fastest way at hand.

    torch's fused kernel is several times slower than the plain form when training in bfloat16 on a CPU
    (docs/decisions/0003), and faster everywhere else.
    """
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and torch.is_grad_enabled():
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
        return self.out_proj(attention(query, key, value, causal=self.causal).transpose(1, 2).flatten(2))

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
        return self.out_proj(attention(query, key, value, visible=visible).flatten(1))


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the approximation of GELU that the paper's weights were trained with."""

    def forward(self, x: Tensor) -> Tensor:
        """Element by element."""
        if torch.is_grad_enabled():
            return x * torch.sigmoid(1.702 * x)
        return (1.702 * x).sigmoid_().mul_(x)  # the same in one piece of memory, which the gradient could not do with


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


class Transformer(nn.Sequential):
    """Blocks, one after the other."""

    def __init__(self, hidden: int, heads: int, layers: int, *, causal: bool, activation: Activation) -> None:
        super().__init__(*(Block(hidden, heads, causal=causal, activation=activation) for _ in range(layers)))

    def only(
        self, x: Float[Tensor, "batch tokens hidden"], rows: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch hidden"]:
        """`forward(x)` at one row of each element: the last block computes nothing else."""
        *others, last = self
        for block in others:
            x = block(x)
        assert isinstance(last, Block)
        return last.only(x, rows)


def at(x: Float[Tensor, "batch tokens hidden"], rows: Int[Tensor, " batch"]) -> Float[Tensor, "batch hidden"]:
    """One row of each element."""
    return x[torch.arange(x.shape[0], device=x.device), rows]


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
