"""The text encoder (paper section 2.4): `tokens -> causal transformer -> state at [EOS] -> embedding`.

Because attention is causal and only the state at [EOS] is read, everything after [EOS] can be left out without
changing the result. Captions are therefore sorted by length and run in a few groups, each cut at its longest, and the
last block is computed for [EOS] alone.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from limn.config import Activation, TextConfig
from limn.model.transformer import Transformer, at, initialise_blocks

GROUPS = 4
"""Groups of similar length that a batch of captions runs in."""


class TextEncoder(nn.Module):
    """The causal transformer of captions."""

    def __init__(self, config: TextConfig, embed_dim: int, activation: Activation) -> None:
        super().__init__()
        hidden = config.width
        self.token_embedding = nn.Embedding(config.vocab_size, hidden)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, hidden))
        self.blocks = Transformer(hidden, config.heads, config.layers, causal=True, activation=activation)
        self.norm = nn.LayerNorm(hidden)
        self.projection = nn.Linear(hidden, embed_dim, bias=False)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        initialise_blocks(self.blocks, hidden)
        nn.init.normal_(self.projection.weight, std=hidden**-0.5)

    def forward(self, tokens: Int[Tensor, "batch context"]) -> Float[Tensor, "batch embed"]:
        """The embedding of each caption; equal to `encode_whole` in value and gradient."""
        if len(tokens) == 0:
            return self.encode_whole(tokens)
        lengths = tokens.argmax(dim=-1) + 1
        order = lengths.argsort(stable=True)
        groups = [
            self.encode_cut(tokens[rows, : int(lengths[rows[-1]])])
            for rows in order.chunk(GROUPS if len(order) >= 8 * GROUPS else 1)
        ]
        return torch.cat(groups)[order.argsort()]

    def encode_whole(self, tokens: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch embed"]:
        """The readable reference: every position is computed, then the one at [EOS], the highest id, is read."""
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        return self.projection(self.norm(at(self.blocks(x), tokens.argmax(dim=-1))))

    def encode_cut(self, tokens: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch embed"]:
        """`encode_whole` with the last block at [EOS] alone."""
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        return self.projection(self.norm(self.blocks.only(x, tokens.argmax(dim=-1))))
